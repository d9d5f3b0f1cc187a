"""The ten tasks of the Medical Segmentation Decathlon: downloaded, checked, and ready to train.

Names, addresses and MD5 sums are those that MONAI 1.6.1 publishes with its ``DecathlonDataset``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from medseg.config import LABEL_KEY
from medseg.dataset.archives import checksum_of, parse_checksum, unpack_tar
from medseg.dataset.fetching import Download, check_address
from medseg.dataset.layouts import DESCRIPTION, check_decathlon, read_description
from medseg.imaging import ENDING
from medseg.project import (
    MOUNT_PATH,
    DataRoot,
    Manifest,
    UserError,
    fingerprint,
    hint,
    progress,
    read_json,
    result,
    scratch_folder,
    write_text,
)

ADDRESS = "https://msd-for-monai.s3-us-west-2.amazonaws.com"
"""The folder with the archives, of which each is ``<task>.tar``."""

TASKS = {
    "Task01_BrainTumour": "240a19d752f0d9e9101544901065d872",
    "Task02_Heart": "06ee59366e1e5124267b774dbd654057",
    "Task03_Liver": "a90ec6c4aa7f6a3d087205e23d4e6397",
    "Task04_Hippocampus": "9d24dba78a72977dbd1d2e110310f31b",
    "Task05_Prostate": "35138f08b1efaef89d7424d2bcc928db",
    "Task06_Lung": "8afd997733c7fc0432f71255ba4e52dc",
    "Task07_Pancreas": "4f7080cfca169fa8066d17ce6eb061e4",
    "Task08_HepaticVessel": "641d79e80ec66453921d997fbf12a29c",
    "Task09_Spleen": "410d4a301da4e5b2f6f86ec3ddba524e",
    "Task10_Colon": "bad7a188931dc2f6acf72b08eb6202d0",
}
"""The tasks, and the MD5 sums of their archives."""

LICENCE = "CC-BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/)"
CITATION = (
    "Antonelli M, et al. The Medical Segmentation Decathlon. Nature Communications 13, 4128 "
    "(2022). https://doi.org/10.1038/s41467-022-30695-9",
    "Simpson AL, et al. A large annotated medical image dataset for the development and "
    "evaluation of segmentation algorithms. https://arxiv.org/abs/1902.09063",
)

_PARTS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs", DESCRIPTION)
_RECORD = "download_decathlon"


@dataclass(frozen=True)
class DecathlonTask:
    """A task on the volume.

    Attributes:
        folder: The dataset: ``imagesTr``, ``labelsTr``, ``imagesTs``, ``dataset.json``.
        config: The task's config.
        cases: How many training cases there are.
        source: Where the archive came from.
        checksum: What the archive was checked against, such as ``md5:410d…``.
    """

    folder: Path
    config: Path
    cases: int
    source: str
    checksum: str

    @property
    def facts(self) -> dict[str, Any]:
        """What an artifact says of it."""
        return {
            "cases": self.cases,
            "source": self.source,
            "checksum": self.checksum,
            "licence": LICENCE,
            "citation": " ".join(CITATION),
        }


def download_decathlon(
    root: DataRoot, decathlon_task: str, *, mirror: str = "", checksum: str = ""
) -> DecathlonTask:
    """Brings a task of the Decathlon to the volume, and writes a config that trains on it.

    The dataset lies in ``<root>/<task>``. Files that are there stay as they are: an interrupted
    or incomplete download is completed. Where the source and its terms are recorded is
    ``<task>/SOURCE.md``. The config is ``configs/<task>_config.yaml``; one that is there stays.

    Args:
        root: The data root.
        decathlon_task: The task, such as ``Task09_Spleen``.
        mirror: Folder that holds ``<task>.tar``, or such a file: an address (``https://…``), or a
            place inside the data root (``file:///mnt/Data/…`` or a path). Default:
            :data:`ADDRESS`.
        checksum: MD5 or SHA-256 of the archive, where the mirror's differs from the original.

    Returns:
        What is on the volume now.

    Raises:
        UserError: There is no such task; the server is away or refuses; the archive has another
            checksum, is no archive, would write outside of its folder or is incomplete; a file
            that is there differs from the archive's; or the disk is full.
    """
    if decathlon_task not in TASKS:
        raise UserError(
            f"decathlon_task: the Decathlon has no task {decathlon_task!r}"
            f"{hint(decathlon_task, TASKS)}; it has {', '.join(TASKS)}."
        )
    kind, digits = parse_checksum(checksum or f"md5:{TASKS[decathlon_task]}", field="checksum")
    folder = root.resolve(decathlon_task, field="decathlon_task")
    source = _address(mirror, decathlon_task)
    inputs = fingerprint({"checksum": digits})
    record = Manifest(folder, _RECORD)
    if record.is_done(inputs) and not _missing(folder):
        progress(f"{decathlon_task} is here already")
    else:
        archive, download = _archive(root, source, kind, digits)
        progress(f"{decathlon_task}: the archive is whole, its {kind} is right; unpacking it")
        _unpack(archive, folder, decathlon_task)
        _write_source(folder, decathlon_task, source, f"{kind}:{digits}")
        record.record(inputs, [folder / "SOURCE.md"], {"source": source})
        if download is not None:
            download.discard()
    config = root.path / "configs" / f"{decathlon_task}_config.yaml"
    if not config.is_file():
        _write_config(config, root, folder, decathlon_task)
    done = DecathlonTask(
        folder,
        config,
        len(read_json(folder / DESCRIPTION, {}).get("training", ())),
        (record.result() or {}).get("source", source),
        f"{kind}:{digits}",
    )
    progress(
        f"{done.cases} training cases in {root.relative(folder)}, config "
        f"{root.relative(config)}; licence {LICENCE}"
    )
    result("dataset", folder)
    result("config", config)
    return done


def decathlon_config(folder: Path, name: str, data_dir: str) -> dict[str, Any]:
    """What a dataset of the Decathlon format says itself, as the content of a task's config.

    Args:
        folder: The dataset's folder.
        name: The task's name, such as ``Task09_Spleen``; its number becomes nnU-Net's.
        data_dir: What the config calls the dataset's folder.

    Raises:
        UserError: ``dataset.json`` is missing or not the Decathlon's.
    """
    check_decathlon(folder)
    described = read_description(folder)
    if not described.channels or not described.labels:
        raise UserError(
            f"{folder / DESCRIPTION} is not a Decathlon dataset.json: it must map numbers to "
            "names under 'modality' and 'labels'."
        )
    channels = list(described.channels)
    foreground = {name: value for name, value in described.labels.items() if value != 0}
    keys = channel_keys(channels)
    number = re.search(r"[1-9]\d{0,2}", name)
    return {
        "data_dir": data_dir,
        "nnunet_root_dir": f"{MOUNT_PATH}/nnUNet",
        "dataset_name_or_id": f"{int(number[0]) if number else 1:02d}",
        "dataset_format": "decathlon",
        "modality_dict": dict.fromkeys([*keys, LABEL_KEY], ENDING),
        "modality_list": channels,
        "experiment_name": re.sub(r"[^\w.-]", "_", name),
        "labels": {"background": 0, **foreground},
        "regions_class_order": list(described.regions_class_order) or None,
        "test_cases": [],
        "bundle_config": {
            "bundle_root": f"{MOUNT_PATH}/MONet_Bundle/{name}/MONetBundle",
            "mlflow_run_name": "nnUNet",
        },
    }


def channel_keys(channels: list[str]) -> list[str]:
    """Keys for ``modality_dict``: ``image`` for a single channel, else the channels' names."""
    if len(channels) == 1:
        return ["image"]
    return [re.sub(r"\W+", "_", channel) for channel in channels]


def _address(mirror: str, task: str) -> str:
    given = mirror.strip().rstrip("/")
    if not given:
        return f"{ADDRESS}/{task}.tar"
    return given if given.lower().endswith((".tar", ".tar.gz", ".tgz")) else f"{given}/{task}.tar"


def _archive(root: DataRoot, source: str, kind: str, digits: str) -> tuple[Path, Download | None]:
    """The archive, whose checksum is right; and its download, where it had to be fetched."""
    if not re.match(r"https?://", source, re.IGNORECASE):
        if "://" in source and not source.startswith("file://"):
            raise UserError(
                "mirror: only https://, http:// and file:// addresses, and paths inside the data "
                "root are known: name a folder that holds the archive."
            )
        path = root.resolve(source.removeprefix("file://"), field="mirror")
        if not path.is_file():
            raise UserError(f"mirror: {path} does not exist: put the archive there.")
        _check(path, kind, digits, "Copy it there again, or give the checksum of this archive.")
        return path, None
    check_address(source, field="mirror")
    part = root.path / ".medseg" / "downloads" / f"{digits}.tar"
    download = Download(source, part, space=2)
    progress(f"downloading {source}")
    download.run()
    if download.resumed and checksum_of(part, kind) != digits:
        progress("what came in several parts does not fit together: it is downloaded anew")
        download.discard()
        download.run()
    try:
        _check(
            part,
            kind,
            digits,
            f"What came from {source} is removed. Run the same command again; if that ends in the "
            "same way, name another mirror, or give the checksum of this one's archive.",
        )
    except UserError:
        download.discard()
        raise
    return part, download


def _check(path: Path, kind: str, digits: str, remedy: str) -> None:
    found = checksum_of(path, kind)
    if found != digits:
        raise UserError(
            f"the archive has the {kind} {found}, not {digits}: it is damaged, or another. {remedy}"
        )


def _unpack(archive: Path, folder: Path, task: str) -> None:
    """Adds to the dataset what it lacks; each file appears whole or not at all."""
    with scratch_folder(folder) as scratch:
        files = unpack_tar(archive, scratch)
        unpacked = scratch / task
        if not (unpacked / DESCRIPTION).is_file():
            raise UserError(
                f"the archive holds no {task}/{DESCRIPTION}: it is not that of {task}; check "
                "mirror."
            )
        if missing := _missing(unpacked):
            raise UserError(
                f"the archive lacks {len(missing)} files that its {DESCRIPTION} names, such as "
                f"{missing[0]}: it is incomplete; get it from another place."
            )
        inside = (path for path in map(PurePosixPath, files) if path.parts[0] == task)
        names = [path.relative_to(task) for path in inside if path.parts[1] in _PARTS]
        differing = [str(name) for name in names if _differs(unpacked / name, folder / name)]
        if differing:
            raise UserError(
                f"{folder} holds {len(differing)} files that differ from the archive's, such as "
                f"{differing[0]}: move them (or the folder) away, then run the same command again."
            )
        # the description comes last: with it the dataset counts as complete
        for name in sorted(names, key=lambda name: str(name) == DESCRIPTION):
            target = folder / name
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                (unpacked / name).replace(target)


def _differs(new: Path, old: Path) -> bool:
    return old.exists() and (not old.is_file() or old.stat().st_size != new.stat().st_size)


def _missing(folder: Path) -> list[str]:
    """The files that a dataset's description names and that are not there."""
    path = folder / DESCRIPTION
    if not path.is_file():
        return [DESCRIPTION]
    content = read_json(path, {})
    try:
        named = [name for case in content.get("training", ()) for name in case.values()]
        named += content.get("test", ())
    except AttributeError:
        raise UserError(
            f"{path} is not a Decathlon dataset.json: 'training' must list pairs of image and "
            "label. Remove it, then run the same command again."
        ) from None
    return [str(name) for name in named if not (folder / str(name)).is_file()]


def _write_source(folder: Path, task: str, source: str, checksum: str) -> None:
    date = datetime.now(UTC).date().isoformat()
    cited = "\n".join(f"- {each}" for each in CITATION)
    write_text(
        folder / "SOURCE.md",
        f"# {task}\n\nMedical Segmentation Decathlon (http://medicaldecathlon.com), fetched from "
        f"{source} on {date}; {checksum} of the archive.\n\nLicence: {LICENCE}. What is made of "
        f"the data and passed on keeps this licence and names its source.\n\nCite:\n\n{cited}\n",
    )


def _write_config(path: Path, root: DataRoot, folder: Path, task: str) -> None:
    content = decathlon_config(folder, task, str(MOUNT_PATH / root.relative(folder)))
    comment = (
        f"# {task} of the Medical Segmentation Decathlon: {LICENCE}.\n"
        "# Source and citation: SOURCE.md in data_dir. Cases named in test_cases are held back.\n"
    )
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    write_text(path, comment + text)
