"""From nnU-Net's checkpoints to the bundle's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseg.config import TaskConfig
from medseg.nnunet import Checkpoint, TrainedFold
from medseg.nnunet.checkpoints import scheduler_state
from medseg.project import Manifest, UserError, atomic_file, fingerprint, progress

EPOCH, KEY_METRIC = "checkpoint_epoch=", "checkpoint_key_metric="


def export_checkpoint(config: TaskConfig) -> Path:
    """Brings the config's fold into the bundle, under the names that MONAI's nnU-Net tools expect.

    Writes ``models/fold_F/checkpoint_epoch=N.pt`` (nnU-Net's final checkpoint after N epochs),
    ``checkpoint_key_metric=V.pt`` (its best; V is the moving average of the pseudo Dice) and
    ``model.pt`` (the final one again: it is packaged), each with ``network_weights``,
    ``optimizer_state`` and ``scheduler``; beside the folds ``plans.json``, ``dataset.json`` and
    ``nnunet_checkpoint.pth``; and ``models/model.pt``, the name in MONAI's specification, as a
    link to the fold that the config's file names. All load with ``weights_only=True`` and no
    further permission.

    Args:
        config: The task's config.

    Returns:
        ``models/fold_F``.

    Raises:
        UserError: The fold is not trained to its end, or a checkpoint is damaged.
    """
    fold, trained = config.fold, TrainedFold(config)
    if not trained.final.is_file():
        raise UserError(f"{trained.final} does not exist: train fold {fold} to its end first.")
    models = config.bundle_folder / "models"
    target = models / f"fold_{fold}"
    descriptions = [trained.plans_file, trained.dataset_file]
    settings = trained.settings
    schedule = {name: settings[name] for name in ("num_epochs", "initial_lr")}
    inputs = fingerprint(schedule, {trained.final, trained.best, *descriptions})
    manifest = Manifest(target, "export_checkpoint")
    if manifest.is_done(inputs) and (models / "nnunet_checkpoint.pth").is_file():
        progress(f"fold {fold}: checkpoints are in the bundle already")
        _link(config, target)
        return target

    last, best = Checkpoint.read(trained.final), Checkpoint.read(trained.best)
    for description in descriptions:
        with atomic_file(models / description.name) as temporary:
            temporary.write_bytes(description.read_bytes())
    with atomic_file(models / "nnunet_checkpoint.pth") as temporary:
        torch.save(plain(last.header), temporary)

    outputs = {
        f"{EPOCH}{last.epochs}.pt": last,
        f"{KEY_METRIC}{best.best_dice:.4f}.pt": best,
        "model.pt": last,
    }
    for name, checkpoint in outputs.items():
        with atomic_file(target / name) as temporary:
            torch.save(_convert(checkpoint, **schedule), temporary)
    for old in target.glob("checkpoint_*.pt"):
        if old.name not in outputs:
            old.unlink()
    _link(config, target)
    manifest.record(inputs, [target / name for name in outputs])
    progress(f"fold {fold}: {', '.join(outputs)} in {config.root.relative(target)}")
    return target


def plain(value: Any) -> Any:
    """``value`` with NumPy's scalars as Python's, so that it loads without naming NumPy's types."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    return value


def _convert(checkpoint: Checkpoint, num_epochs: int, initial_lr: float) -> dict[str, Any]:
    optimizer = plain(checkpoint.optimizer)
    groups = optimizer.get("param_groups") or [{}]
    return {
        "network_weights": dict(checkpoint.weights),
        "optimizer_state": optimizer,
        "scheduler": scheduler_state(
            float(groups[0].get("initial_lr", initial_lr)),
            max(num_epochs, checkpoint.epochs),
            checkpoint.epochs,
        ),
    }


def _link(config: TaskConfig, folder: Path) -> None:
    """Lets ``models/model.pt`` be that of ``folder``, where it is the fold that the file names."""
    if config.fold == config.default_fold:
        with atomic_file(folder.parent / "model.pt") as temporary:
            temporary.unlink()
            temporary.symlink_to(Path(folder.name, "model.pt"))
