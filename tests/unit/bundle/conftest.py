"""One trained fold that the tests of this folder share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from medseg.bundle import convert_pt_to_ts, export_checkpoint, prepare_bundle
from medseg.config import TaskConfig
from medseg.nnunet import plan_and_preprocess, prepare_dataset, train
from tests.hippocampus import add_tiny_configuration, copy_cases, write_config

os.environ.setdefault("OMP_NUM_THREADS", "1")

SUMMARY = {
    "foreground_mean": {"Dice": 0.81234},
    "mean": {"1": {"Dice": 0.8}, "2": {"Dice": float("nan")}},
    "metric_per_case": [],
}


write_tiny = partial(write_config, configuration="tiny", num_epochs=1, num_processes=1)


def balance_classes(config: TaskConfig) -> None:
    """Shifts the last layer's biases so that all classes occur, as after a long training.

    After a few steps everything is background, and any two label maps are equal.
    """
    import torch

    from medseg.bundle.torchscript import load_network
    from medseg.nnunet import load_checkpoint
    from medseg.nnunet.preprocessing import example_patches

    folder = export_checkpoint(config)
    plans = json.loads((folder.parent / "plans.json").read_text())
    patches = example_patches(config.preprocessed_folder, plans, config.configuration)
    with torch.no_grad():
        means = load_network(folder / "model.pt")(patches).mean(dim=(0, 2, 3, 4))
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
    copy_cases(shared_data, root / "NIFTI", 5)
    planned = write_tiny(root, configuration="3d_fullres")
    prepare_dataset(planned)
    plan_and_preprocess(planned)
    # a grid and an order of axes of its own: nothing that hides a mistake
    grid = {"patch_size": [24, 32, 40], "spacing": [0.9, 1.2, 1.1]}
    add_tiny_configuration(planned, data_identifier="nnUNetPlans_tiny", **grid)
    plans_file = planned.preprocessed_folder / "nnUNetPlans.json"
    plans = json.loads(plans_file.read_text())
    plans["transpose_forward"], plans["transpose_backward"] = [2, 0, 1], [1, 2, 0]
    plans_file.write_text(json.dumps(plans))
    config = write_tiny(root)
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


@pytest.fixture(scope="session")
def configure() -> Callable[..., TaskConfig]:
    """Writes a config, with other fields, into a root."""
    return write_tiny


@pytest.fixture
def image(trained: TaskConfig) -> Path:
    """A real case."""
    return trained.data_folder / "imagesTr" / "hippocampus_001.nii.gz"
