"""The inference configuration: the bundle's ``inference.yaml``, ``inference.json`` in ``model.ts``.

Both are in MONAI's config syntax and need MONAI and nnU-Net alone, nothing of this project. Around
``get_nnunet_monai_predictor`` they mend what it leaves open:

* it predicts on the first GPU without mirroring; here the device is the one at hand, and
  test-time augmentation is on as in nnU-Net;
* MONAI's readers give volumes as [x, y, z], nnU-Net trains on [z, y, x]; the transposition in the
  plans is adapted, so that the network sees what it was trained on;
* it takes the spacing from a batched ``pixdim`` or from the affine's diagonal; here it is the
  length of the affine's columns, also of oblique volumes and of tensors without a batch's metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from medseg.bundle.templates import render

# Without a bundle around it: the files that get_nnunet_monai_predictor reads are written to a
# temporary folder, and the reader puts the loaded TorchScript in place of predictor.network, so
# the predictor must run the network as it is and not load weights into it.
SELF_CONTAINED: dict[str, Any] = {
    "temporary": "$tempfile.TemporaryDirectory()",
    "model_folder": (
        "$(pathlib.Path(@temporary.name, 'plans.json').write_text(json.dumps(@plans)), "
        "pathlib.Path(@temporary.name, 'dataset.json').write_text(json.dumps(@dataset_json)), "
        "torch.save({'trainer_name': @nnunet_config_ckpt::trainer_name, "
        "'init_args': {'configuration': @nnunet_config_ckpt::configuration}, "
        "'inference_allowed_mirroring_axes': "
        "@nnunet_config_ckpt::inference_allowed_mirroring_axes}, "
        "os.path.join(@temporary.name, 'nnunet_checkpoint.pth')), "
        "os.path.join(@temporary.name, 'fold'))[-1]"
    ),
}


def inference_yaml(channels: int, fold: int | str) -> str:
    """The text of ``configs/inference.yaml``.

    Args:
        channels: Number of input channels.
        fold: The fold whose ``model.pt`` runs by default.
    """
    return render("inference.yaml.j2", channels=channels, fold=fold)


def inference_json(
    plans: Mapping[str, Any],
    dataset: Mapping[str, Any],
    checkpoint: Mapping[str, Any],
    *,
    channels: int,
    fold: int | str,
) -> dict[str, Any]:
    """The content of ``inference.json`` inside ``model.ts``: complete without the bundle.

    Args:
        plans: nnU-Net's plans.
        dataset: nnU-Net's ``dataset.json``.
        checkpoint: Content of the bundle's ``nnunet_checkpoint.pth``.
        channels: Number of input channels.
        fold: The packaged fold.

    Returns:
        MONAI config; ``plans``, ``dataset_json`` and ``nnunet_config_ckpt`` are plain data, under
        the names that MAIA's bundles use.
    """
    config: dict[str, Any] = yaml.safe_load(inference_yaml(channels, fold))
    config["imports"] += [f"$import {name}" for name in ("json", "pathlib", "tempfile")]
    config |= SELF_CONTAINED
    config["predictor_settings"]["predict_logits_from_preprocessed_data"] = (
        "$@nnunet.predictor.predict_sliding_window_return_logits"
    )
    axes = checkpoint["inference_allowed_mirroring_axes"]
    config["plans"] = dict(plans)
    config["dataset_json"] = dict(dataset)
    config["nnunet_config_ckpt"] = {
        "trainer_name": checkpoint["trainer_name"],
        "configuration": checkpoint["init_args"]["configuration"],
        "inference_allowed_mirroring_axes": None if axes is None else list(axes),
    }
    return config
