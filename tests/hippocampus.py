"""The small task that most tests work on: the two parts of the hippocampus."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from medseg.config import TaskConfig, load_config
from medseg.project import DataRoot

CONFIG = "configs/Task04_config.yaml"
"""The config of :func:`write_project`."""

LABELS = {"background": 0, "Anterior": 1, "Posterior": 2}


def copy_cases(shared_data: Path, folder: Path, wanted: int | Iterable[str] = 6) -> list[str]:
    """Copies cases in the Decathlon's layout into a new folder; returns their names.

    Args:
        shared_data: See the fixture of that name.
        folder: The dataset.
        wanted: Names of cases, or how many.
    """
    source = shared_data / "Task04_Hippocampus"
    if isinstance(wanted, int):
        files = sorted(path.name for path in (source / "imagesTr").glob("*.nii.gz"))[:wanted]
    else:
        files = [f"{name}.nii.gz" for name in wanted]
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
        for name in files:  # without their permissions: the real ones are read-only
            shutil.copyfile(source / part / name, folder / part / name)
    shutil.copyfile(source / "dataset.json", folder / "dataset.json")
    return [name.removesuffix(".nii.gz") for name in files]


def write_config(root: Path, **fields: Any) -> TaskConfig:
    """Writes ``config.yaml`` for a short training on the dataset ``NIFTI``, and loads it."""
    content = {
        "data_dir": "NIFTI",
        "dataset_format": "decathlon",
        "dataset_name_or_id": "4",
        "experiment_name": "Hippocampus",
        "labels": LABELS,
        "bundle_config": {"bundle_root": "bundle"},
        "num_epochs": 3,
        "iterations_per_epoch": 2,
        "val_iterations_per_epoch": 1,
        "num_processes": 2,
        "device": "cpu",
        **fields,
    }
    (root / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return load_config("config.yaml", DataRoot.at(root))


def add_tiny_configuration(config: TaskConfig, **fields: Any) -> None:
    """Adds a small network to the plans, as nnU-Net's documentation tells users to.

    Args:
        config: The task, planned.
        fields: What else is its own in the new configuration ``tiny``.
    """
    path = config.preprocessed_folder / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    architecture = copy.deepcopy(plans["configurations"]["3d_fullres"]["architecture"])
    stages = architecture["arch_kwargs"]["n_stages"]
    architecture["arch_kwargs"]["features_per_stage"] = [4, 8, 8, 8, 8, 8][:stages]
    plans["configurations"]["tiny"] = {
        "inherits_from": "3d_fullres",
        "architecture": architecture,
        **fields,
    }
    path.write_text(json.dumps(plans))


def write_project(root: Path, cases: Iterable[str], **fields: Any) -> None:
    """Writes the config of a project whose pipelines run as a user runs them.

    Args:
        root: The data root.
        cases: Those that are held back as the test set.
        fields: What the config says besides.
    """
    content = {
        "data_dir": "/mnt/Data/NIFTI/Task04",
        "dataset_name_or_id": "4",
        "experiment_name": "Task04_Hippocampus",
        "modality_list": ["MR"],
        "labels": LABELS,
        "test_cases": list(cases),
        "bundle_config": {"bundle_root": "MONet_Bundle/Task04/MONetBundle"},
        "val_iterations_per_epoch": 1,
        **fields,
    }
    (root / CONFIG).parent.mkdir()
    (root / CONFIG).write_text(yaml.safe_dump(content))
