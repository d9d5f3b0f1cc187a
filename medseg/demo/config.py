"""The demo's config: a Decathlon dataset's own facts, and a training that is over in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from medseg.config import LABEL_KEY
from medseg.dataset import channel_keys, decathlon_cases, decathlon_config
from medseg.imaging import ENDING
from medseg.project import MOUNT_PATH, write_text

SHORT_TRAINING = {
    "num_epochs": 9,
    "iterations_per_epoch": 12,
    "val_iterations_per_epoch": 1,
    "save_every": 3,
}
"""Enough for the phantoms on two CPU cores; a real task keeps nnU-Net's 1000 epochs of 250."""

_MINIMUM_CASES = 5  # nnU-Net's split
_HELD_BACK = 3


def write_demo_config(path: Path, dataset: Path, name: str) -> None:
    """Writes a config for a short training on a dataset of the Decathlon format.

    Labels and modalities come from the dataset's ``dataset.json``. The test cases are those of
    ``imagesTs`` that have a label in ``labelsTs``; where there are none, as in the Decathlon
    itself, the last training cases (at most three) are held back, as long as nnU-Net's five
    remain.

    Args:
        path: The YAML file to write.
        dataset: The dataset's folder: ``dataset.json``, ``imagesTr``, ``labelsTr``.
        name: The task's name, such as ``Task09_Spleen``; its number becomes nnU-Net's.

    Raises:
        UserError: ``dataset.json`` is missing or not the Decathlon's.
    """
    comment = (
        f"# The demo's config for {name}. The training is far too short for real use:\n"
        "# without the settings after 'bundle_config' it is nnU-Net's own.\n"
    )
    text = yaml.safe_dump(demo_config(dataset, name), sort_keys=False, allow_unicode=True)
    write_text(path, comment + text)


def demo_config(dataset: Path, name: str) -> dict[str, Any]:
    """The content of :func:`write_demo_config`'s file; same arguments, same errors."""
    described = decathlon_config(dataset, name, f"{MOUNT_PATH}/NIFTI/{name}")
    return {
        **described,
        "dataset_format": "subfolders",
        "modality_dict": _suffixes(described["modality_list"]),
        "test_cases": _test_cases(dataset),
        **SHORT_TRAINING,
    }


def _suffixes(channels: list[str]) -> dict[str, str]:
    return {key: f"_{key}{ENDING}" for key in (*channel_keys(channels), LABEL_KEY)}


def _test_cases(dataset: Path) -> list[str]:
    labelled, training = (
        [case.name for case in decathlon_cases(dataset, part) if not case.missing]
        for part in ("Ts", "Tr")
    )
    if labelled:
        return labelled
    spare = max(0, len(training) - _MINIMUM_CASES)
    return training[len(training) - min(spare, _HELD_BACK) :]
