"""The NIfTI dataset, checked case by case, as nnU-Net's raw dataset."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.config import TaskConfig
from medseg.nnunet.devices import processes
from medseg.nnunet.workers import for_each_case
from medseg.project import (
    Failures,
    Manifest,
    UserError,
    atomic_file,
    check_written,
    fingerprint,
    link_or_copy,
    progress,
    remove_others,
    write_json,
)

if TYPE_CHECKING:
    import SimpleITK as sitk  # noqa: N813 - the library's own short name

MINIMUM_CASES = 5
"""nnU-Net's five-fold split needs one case a fold."""

ENDING = ".nii.gz"

HASHES = "hashes.json"
"""Beside the records of the raw dataset: what every case was, the refused ones too."""

SPACING_TOLERANCE = 1e-3  # mm
ORIGIN_TOLERANCE = 1e-2  # mm
DIRECTION_TOLERANCE = 1e-3  # of a direction cosine


@dataclass(frozen=True)
class Case:
    """One training case as it lies in ``data_dir``.

    Attributes:
        images: One file a channel; or a single 4D file that holds all channels (Decathlon).
        label: The label map.
    """

    images: list[Path]
    label: Path


def prepare_dataset(config: TaskConfig) -> dict[str, Any]:
    """Checks every case of ``data_dir`` and writes nnU-Net's raw dataset.

    The raw dataset is ``imagesTr/<case>_<channel>.nii.gz``, ``labelsTr/<case>.nii.gz`` and
    ``dataset.json``. Files are hard links where the volume allows it, else copies; 4D images are
    split into channels. Cases named in ``test_cases`` are left out. A case that was checked before
    and has not changed is not read again; a case that has vanished or that fails is removed from
    the raw dataset once the stage succeeds.

    Channel names come from ``modality_list``, else from the Decathlon ``dataset.json``, else from
    the keys of ``modality_dict``. nnU-Net normalises the channel ``CT`` by the intensities of the
    whole dataset, any other image by image.

    Args:
        config: The task's config.

    Returns:
        ``cases`` (identifiers), ``failed`` (identifier to reason), ``channels`` (names),
        ``labels``, ``dataset_hash`` (over the content of all cases and ``dataset.json``),
        ``raw_folder`` (relative to the data root).

    Raises:
        UserError: ``data_dir`` is missing or empty, ``test_cases`` names an unknown case, the
            dataset number is taken, or fewer than five cases are left.
        CasesFailedError: More cases than ``max_failed_cases`` have no label (or no image), labels
            that the config does not declare, an image and label of different size, spacing,
            origin or direction, or intensities that are not finite.
    """
    failures = Failures("prepare_dataset")
    cases, channels = _find_cases(config, failures)
    total = len(cases) + len(failures.reasons)
    _check_number_is_free(config)
    for folder in ("imagesTr", "labelsTr"):
        (config.raw_folder / folder).mkdir(parents=True, exist_ok=True)

    hashes: dict[str, str] = {}
    to_do: dict[str, tuple[Any, ...]] = {}
    for case, files in cases.items():
        with failures.case(case):
            hashes[case] = _case_hash(config, files, channels)
            if not Manifest(config.raw_folder, f"case-{case}").is_done(hashes[case]):
                to_do[case] = (
                    case,
                    files,
                    config.raw_folder,
                    channels,
                    list(config.label_set.values),
                    hashes[case],
                )
    done = Manifest(config.raw_folder, "prepare_dataset")
    if to_do:  # what follows is half a dataset until the record is written again
        done.forget()
        kept = len(hashes) - len(to_do)
        count = kept
        for case, _ in for_each_case(_prepare_case, to_do, failures, processes(config)):
            count += 1
            progress(f"{case} checked", count, total)
    failures.check(total, config.max_failed_cases)
    accepted = sorted(case for case in hashes if case not in failures.reasons)
    if len(accepted) < MINIMUM_CASES:
        raise UserError(
            f"data_dir {config.data_folder}: {len(accepted)} training cases are too few, nnU-Net's "
            f"five-fold split needs at least {MINIMUM_CASES}: add cases"
            + (", or shorten test_cases." if config.test_cases else ".")
        )
    return _finish(config, done, accepted, hashes, channels, failures.reasons)


