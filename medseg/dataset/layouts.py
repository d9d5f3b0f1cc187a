"""Where the files of a dataset lie.

Two layouts are known: ``subfolders``, one folder a case with ``<case>/<case><suffix>`` for each
channel and the label; and the Medical Segmentation Decathlon's, ``imagesTr/<case>.nii.gz`` (of four
dimensions where there are several channels; or ``<case>_0000.nii.gz``, … as nnU-Net names them),
``labelsTr/<case>.nii.gz``, ``imagesTs`` and
``labelsTs`` with the test cases, and a ``dataset.json`` that describes them.
"""

from __future__ import annotations

import glob
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg.config import DEFAULT_SUFFIXES, LABEL_KEY, Label, TaskConfig
from medseg.imaging import ENDING, is_nifti, stem
from medseg.project import UserError, atomic_folder, fingerprint, read_json

_CHANNEL = re.compile(r"_\d{4}$")

DESCRIPTION = "dataset.json"
"""The file that describes a dataset: the Decathlon's, nnU-Net's, or the one of
:func:`~medseg.dataset.collect_dataset`."""


@dataclass(frozen=True)
class Case:
    """The files of one case; whether they are there is another matter.

    Attributes:
        name: The case identifier.
        images: One file a channel; or a single 4D file that holds all channels (Decathlon).
        label: The label map.
    """

    name: str
    images: tuple[Path, ...]
    label: Path

    @property
    def missing(self) -> str:
        """Which of its files is not there, in words; nothing where all are."""
        files = [("image", path) for path in self.images] + [("label", self.label)]
        for what, path in files:
            if not path.is_file():
                return f"has no {what}: {path.parent.name}/{path.name} is missing"
        return ""


@dataclass(frozen=True)
class Description:
    """What a ``dataset.json`` says of its dataset; fields that it does not have are empty.

    Attributes:
        name: The dataset's name.
        channels: Names of the channels, in their order.
        labels: Label names to values, or to lists of values (regions), in the order of the file.
        regions_class_order: nnU-Net's, where there are regions.
    """

    name: str = ""
    channels: tuple[str, ...] = ()
    labels: dict[str, Label] = field(default_factory=dict)
    regions_class_order: tuple[int, ...] = ()


def cases(config: TaskConfig) -> list[Case]:
    """The training cases that a config's ``data_dir`` holds, by name.

    Args:
        config: The task's config; its ``test_cases`` are left out.

    Returns:
        Every case of which there is something; those with :attr:`Case.missing` files too.

    Raises:
        UserError: ``data_dir`` is no folder or holds no cases of the config's format, or
            ``test_cases`` names a case that is not there.
    """
    folder = config.data_folder
    if not folder.is_dir():
        raise UserError(f"data_dir {folder} is not a folder: check data_dir in {config.path.name}.")
    if config.dataset_format == "decathlon":
        for name in ("imagesTr", "labelsTr"):
            if not (folder / name).is_dir():
                raise UserError(
                    f"data_dir {folder} has no folder {name}: check data_dir, or set "
                    "dataset_format to subfolders."
                )
        present = [case.name for case in decathlon_cases(folder, "Tr")]
    else:
        present = [path.name for path in _case_folders(folder)]
    unknown = set(config.test_cases) - set(present)
    if unknown:
        raise UserError(
            f"test_cases names {', '.join(sorted(unknown))}, which {folder} does not hold: "
            "correct test_cases."
        )
    training = [files_of(config, name) for name in present if name not in config.test_cases]
    if not training:
        raise UserError(
            f"data_dir {folder} holds no cases of the format {config.dataset_format!r}: check "
            "data_dir and dataset_format."
        )
    return training


def files_of(config: TaskConfig, case: str) -> Case:
    """Where a case lies, or would lie, in a config's ``data_dir``.

    Args:
        config: The task's config.
        case: The case identifier.
    """
    if config.dataset_format == "decathlon":
        return _decathlon_case(config.data_folder, "Tr", case)
    return _subfolder_case(config.data_folder / case, config.modality_dict)


def cases_in(folder: Path, suffixes: Mapping[str, str] = DEFAULT_SUFFIXES) -> list[Case]:
    """The cases of any dataset, whose layout shows in its folders.

    Args:
        folder: The dataset's folder.
        suffixes: File suffixes of channels and label, as in ``modality_dict``, for the layout
            ``subfolders``.

    Returns:
        The cases with an image, by name; in the Decathlon layout training cases come first, then
        test cases.
    """
    if is_decathlon(folder):
        found = [*decathlon_cases(folder, "Tr"), *decathlon_cases(folder, "Ts")]
    else:
        found = [_subfolder_case(path, suffixes) for path in _case_folders(folder)]
    return [case for case in found if any(path.is_file() for path in case.images)]


def check_decathlon(folder: Path) -> None:
    """Checks that a folder is of the Decathlon format, which describes itself.

    Args:
        folder: The folder.

    Raises:
        UserError: It holds no ``dataset.json``.
    """
    if not (folder / DESCRIPTION).is_file():
        raise UserError(
            f"{folder} holds no dataset.json: give a folder in the Decathlon format "
            "(dataset.json, imagesTr, labelsTr)."
        )


def is_decathlon(folder: Path) -> bool:
    """Whether a folder has the Decathlon's layout."""
    return (folder / "imagesTr").is_dir() or (folder / "imagesTs").is_dir()


