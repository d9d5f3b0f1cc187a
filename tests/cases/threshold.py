"""A packaged model that needs no training: two thresholds."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


class Thresholds(torch.nn.Module):
    """Above 100, and above 400: as two labels (three heads) or as two regions (two)."""

    def __init__(self, regions: bool) -> None:
        super().__init__()
        self.regions = regions

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        low, high = image - 100, image - 400
        heads = [low, high] if self.regions else [torch.zeros_like(image), low, low + high]
        return torch.cat(heads, dim=1)


def write_threshold_model(
    path: Path,
    labels: Mapping[str, int | Sequence[int]],
    regions_class_order: Sequence[int] = (),
) -> Path:
    """Packages :class:`Thresholds` for CT at its own spacing of 2.5 x 0.8 x 0.9 mm.

    Args:
        path: The file to write.
        labels: nnU-Net's labels: the background and two more.
        regions_class_order: Where they are regions.
    """
    plans = _plans()
    dataset: dict[str, Any] = {"labels": dict(labels), "channel_names": {"0": "CT"}}
    if regions_class_order:
        dataset["regions_class_order"] = list(regions_class_order)
    values = [0, *(regions_class_order or (1, 2))]
    definition = {str(value): name for value, name in zip(values, labels, strict=False)}
    inference = {
        "plans": plans,
        "dataset_json": dataset,
        "nnunet_config_ckpt": {
            "trainer_name": "nnUNetTrainer",
            "configuration": "3d_fullres",
            "inference_allowed_mirroring_axes": None,
        },
    }
    metadata = {"network_data_format": {"outputs": {"pred": {"channel_def": definition}}}}
    packed = io.BytesIO()
    network = torch.jit.trace(Thresholds(bool(regions_class_order)), torch.zeros(1, 1, 8, 24, 24))
    torch.jit.save(
        network,
        packed,
        _extra_files={
            "metadata.json": json.dumps(metadata),
            "inference.json": json.dumps(inference),
        },
    )
    path.write_bytes(packed.getvalue())
    return path


def _plans() -> dict[str, Any]:
    """nnU-Net's plans of a CT model at that spacing."""
    resampling = {
        f"resampling_fn_{what}": "resample_data_or_seg_to_shape"
        for what in ("data", "seg", "probabilities")
    }
    options = {
        f"resampling_fn_{what}_kwargs": {
            "is_seg": what == "seg",
            "order": 1,
            "order_z": 0,
            "force_separate_z": None,
        }
        for what in ("data", "seg", "probabilities")
    }
    configuration = {
        "data_identifier": "x",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [8, 24, 24],
        "median_image_size_in_voxels": [8, 24, 20],
        "spacing": [2.5, 0.8, 0.9],
        "normalization_schemes": ["NoNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {"network_class_name": "x", "arch_kwargs": {}, "_kw_requires_import": []},
        **resampling,
        **options,
    }
    return {
        "dataset_name": "Dataset001_Thresholds",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}},
    }