def prepared(config: TaskConfig) -> dict[str, Any]:
    """The result of :func:`prepare_dataset` for this config.

    Raises:
        UserError: The raw dataset is missing or unfinished.
    """
    result = Manifest(config.raw_folder, "prepare_dataset").result()
    if result is None or result["labels"] != config.labels:
        raise UserError(
            f"the raw dataset {config.raw_folder} is missing, unfinished or made for other labels: "
            "run prepare_dataset first."
        )
    return result


def dataset_record(config: TaskConfig) -> dict[str, Any]:
    """The result of :func:`prepare_dataset`, whatever became of its files; empty before it."""
    return dict(Manifest(config.raw_folder, "prepare_dataset").read().get("result", {}))


def case_hashes(config: TaskConfig) -> dict[str, str]:
    """One hash a training case, over its files as they lie in ``data_dir``, labels and channels.

    Args:
        config: The task's config; its ``test_cases`` are left out, as are cases without an image
            or a label.

    Raises:
        UserError: As :func:`prepare_dataset`, where ``data_dir`` cannot be read at all.
    """
    cases, channels = _find_cases(config, Failures("prepare_dataset"))
    return {case: _case_hash(config, files, channels) for case, files in cases.items()}


def prepared_hashes(config: TaskConfig) -> dict[str, str]:
    """The same hashes as :func:`prepare_dataset` found them, those of refused cases included."""
    try:
        text = (config.raw_folder / ".medseg" / HASHES).read_text(encoding="utf-8")
        return dict(json.loads(text))
    except (OSError, ValueError):
        return {}


def _case_hash(config: TaskConfig, files: Case, channels: list[str]) -> str:
    settings = {"labels": config.labels, "channels": channels}
    return fingerprint(settings, [*files.images, files.label])


# --- finding cases ---


def _find_cases(config: TaskConfig, failures: Failures) -> tuple[dict[str, Case], list[str]]:
    folder = config.data_folder
    if not folder.is_dir():
        raise UserError(f"data_dir {folder} is not a folder: check data_dir in {config.path.name}.")
    if config.dataset_format == "decathlon":
        cases, channels = _find_decathlon(config, folder, failures)
    else:
        cases, channels = _find_subfolders(config, folder, failures)
    unknown = set(config.test_cases) - cases.keys() - failures.reasons.keys()
    if unknown:
        raise UserError(
            f"test_cases names {', '.join(sorted(unknown))}, which {folder} does not hold: "
            "correct test_cases."
        )
    for case in config.test_cases:
        cases.pop(case, None)
        failures.reasons.pop(case, None)
    if not cases and not failures.reasons:
        raise UserError(
            f"data_dir {folder} holds no cases of the format {config.dataset_format!r}: check "
            "data_dir and dataset_format."
        )
    return cases, channels


def _find_subfolders(
    config: TaskConfig, folder: Path, failures: Failures
) -> tuple[dict[str, Case], list[str]]:
    cases: dict[str, Case] = {}
    for path in sorted(folder.iterdir()):
        if not path.is_dir() or path.name.startswith("."):
            continue
        images = [path / f"{path.name}{suffix}" for suffix in config.channels.values()]
        label = path / f"{path.name}{config.label_suffix}"
        with failures.case(path.name):
            for key, image in zip(config.channels, images, strict=True):
                if not image.is_file():
                    raise UserError(f"has no image {image.name} (modality_dict: {key})")
            if not label.is_file():
                raise UserError(f"has no label: {label.name} is missing")
            cases[path.name] = Case(images, label)
    return cases, list(config.modality_list or config.channels)


