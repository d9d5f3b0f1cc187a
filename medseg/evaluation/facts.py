"""What the report says about dataset, training and provenance, read from what the stages left.

Every function returns what it found, or the reason why there is nothing, in words for the report.
"""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from medseg.bundle import model_file
from medseg.config import TaskConfig
from medseg.dataset import read_quality
from medseg.imaging import ENDING, read_label_map, stem
from medseg.nnunet import History, TrainedFold
from medseg.project import UserError, file_hash

PACKAGES = (
    "kfp-medseg", "nnunetv2", "torch", "monai", "numpy", "scipy", "SimpleITK", "nibabel",
    "pydicom", "highdicom", "dicomweb-client", "mlflow", "kfp",
)  # fmt: skip


@dataclass(frozen=True)
class CaseFacts:
    """One case of the dataset.

    Attributes:
        case: Identifier.
        part: ``training``, ``validation`` or ``test``.
        size: Voxels along i, j, k.
        spacing: Millimetres along i, j, k.
        intensity: Smallest and largest value, where it was measured.
        volumes_ml: Structure to volume in ml.
        warnings: What the conversion from DICOM remarked.
    """

    case: str
    part: str
    size: tuple[int, ...]
    spacing: tuple[float, ...]
    intensity: tuple[float, float] | None = None
    volumes_ml: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def dataset_facts(config: TaskConfig) -> tuple[list[CaseFacts], str]:
    """All cases of the dataset, in the order of their names.

    From the quality table that the conversion from DICOM wrote; for a dataset that was not
    converted, from nnU-Net's label maps.

    Args:
        config: The task's config; its fold decides what is training and what validation.

    Returns:
        The cases, and where they come from or why there are none.
    """
    parts = _parts(config)
    try:
        rows = read_quality(config.data_folder)
    except UserError as error:
        return [], str(error)
    if rows:
        cases = [
            CaseFacts(
                row.case,
                parts.get(row.case, "not used"),
                row.size,
                row.spacing,
                row.intensity,
                row.volumes_ml,
                row.warnings,
            )
            for row in rows
        ]
        return cases, "Measured at the conversion from DICOM."
    labels = sorted((config.raw_folder / "labelsTr").glob(f"*{ENDING}"))
    cases = [_from_label(path, parts, config) for path in labels]
    if cases:
        return cases, (
            "Measured on the label maps; the dataset was not converted from DICOM by medseg, so "
            "there is no quality table (intensity range, warnings)."
        )
    return [], (
        f"There is neither a quality table in {config.root.relative(config.data_folder)} nor "
        "nnU-Net's raw dataset."
    )


def training_facts(config: TaskConfig) -> tuple[History | None, str]:
    """The curves that nnU-Net keeps in its checkpoints.

    Args:
        config: The task's config.

    Returns:
        What the training has logged, and its file or why there is none.
    """
    fold = TrainedFold(config)
    try:
        history = fold.history
    except UserError as error:
        return None, str(error)
    if not any(map(math.isfinite, history.ended)):
        return None, f"{fold.newest.name} comes from another program, which keeps them elsewhere."
    return history, fold.newest.name


def file_hashes(config: TaskConfig) -> list[tuple[str, str, str]]:
    """SHA-256 of everything that decided the result.

    Args:
        config: The task's config.

    Returns:
        What it is, its path on the data root, and the digest or why there is none.
    """
    fold = TrainedFold(config)
    files = {
        "Config": config.path,
        "Split": fold.splits_file,
        "Plans": fold.plans_file,
        "Checkpoint": fold.final,
        "Packaged model": model_file(config),
    }
    dataset = fold.dataset_hash or "no record: prepare_dataset has not run"
    rows = [("Dataset", config.root.relative(config.raw_folder), dataset)]
    for name, path in files.items():
        try:
            digest = file_hash(path)
        except FileNotFoundError:
            digest = "not there"
        rows.append((name, config.root.relative(path), digest))
    return rows


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that had a part in the result."""
    numbers = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            numbers[name] = version(name)
        except PackageNotFoundError:
            numbers[name] = "not installed"
    return numbers


def plans_facts(config: TaskConfig) -> dict[str, str]:
    """What nnU-Net planned for the configuration, in words; empty where there are no plans."""
    plan = TrainedFold(config).plan
    if plan is None:
        return {}
    rows = {
        "Patch size (voxels)": list(plan.patch_size),
        "Target spacing (mm)": [round(step, 3) for step in plan.spacing],
        "Batch size": plan.batch_size,
        "Intensity normalisation": list(plan.normalization),
    }
    return {
        name: " × ".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in rows.items()
        if value
    }


def _parts(config: TaskConfig) -> dict[str, str]:
    parts = dict.fromkeys(config.test_cases, "test")
    split = TrainedFold(config).split
    if split is not None:
        parts.update(dict.fromkeys(split.train, "training"))
        parts.update(dict.fromkeys(split.val, "validation"))
    else:  # nnU-Net's "all", or not split yet
        parts.update(
            dict.fromkeys(
                (stem(path) for path in (config.raw_folder / "labelsTr").glob(f"*{ENDING}")),
                "training",
            )
        )
    return parts


def _from_label(path: Path, parts: dict[str, str], config: TaskConfig) -> CaseFacts:
    volume = read_label_map(path)
    counts = np.bincount(volume.array.ravel(), minlength=config.label_set.values[-1] + 1)
    millilitres = float(np.prod(volume.spacing)) / 1000
    case = stem(path)
    return CaseFacts(
        case,
        parts.get(case, "not used"),
        volume.shape,
        volume.spacing,
        volumes_ml={
            name: float(sum(counts[value] for value in values)) * millilitres
            for name, values in config.label_set.structures.values()
        },
    )
