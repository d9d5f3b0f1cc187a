"""A trained model in one file becomes a folder of nnU-Net or of a MONAI bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from medseg.bundle.checkpoints import epoch_name, plain, write_checkpoint
from medseg.nnunet.checkpoints import FINAL
from medseg.nnunet.models import HEADER, Model, network_of, read_model
from medseg.nnunet.plans import settings_of
from medseg.project import UserError, atomic_file, progress, write_json

Layout = Literal["bundle", "nnunet"]


def convert_model(
    source: Path, target: Path, layout: Layout, *, fold: int = 0, configuration: str = ""
) -> Path:
    """Writes a trained model in the layout of another tool.

    ``bundle``: ``models/plans.json``, ``dataset.json`` and ``nnunet_checkpoint.pth``, and
    ``models/fold_F/model.pt`` (and ``checkpoint_epoch=N.pt``, where the source says N), as
    MONAI's nnU-Net tools read them. ``nnunet``: a folder
    ``<trainer>__<plans>__<configuration>/fold_F/checkpoint_final.pth`` with ``plans.json`` and
    ``dataset.json``, as ``nnUNetv2_predict_from_modelfolder`` reads it. The weights are checked
    against the network that the plans describe. Optimizers do not come along: to go on with a
    training by Lightning use ``convert_ckpt_to_pt``.

    Args:
        source: A Lightning ``.ckpt`` or a bundle's ``.pt`` (with ``plans.json`` and
            ``dataset.json`` beside it or beside its fold), nnU-Net's ``.pth``, or a ``model.ts``.
        target: The bundle's folder, or the one that holds nnU-Net's models.
        layout: Which one.
        fold: The fold that the model is to be.
        configuration: The configuration of the plans, where the source does not say it.

    Returns:
        The written checkpoint.

    Raises:
        UserError: The source cannot be read or does not say what network it holds; the weights
            are those of another network; the checkpoint is there already and is another.
    """
    model = _complete(read_model(source), configuration)
    network_of(model)
    header = {
        "init_args": {
            "plans": model.plans,
            "configuration": model.configuration,
            "fold": fold,
            "dataset_json": model.dataset,
        },
        "trainer_name": model.trainer,
        "inference_allowed_mirroring_axes": model.mirror_axes,
    }
    name = f"{model.trainer}__{model.plans['plans_name']}__{model.configuration}"
    folder = target / ("models" if layout == "bundle" else name)
    checkpoint = folder / f"fold_{fold}" / ("model.pt" if layout == "bundle" else FINAL)
    if checkpoint.exists():
        raise UserError(
            f"{checkpoint} is there already: name another target or another fold, or remove it."
        )
    write_json(folder / "plans.json", model.plans)
    write_json(folder / "dataset.json", model.dataset)
    if layout == "bundle":
        _save(plain(header), folder / HEADER)
        names = [epoch_name(model.epochs)] if model.epochs else []
        for path in [*map(checkpoint.with_name, names), checkpoint]:
            epochs = model.epochs or 0
            write_checkpoint(
                path, model.weights, {}, epochs=epochs, planned_epochs=epochs or 1, initial_lr=1e-2
            )
    else:
        _save(_checkpoint(model, header), checkpoint)
    progress(f"{source.name}: {model.configuration} of {model.plans['dataset_name']}, {checkpoint}")
    return checkpoint


def _complete(model: Model, configuration: str) -> Model:
    """The model with its configuration, and the axes that nnU-Net mirrors by default."""
    known = list(model.plans["configurations"])
    wanted = configuration or model.configuration or (known[0] if len(known) == 1 else "")
    if not wanted:
        raise UserError(
            f"{model.path} does not say which configuration of its plans it is: name it "
            f"(--configuration; the plans hold {', '.join(known)})."
        )
    axes = model.mirror_axes
    if axes is None:
        axes = tuple(range(len(settings_of(model.plans, wanted)["patch_size"])))
    return replace(model, configuration=wanted, mirror_axes=axes)


def _checkpoint(model: Model, header: Mapping[str, Any]) -> dict[str, Any]:
    """What nnU-Net's tools read of a final checkpoint; nothing to go on training from."""
    return {
        **header,
        "network_weights": dict(model.weights),
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {},
        "_best_ema": None,
        "current_epoch": model.epochs or 0,
    }


def _save(content: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        torch.save(dict(content), temporary)