def _find_decathlon(
    config: TaskConfig, folder: Path, failures: Failures
) -> tuple[dict[str, Case], list[str]]:
    for name in ("imagesTr", "labelsTr"):
        if not (folder / name).is_dir():
            raise UserError(
                f"data_dir {folder} has no folder {name}: check data_dir, or set dataset_format to "
                "subfolders."
            )
    images, labels = (
        {
            path.name.removesuffix(ENDING): path
            for path in sorted((folder / name).glob(f"*{ENDING}"))
            if not path.name.startswith(".")
        }
        for name in ("imagesTr", "labelsTr")
    )
    cases: dict[str, Case] = {}
    for case in sorted(images.keys() | labels.keys()):
        with failures.case(case):
            if case not in labels:
                raise UserError(f"has no label: labelsTr/{case}{ENDING} is missing")
            if case not in images:
                raise UserError(f"has no image: imagesTr/{case}{ENDING} is missing")
            cases[case] = Case([images[case]], labels[case])
    return cases, list(config.modality_list or _decathlon_modalities(folder) or config.channels)


def _decathlon_modalities(folder: Path) -> list[str]:
    path = folder / "dataset.json"
    if not path.is_file():
        return []
    try:
        modality = json.loads(path.read_text(encoding="utf-8")).get("modality", {})
        return [str(modality[key]) for key in sorted(modality, key=int)]
    except (ValueError, AttributeError, TypeError):
        raise UserError(
            f"{path} is not a Decathlon dataset.json: its 'modality' must map 0, 1, … to names."
        ) from None


def _check_number_is_free(config: TaskConfig) -> None:
    prefix = config.dataset_name.split("_", 1)[0] + "_"
    for folder in (config.raw_folder, config.preprocessed_folder, config.results_folder.parent):
        for other in folder.parent.glob(f"{prefix}*"):
            if other.name != config.dataset_name:
                raise UserError(
                    f"dataset_name_or_id: number {config.dataset_id} is taken by {other}: choose "
                    "another number, or remove that dataset."
                )


# --- one case ---


def _prepare_case(
    case: str, files: Case, raw: Path, channels: list[str], values: list[int], inputs: str
) -> None:
    import SimpleITK as sitk  # noqa: N813

    images = [_read(path) for path in files.images]
    label = _read(files.label)
    if images[0].GetDimension() == 4 and len(images) == 1:
        volumes = [images[0][..., index] for index in range(images[0].GetSize()[3])]
    else:
        volumes = images
    if len(volumes) != len(channels):
        raise UserError(
            f"{files.images[0].name} holds {len(volumes)} channels, not {len(channels)} "
            f"({', '.join(channels)}): correct modality_list and modality_dict"
        )
    for index, image in enumerate(volumes):
        name = files.images[min(index, len(files.images) - 1)].name
        _check_geometry(image, name, label, files.label.name)
    for path in files.images:
        _check_finite(path)
    _check_values(label, files.label.name, values)

    targets = [raw / "imagesTr" / f"{case}_{index:04d}{ENDING}" for index in range(len(volumes))]
    target = raw / "labelsTr" / f"{case}{ENDING}"
    if volumes is images:
        for source, path in zip(files.images, targets, strict=True):
            _place_nifti(source, path)
    else:
        for image, path in zip(volumes, targets, strict=True):
            with atomic_file(path) as temporary:
                sitk.WriteImage(image, str(temporary), useCompression=True)
                check_written(temporary)
    _place_nifti(files.label, target, link=False)  # a label edited in place must not change here
    Manifest(raw, f"case-{case}").record(inputs, [*targets, target])


def _place_nifti(source: Path, target: Path, *, link: bool = True) -> None:
    if source.name.endswith(ENDING):
        link_or_copy(source, target, link=link)
        return
    import SimpleITK as sitk  # noqa: N813

    with atomic_file(target) as temporary:
        sitk.WriteImage(_read(source), str(temporary), useCompression=True)
        check_written(temporary)


def _read(path: Path) -> sitk.Image:
    import SimpleITK as sitk  # noqa: N813

    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"{path.name} cannot be read ({reason}): replace the file") from None
    if image.GetDimension() not in (3, 4) or image.GetNumberOfComponentsPerPixel() != 1:
        raise UserError(f"{path.name} is not a volume of scalars: give a 3D image")
    return image


