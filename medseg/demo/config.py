"""The demo's config: a Decathlon dataset's own facts, and a training that is over in minutes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from medseg.config import DEFAULT_SUFFIXES, LABEL_KEY
from medseg.dataset import DESCRIPTION, check_decathlon, decathlon_cases, read_description
from medseg.imaging import ENDING
from medseg.project import UserError, write_text

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
    check_decathlon(dataset)
    described = read_description(dataset)
    if not described.channels or not described.labels:
        raise UserError(
            f"{dataset / DESCRIPTION} is not a Decathlon dataset.json: it must map numbers to "
            "names under 'modality' and 'labels'."
        )
    channels = list(described.channels)
    foreground = {name: value for name, value in described.labels.items() if value != 0}
    labels = {"background": 0, **foreground}
    number = re.search(r"[1-9]\d{0,2}", name)
    return {
        "data_dir": f"/mnt/Data/NIFTI/{name}",
        "nnunet_root_dir": "/mnt/Data/nnUNet",
        "dataset_name_or_id": f"{int(number[0]) if number else 1:02d}",
        "dataset_format": "subfolders",
        "modality_dict": _suffixes(channels) | {LABEL_KEY: DEFAULT_SUFFIXES[LABEL_KEY]},
        "modality_list": channels,
        "experiment_name": re.sub(r"[^\w.-]", "_", name),
        "labels": labels,
        "regions_class_order": list(described.regions_class_order) or None,
        "test_cases": _test_cases(dataset),
        "bundle_config": {
            "bundle_root": f"/mnt/Data/MONet_Bundle/{name}/MONetBundle",
            "mlflow_run_name": "nnUNet",
        },
        **SHORT_TRAINING,
    }


def _suffixes(channels: list[str]) -> dict[str, str]:
    if len(channels) == 1:
        return {"image": DEFAULT_SUFFIXES["image"]}
    keys = [re.sub(r"\W+", "_", channel) for channel in channels]
    return {key: f"_{key}{ENDING}" for key in keys}


def _test_cases(dataset: Path) -> list[str]:
    labelled, training = (
        [case.name for case in decathlon_cases(dataset, part) if not case.missing]
        for part in ("Ts", "Tr")
    )
    if labelled:
        return labelled
    spare = max(0, len(training) - _MINIMUM_CASES)
    return training[len(training) - min(spare, _HELD_BACK) :]
