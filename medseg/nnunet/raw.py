"""The NIfTI dataset, checked case by case, as nnU-Net's raw dataset."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the library's own short name

from medseg.config import TaskConfig
from medseg.dataset import Case, case_hash, cases, channel_names
from medseg.imaging import (
    ENDING,
    LPS_TO_RAS,
    Volume,
    check_rectangular,
    check_same_grid,
    read_label_map,
    read_nifti,
    same_grid,
    write_nifti,
)
from medseg.nnunet.devices import processes
from medseg.nnunet.workers import for_each_case
from medseg.project import (
    Failures,
    Manifest,
    UserError,
    fingerprint,
    link_or_copy,
    progress,
    remove_others,
    write_json,
)

MINIMUM_CASES = 5
"""nnU-Net's five-fold split needs one case a fold."""

HASHES = "hashes.json"
"""Beside the records of the raw dataset: what every case was, the refused ones too."""

VALUES = "values"
"""What a case's record calls the values that its label map holds."""


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
            dataset number is taken, fewer than five cases are left, or none of them has a voxel
            of any label.
        CasesFailedError: More cases than ``max_failed_cases`` have no label (or no image), labels
            that the config does not declare, an image and label of different size, spacing,
            origin or direction, or intensities that are not finite.
    """
    failures = Failures()
    training, channels = cases(config), channel_names(config)
    _check_number_is_free(config)
    for folder in ("imagesTr", "labelsTr"):
        (config.raw_folder / folder).mkdir(parents=True, exist_ok=True)

    hashes: dict[str, str] = {}
    to_do: dict[str, tuple[Any, ...]] = {}
    values = list(config.label_set.values)
    for case in training:
        with failures.case(case.name):
            if case.missing:
                raise UserError(case.missing)
            inputs = hashes[case.name] = case_hash(config, case, channels)
            if not Manifest(config.raw_folder, f"case-{case.name}").is_done(inputs):
                to_do[case.name] = (case, config.raw_folder, channels, values, inputs)
    done = Manifest(config.raw_folder, "prepare_dataset")
    if to_do:  # what follows is half a dataset until the record is written again
        done.forget()
        count = len(hashes) - len(to_do)
        for name, _ in for_each_case(prepare_case, to_do, failures, processes(config)):
            count += 1
            progress(f"{name} checked", count, len(training))
    failures.check(len(training), config.max_failed_cases)
    accepted = sorted(name for name in hashes if name not in failures.reasons)
    if len(accepted) < MINIMUM_CASES:
        raise UserError(
            f"data_dir {config.data_folder}: {len(accepted)} training cases are too few, nnU-Net's "
            f"five-fold split needs at least {MINIMUM_CASES}: add cases"
            + (", or shorten test_cases." if config.test_cases else ".")
        )
    _check_foreground(config, accepted)
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


def prepared_hashes(config: TaskConfig) -> dict[str, str]:
    """:func:`~medseg.dataset.case_hashes` as :func:`prepare_dataset` found them.

    Those of refused cases are included.
    """
    try:
        text = (config.raw_folder / ".medseg" / HASHES).read_text(encoding="utf-8")
        return dict(json.loads(text))
    except (OSError, ValueError):
        return {}


# --- one case ---


def _check_number_is_free(config: TaskConfig) -> None:
    prefix = config.dataset_name.split("_", 1)[0] + "_"
    for folder in (config.raw_folder, config.preprocessed_folder, config.results_folder.parent):
        for other in folder.parent.glob(f"{prefix}*"):
            if other.name != config.dataset_name:
                raise UserError(
                    f"dataset_name_or_id: number {config.dataset_id} is taken by {other}: choose "
                    "another number, or remove that dataset."
                )


def prepare_case(
    case: Case, raw: Path, channels: list[str], values: list[int], inputs: str
) -> None:
    """Checks one case and puts it into nnU-Net's raw dataset, with its record.

    Args:
        case: The case.
        raw: The raw dataset's folder.
        channels: Names of the channels.
        values: Label values that may occur.
        inputs: Fingerprint of what the result depends on, for the record.

    Raises:
        UserError: A file is damaged, or image and label do not fit each other or the config.
    """
    images = [read_nifti(path) for path in case.images]
    label = read_label_map(case.label)
    volumes = [channel for image in images for channel in image.channels]
    if len(volumes) != len(channels):
        raise UserError(
            f"{images[0].name} holds {len(volumes)} channels, not {len(channels)} "
            f"({', '.join(channels)}): correct modality_list and modality_dict."
        )
    for volume in volumes:
        check_rectangular(volume)
        check_same_grid(volume, label)
    present = _check_values(label, values)

    targets = [
        raw / "imagesTr" / f"{case.name}_{index:04d}{ENDING}" for index in range(len(volumes))
    ]
    target = raw / "labelsTr" / f"{case.name}{ENDING}"
    if len(images) == len(volumes):
        for source, volume, path in zip(case.images, volumes, targets, strict=True):
            _place_nifti(source, volume, path)
    else:
        for volume, path in zip(volumes, targets, strict=True):
            write_nifti(volume.array, volume.affine, path)
    # a label edited in place must not change here
    _place_nifti(case.label, label, target, link=False)
    Manifest(raw, f"case-{case.name}").record(inputs, [*targets, target], {VALUES: present})


def _place_nifti(source: Path, volume: Volume, target: Path, *, link: bool = True) -> None:
    """Puts a file that was read as ``volume`` into the raw dataset: itself, or written anew."""
    if source.name.endswith(ENDING) and _reads_alike(source, volume):
        link_or_copy(source, target, link=link)
    else:
        write_nifti(volume.array, volume.affine, target)


def _reads_alike(path: Path, volume: Volume) -> bool:
    """Whether ITK, with which nnU-Net reads, finds in a file what our reader does, without a word.

    The two differ over headers that contradict themselves, and over labels that are nearly whole
    numbers; segmenting reads with ours, and training must not see anything else.
    """
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's words are for its developers
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return False
    if reader.GetDimension() != 3 or reader.GetSize() != volume.shape:
        return False
    if volume.array.dtype.kind in "iu" and reader.GetPixelID() in (
        sitk.sitkFloat32,
        sitk.sitkFloat64,
    ):
        return False
    if reader.GetMetaData("sform_code") != "0":  # ITK says on every reading that these differ
        rows = [reader.GetMetaData(f"srow_{axis}").split()[:3] for axis in "xyz"]
        pixdim = [float(reader.GetMetaData(f"pixdim[{axis}]")) for axis in (1, 2, 3)]
        if np.abs(np.linalg.norm(np.array(rows, float), axis=0) - pixdim).max() > 5e-4:
            return False
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * reader.GetSpacing()
    affine[:3, 3] = reader.GetOrigin()
    return same_grid(volume, Volume(volume.array, LPS_TO_RAS @ affine, volume.name))


def _check_values(label: Volume, declared: list[int]) -> list[int]:
    """The values that a label map holds, all of them declared."""
    present: list[int] = np.unique(label.array).tolist()
    unknown = [value for value in present if value not in declared]
    if unknown:
        raise UserError(
            f"label {label.name} holds the value{'s' if len(unknown) > 1 else ''} "
            f"{_numbers(unknown)}, which the config does not declare (labels: "
            f"{_numbers(declared)}): add it to labels, or correct the file."
        )
    return present


def _check_foreground(config: TaskConfig, cases: Iterable[str]) -> None:
    """Refuses a dataset of which nothing can be learnt, which nnU-Net does not foresee."""
    structures = set(config.label_set.values) - {0, config.label_set.ignore}
    for case in cases:
        record = Manifest(config.raw_folder, f"case-{case}").result() or {}
        if VALUES not in record or structures.intersection(record[VALUES]):
            return
    raise UserError(
        f"data_dir {config.data_folder}: no case has a voxel of any label "
        f"({_numbers(sorted(structures))}): check the label files, and labels in "
        f"{config.path.name}."
    )


def _numbers(values: Iterable[float]) -> str:
    shown = [f"{value:.6g}" for value in values]
    return ", ".join(shown[:9]) + (", …" if len(shown) > 9 else "")


# --- the whole dataset ---


def _finish(
    config: TaskConfig,
    done: Manifest,
    accepted: list[str],
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
        "numTraining": len(accepted),
        "file_ending": ENDING,
    }
    dataset_hash = fingerprint(
        {"cases": {case: hashes[case] for case in accepted}, "dataset": description}
    )
    result = {
        "cases": accepted,
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
    images = [f"{case}_{index:04d}{ENDING}" for case in accepted for index in range(len(channels))]
    labels = [f"{case}{ENDING}" for case in accepted]
    remove_others(raw / "imagesTr", images)
    remove_others(raw / "labelsTr", labels)
    remove_others(raw / ".medseg", [HASHES, *(f"case-{case}.json" for case in accepted)])
    write_json(raw / "dataset.json", description)
    files = [
        raw / "dataset.json",
        *(raw / "imagesTr" / name for name in images),
        *(raw / "labelsTr" / name for name in labels),
    ]
    done.record(dataset_hash, files, result)
    return result