def decathlon_cases(folder: Path, part: str) -> list[Case]:
    """The cases of one part of a dataset in the Decathlon layout, by name.

    Args:
        folder: The dataset's folder.
        part: ``Tr`` (training) or ``Ts`` (test).

    Returns:
        Every case with an image or a label.
    """
    images, labels = (
        {stem(path) for path in (folder / f"{kind}{part}").glob("*") if is_nifti(path)}
        for kind in ("images", "labels")
    )
    names = labels | {
        name[:-5] if _CHANNEL.search(name) and name not in labels and name[:-5] in labels else name
        for name in images
    }
    return [_decathlon_case(folder, part, name) for name in sorted(names)]


def channel_names(config: TaskConfig) -> list[str]:
    """nnU-Net's channel names of a config's dataset, in their order.

    From ``modality_list``, else from the Decathlon's ``dataset.json``, else the keys of
    ``modality_dict``.

    Args:
        config: The task's config.

    Raises:
        UserError: As :func:`read_description`.
    """
    if config.modality_list:
        return list(config.modality_list)
    decathlon = config.dataset_format == "decathlon"
    described = read_description(config.data_folder).channels if decathlon else ()
    return list(described or config.channels)


def read_description(folder: Path) -> Description:
    """Reads what a dataset's ``dataset.json`` says, whoever wrote it.

    Channels are the Decathlon's ``modality`` or nnU-Net's ``channel_names`` (numbers to names);
    ``labels`` map values to names as the Decathlon's do, or names to values as nnU-Net's.

    Args:
        folder: The dataset's folder.

    Returns:
        The description; an empty one where there is no such file.

    Raises:
        UserError: The file is no JSON object, or one of these fields is not as described.
    """
    path = folder / DESCRIPTION
    content = read_json(path, {})
    try:
        named = content.get("modality") or content.get("channel_names") or {}
        channels = tuple(str(named[key]) for key in sorted(named, key=int))
        order = tuple(int(value) for value in content.get("regions_class_order") or ())
        return Description(str(content.get("name") or ""), channels, _labels(content), order)
    except (AttributeError, TypeError, ValueError):
        raise UserError(
            f"{path} is not a Decathlon dataset.json: 'modality' must map 0, 1, … to names, and "
            "'labels' values to names: correct it."
        ) from None


def _labels(content: dict[str, Any]) -> dict[str, Label]:
    described = content.get("labels") or {}
    if all(str(key).isdecimal() for key in described):  # the Decathlon's: "1": "Spleen"
        return {str(name): int(value) for value, name in described.items()}
    return {
        str(name): [int(value) for value in values] if isinstance(values, list) else int(values)
        for name, values in described.items()
    }


def case_hash(config: TaskConfig, case: Case, channels: list[str]) -> str:
    """One hash over a case's files and all that decides how they are taken: labels and channels.

    Args:
        config: The task's config.
        case: A case with all its files.
        channels: The :func:`channel_names` of the config.
    """
    settings = {"labels": config.labels, "channels": channels}
    return fingerprint(settings, [*case.images, case.label])


def case_hashes(config: TaskConfig) -> dict[str, str]:
    """The :func:`case_hash` of every training case.

    Args:
        config: The task's config; its ``test_cases`` are left out, as are cases without an image
            or a label.

    Raises:
        UserError: As :func:`cases`.
    """
    training, channels = cases(config), channel_names(config)
    return {case.name: case_hash(config, case, channels) for case in training if not case.missing}


def copy_decathlon(source: Path, target: Path) -> None:
    """Copies a dataset of the Decathlon format, but for what cannot be measured.

    Left out are the files that macOS leaves in archives, and the test images that have no label,
    as in the Decathlon itself.

    Args:
        source: The dataset's folder.
        target: The folder of the copy; what it held before is replaced.

    Raises:
        UserError: As :func:`check_decathlon`.
    """
    check_decathlon(source)
    with atomic_folder(target) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("._*"))
        for case in decathlon_cases(folder, "Ts"):
            if not case.label.is_file():
                case.images[0].unlink()


def _case_folders(folder: Path) -> list[Path]:
    return [
        path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")
    ]


def _subfolder_case(folder: Path, suffixes: Mapping[str, str]) -> Case:
    files = {key: _present(folder / f"{folder.name}{suffix}") for key, suffix in suffixes.items()}
    label = files.pop(LABEL_KEY)
    return Case(folder.name, tuple(files.values()), label)


def _decathlon_case(folder: Path, part: str, name: str) -> Case:
    image, label = (_file(folder / f"{kind}{part}", name) for kind in ("images", "labels"))
    channels = [
        path
        for path in sorted(image.parent.glob(f"{glob.escape(name)}_*"))
        if is_nifti(path) and stem(path)[:-5] == name and _CHANNEL.search(stem(path))
    ]
    if channels and label.is_file() and not image.is_file():  # nnU-Net's names
        return Case(name, tuple(channels), label)
    return Case(name, (image,), label)


def _file(folder: Path, name: str) -> Path:
    """The file of this name with the ending that it has, or the one that we would give it."""
    return _present(folder / f"{name}{ENDING}")


def _present(path: Path) -> Path:
    """The file, else the one beside it that differs in its NIfTI ending alone (``.NII.GZ``)."""
    if path.is_file() or not is_nifti(path) or not path.parent.is_dir():
        return path
    others = sorted(path.parent.glob(f"{glob.escape(stem(path))}.*"))
    return next((each for each in others if is_nifti(each) and stem(each) == stem(path)), path)
