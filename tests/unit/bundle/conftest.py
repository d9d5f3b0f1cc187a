"""One trained fold that the tests of this folder share."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from medseg.bundle import convert_pt_to_ts, export_checkpoint, prepare_bundle
from medseg.config import TaskConfig, load_config
from medseg.nnunet import plan_and_preprocess, prepare_dataset, train
from medseg.project import DataRoot

os.environ.setdefault("OMP_NUM_THREADS", "1")

SUMMARY = {
    "foreground_mean": {"Dice": 0.81234},
    "mean": {"1": {"Dice": 0.8}, "2": {"Dice": float("nan")}},
    "metric_per_case": [],
}


def write_config(root: Path, **fields: Any) -> TaskConfig:
    content = {
        "data_dir": "NIFTI",
        "dataset_format": "decathlon",
        "dataset_name_or_id": "4",
        "experiment_name": "Hippocampus",
        "configuration": "tiny",
        "labels": {"background": 0, "Anterior": 1, "Posterior": 2},
        "num_epochs": 1,
        "iterations_per_epoch": 2,
        "val_iterations_per_epoch": 1,
        "num_processes": 1,
        "device": "cpu",
        "bundle_config": {"bundle_root": "bundle"},
        **fields,
    }
    (root / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return load_config("config.yaml", DataRoot.at(root))


def add_tiny_configuration(config: TaskConfig) -> None:
    """A small network on an own grid, with axes in an own order: nothing that hides a mistake."""
    path = config.preprocessed_folder / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    architecture = json.loads(json.dumps(plans["configurations"]["3d_fullres"]["architecture"]))
    stages = architecture["arch_kwargs"]["n_stages"]
    architecture["arch_kwargs"]["features_per_stage"] = [4, 8, 8, 8, 8, 8][:stages]
    plans["transpose_forward"], plans["transpose_backward"] = [2, 0, 1], [1, 2, 0]
    plans["configurations"]["tiny"] = {
        "inherits_from": "3d_fullres",
        "data_identifier": "nnUNetPlans_tiny",
        "patch_size": [24, 32, 40],
        "spacing": [0.9, 1.2, 1.1],
        "architecture": architecture,
    }
    path.write_text(json.dumps(plans))


def balance_classes(config: TaskConfig) -> None:
    """Shifts the last layer's biases so that all classes occur, as after a long training.

    After a few steps everything is background, and any two label maps are equal.
    """
    import torch

    from medseg.bundle.torchscript import _load_network
    from medseg.nnunet import load_checkpoint
    from medseg.nnunet.preprocessing import example_patches

    folder = export_checkpoint(config)
    plans = json.loads((folder.parent / "plans.json").read_text())
    patches = example_patches(config.preprocessed_folder, plans, config.configuration)
    with torch.no_grad():
        means = _load_network(folder / "model.pt")(patches).mean(dim=(0, 2, 3, 4))
    path = config.fold_folder() / "checkpoint_final.pth"
    checkpoint = load_checkpoint(path)
    weights = checkpoint["network_weights"]
    last = sorted(key for key in weights if ".seg_layers." in key and key.endswith(".bias"))[-1]
    weights[last] -= means
    torch.save(checkpoint, path)


@pytest.fixture(scope="session")
def trained(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> TaskConfig:
    """A fold, exported and packaged."""
    root = tmp_path_factory.mktemp("root")
    source = shared_data / "Task04_Hippocampus"
    for part in ("imagesTr", "labelsTr"):
        (root / "NIFTI" / part).mkdir(parents=True)
        for path in sorted((source / part).glob("*.nii.gz"))[:5]:
            shutil.copy(path, root / "NIFTI" / part)
    shutil.copy(source / "dataset.json", root / "NIFTI")
    planned = write_config(root, configuration="3d_fullres")
    prepare_dataset(planned)
    plan_and_preprocess(planned)
    add_tiny_configuration(planned)
    config = write_config(root)
    plan_and_preprocess(config)
    prepare_bundle(config)
    train(config)
    validation = config.fold_folder() / "validation"
    validation.mkdir(exist_ok=True)
    (validation / "summary.json").write_text(json.dumps(SUMMARY))
    balance_classes(config)
    export_checkpoint(config)
    convert_pt_to_ts(config)
    return config


@pytest.fixture
def configure() -> Callable[..., TaskConfig]:
    """Writes a config, with other fields, into a root."""
    return write_config


@pytest.fixture
def image(trained: TaskConfig) -> Path:
    """A real case."""
    return trained.data_folder / "imagesTr" / "hippocampus_001.nii.gz"