def _check_geometry(image: sitk.Image, name: str, label: sitk.Image, label_name: str) -> None:
    for what, unit, tolerance, first, second in (
        ("size", " voxels", 0.0, image.GetSize(), label.GetSize()),
        ("spacing", " mm", SPACING_TOLERANCE, image.GetSpacing(), label.GetSpacing()),
        ("origin", " mm (LPS)", ORIGIN_TOLERANCE, image.GetOrigin(), label.GetOrigin()),
        ("direction", "", DIRECTION_TOLERANCE, image.GetDirection(), label.GetDirection()),
    ):
        if len(first) != len(second) or any(
            abs(a - b) > tolerance for a, b in zip(first, second, strict=True)
        ):
            raise UserError(
                f"image {name} and label {label_name} differ in {what}: {_numbers(first)} and "
                f"{_numbers(second)}{unit}; resample the label to the image's grid"
            )


def _check_finite(path: Path) -> None:
    # ITK's NIfTI reader makes zeros of what is not finite and does not say so, hence nibabel; it
    # need not look at integers.
    import nibabel
    import numpy as np

    if not path.name.endswith((".nii", ENDING)):
        return
    data = nibabel.load(path).dataobj
    if data.dtype.kind != "f":
        return
    values = data.get_unscaled()
    count = values.size - int(np.count_nonzero(np.isfinite(values)))
    if count:
        raise UserError(
            f"image {path.name} has {count} voxels that are not finite (NaN or infinite): replace "
            "them"
        )


def _check_values(label: sitk.Image, name: str, declared: list[int]) -> None:
    import numpy as np
    import SimpleITK as sitk  # noqa: N813

    found = np.unique(sitk.GetArrayViewFromImage(label))
    unknown = [value for value in found.tolist() if value not in declared]
    if unknown:
        raise UserError(
            f"label {name} holds the value{'s' if len(unknown) > 1 else ''} {_numbers(unknown)}, "
            f"which the config does not declare (labels: {_numbers(declared)}): add it to labels, "
            "or correct the file"
        )


def _numbers(values: Iterable[float]) -> str:
    shown = [f"{value:.6g}" for value in values]
    return ", ".join(shown[:9]) + (", …" if len(shown) > 9 else "")


# --- the whole dataset ---


def _finish(
    config: TaskConfig,
    done: Manifest,
    cases: list[str],
    hashes: dict[str, str],
    channels: list[str],
    failed: dict[str, str],
) -> dict[str, Any]:
    raw = config.raw_folder
    order = config.regions_class_order if config.label_set.has_regions else None
    description = {
        "name": config.experiment_name,
        "channel_names": {str(index): name for index, name in enumerate(channels)},
        "labels": config.labels,
        **({"regions_class_order": order} if order else {}),
        "numTraining": len(cases),
        "file_ending": ENDING,
    }
    dataset_hash = fingerprint(
        {"cases": {case: hashes[case] for case in cases}, "dataset": description}
    )
    result = {
        "cases": cases,
        "failed": failed,
        "channels": channels,
        "labels": config.labels,
        "dataset_hash": dataset_hash,
        "raw_folder": config.root.relative(raw),
    }
    if prepared_hashes(config) != hashes:
        write_json(raw / ".medseg" / HASHES, hashes)
    if done.result(dataset_hash) == result:
        return result
    images = [f"{case}_{index:04d}{ENDING}" for case in cases for index in range(len(channels))]
    labels = [f"{case}{ENDING}" for case in cases]
    remove_others(raw / "imagesTr", images)
    remove_others(raw / "labelsTr", labels)
    remove_others(raw / ".medseg", [HASHES, *(f"case-{case}.json" for case in cases)])
    write_json(raw / "dataset.json", description)
    files = [
        raw / "dataset.json",
        *(raw / "imagesTr" / name for name in images),
        *(raw / "labelsTr" / name for name in labels),
    ]
    done.record(dataset_hash, files, result)
    return result
