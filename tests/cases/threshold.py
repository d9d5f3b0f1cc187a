"""A packaged model that needs no training: what is brighter than thresholds."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


class Thresholds(torch.nn.Module):
    """What is above each of rising thresholds, as labels (argmax) or as regions (one head each)."""

    def __init__(self, thresholds: Sequence[float], regions: bool) -> None:
        super().__init__()
        self.thresholds = list(thresholds)
        self.regions = regions

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        above = torch.cat([image - threshold for threshold in self.thresholds], dim=1)
        if self.regions:
            return above
        return torch.cat([torch.zeros_like(image), above.cumsum(dim=1)], dim=1)


def write_threshold_model(
    path: Path,
    labels: Mapping[str, int | Sequence[int]],
    regions_class_order: Sequence[int] = (),
    *,
    thresholds: Sequence[float] = (100, 400),
    spacing: Sequence[float] = (2.5, 0.8, 0.9),
    patch_size: Sequence[int] = (8, 24, 24),
) -> Path:
    """Packages :class:`Thresholds` for one CT channel.

    Args:
        path: The file to write.
        labels: nnU-Net's labels: the background and one for each threshold.
        regions_class_order: Where they are regions.
        thresholds: Values in HU, rising.
        spacing: The model's own, in mm, z first.
        patch_size: In voxels, z first.
    """
    dataset: dict[str, Any] = {"labels": dict(labels), "channel_names": {"0": "CT"}}
    if regions_class_order:
        dataset["regions_class_order"] = list(regions_class_order)
    values = [0, *(regions_class_order or range(1, len(thresholds) + 1))]
    definition = {str(value): name for value, name in zip(values, labels, strict=False)}
    inference = {
        "plans": _plans(spacing, patch_size),
        "dataset_json": dataset,
        "nnunet_config_ckpt": {
            "trainer_name": "nnUNetTrainer",
            "configuration": "3d_fullres",
            "inference_allowed_mirroring_axes": None,
        },
    }
    metadata = {"network_data_format": {"outputs": {"pred": {"channel_def": definition}}}}
    network = Thresholds(thresholds, bool(regions_class_order))
    packed = io.BytesIO()
    torch.jit.save(
        torch.jit.trace(network, torch.zeros(1, 1, *patch_size)),
        packed,
        _extra_files={
            "metadata.json": json.dumps(metadata),
            "inference.json": json.dumps(inference),
        },
    )
    path.write_bytes(packed.getvalue())
    return path


def _plans(spacing: Sequence[float], patch_size: Sequence[int]) -> dict[str, Any]:
    """nnU-Net's plans of a CT model."""
    kinds = ("data", "seg", "probabilities")
    options = {"order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "x",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch_size),
        "median_image_size_in_voxels": list(patch_size),
        "spacing": list(spacing),
        "normalization_schemes": ["NoNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {"network_class_name": "x", "arch_kwargs": {}, "_kw_requires_import": []},
        **{f"resampling_fn_{kind}": "resample_data_or_seg_to_shape" for kind in kinds},
        **{f"resampling_fn_{k}_kwargs": {"is_seg": k == "seg", **options} for k in kinds},
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
