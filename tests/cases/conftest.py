"""What the tests of inputs that were once got wrong share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from medseg.cli import main

LINEAR = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}


class Threshold(torch.nn.Module):
    """Foreground is what is brighter than 50."""

    def forward(self, patch: torch.Tensor) -> torch.Tensor:
        return torch.cat([50 - patch, patch - 50], dim=1)


@pytest.fixture(scope="session")
def cases(real_data: Path) -> Path:
    """Inputs that were got wrong, with their right values."""
    return real_data / "cases"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packaged model of one CT channel at 1.2 x 1.2 x 2 mm, which finds what is above 50 HU."""
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [24, 40, 40],
        "spacing": [2.0, 1.2, 1.2],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {**LINEAR, "order": 3},
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**LINEAR, "is_seg": True},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": LINEAR,
        "architecture": {"network_class_name": "", "arch_kwargs": {}, "_kw_requires_import": []},
    }
    plans = {
        "dataset_name": "Dataset001_Threshold",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 0, "std": 1, "percentile_00_5": -1000, "percentile_99_5": 1000}
        },
        "configurations": {"3d_fullres": configuration},
    }
    dataset = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "Spleen": 1}}
    checkpoint = {
        "trainer_name": "nnUNetTrainer",
        "configuration": "3d_fullres",
        "inference_allowed_mirroring_axes": None,
    }
    inference = {"plans": plans, "dataset_json": dataset, "nnunet_config_ckpt": checkpoint}
    outputs = {"pred": {"channel_def": {"0": "background", "1": "Spleen"}}}
    metadata = {"network_data_format": {"outputs": outputs}}
    path = tmp_path_factory.mktemp("threshold") / "model.ts"
    network = torch.jit.trace(Threshold(), torch.zeros(1, 1, 24, 40, 40))
    extra = {"metadata.json": json.dumps(metadata), "inference.json": json.dumps(inference)}
    torch.jit.save(network, path, _extra_files=extra)
    return path


def run(*arguments: object) -> Result:
    """Runs ``medseg`` as a user does."""
    return CliRunner().invoke(main, [str(each) for each in arguments])
