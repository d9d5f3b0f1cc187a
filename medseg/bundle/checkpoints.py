"""From nnU-Net's checkpoints to the bundle's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseg.bundle.paths import checkpoint_file, descriptions, models_folder
from medseg.config import TaskConfig
from medseg.nnunet import Checkpoint, TrainedFold
from medseg.nnunet.checkpoints import scheduler_state
from medseg.project import Manifest, UserError, atomic_file, fingerprint, progress


def export_checkpoint(config: TaskConfig) -> Path:
    """Brings the config's fold into the bundle, under the names that MONAI's nnU-Net tools expect.

    Writes ``models/fold_F/checkpoint_epoch=N.pt`` (nnU-Net's final checkpoint after N epochs),
    ``checkpoint_key_metric=V.pt`` (its best; V is the moving average of the pseudo Dice) and
    ``model.pt`` (the final one again: it is packaged), as :func:`write_checkpoint` does; beside
    the folds ``plans.json``, ``dataset.json`` and ``nnunet_checkpoint.pth``; and
    ``models/model.pt``, the name in MONAI's specification, as a link to the fold that the config's
    file names. All load with ``weights_only=True`` and no further permission.

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
    target = checkpoint_file(config).parent
    plans, dataset, header = descriptions(config)
    sources = {plans: trained.plans_file, dataset: trained.dataset_file}
    settings = trained.settings
    schedule = {name: settings[name] for name in ("num_epochs", "initial_lr")}
    inputs = fingerprint(schedule, {trained.final, trained.best, *sources.values()})
    manifest = Manifest(target, "export_checkpoint")
    if manifest.is_done(inputs) and header.is_file():
        progress(f"fold {fold}: checkpoints are in the bundle already")
        _link(config)
        return target

    last, best = Checkpoint.read(trained.final), Checkpoint.read(trained.best)
    for copy, source in sources.items():
        with atomic_file(copy) as temporary:
            temporary.write_bytes(source.read_bytes())
    with atomic_file(header) as temporary:
        torch.save(plain(last.header), temporary)
    outputs = {
        target / epoch_name(last.epochs): last,
        target / metric_name(best.best_dice): best,
        checkpoint_file(config): last,
    }
    for path, checkpoint in outputs.items():
        write_checkpoint(
            path,
            checkpoint.weights,
            checkpoint.optimizer,
            epochs=checkpoint.epochs,
            planned_epochs=schedule["num_epochs"],
            initial_lr=schedule["initial_lr"],
        )
    for old in target.glob("checkpoint_*.pt"):
        if old not in outputs:
            old.unlink()
    _link(config)
    manifest.record(inputs, outputs)
    names = ", ".join(path.name for path in outputs)
    progress(f"fold {fold}: {names} in {config.root.relative(target)}")
    return target


def epoch_name(epochs: int) -> str:
    """The name of a checkpoint after that many epochs."""
    return f"checkpoint_epoch={epochs}.pt"


def metric_name(value: float) -> str:
    """The name of the best checkpoint, by the value of the metric that it is best in."""
    return f"checkpoint_key_metric={value:.4f}.pt"


def write_checkpoint(
    path: Path,
    weights: Mapping[str, torch.Tensor],
    optimizer: Mapping[str, Any],
    *,
    epochs: int,
    planned_epochs: int,
    initial_lr: float,
) -> None:
    """Writes a checkpoint of the bundle: ``network_weights``, ``optimizer_state``, ``scheduler``.

    Args:
        path: The file.
        weights: The network's weights.
        optimizer: The optimizer's state.
        epochs: Finished epochs.
        planned_epochs: Epochs that were planned.
        initial_lr: Learning rate of the first epoch, where the optimizer does not say it.
    """
    state = plain(optimizer)
    groups = state.get("param_groups") or [{}]
    content = {
        "network_weights": dict(weights),
        "optimizer_state": state,
        "scheduler": scheduler_state(
            float(groups[0].get("initial_lr", initial_lr)), max(planned_epochs, epochs), epochs
        ),
    }
    with atomic_file(path) as temporary:
        torch.save(content, temporary)


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


def _link(config: TaskConfig) -> None:
    """Lets ``models/model.pt`` be the config's fold, where it is the fold that the file names."""
    if config.fold == config.default_fold:
        checkpoint, folder = checkpoint_file(config), models_folder(config)
        with atomic_file(folder / "model.pt") as temporary:
            temporary.unlink()
            temporary.symlink_to(checkpoint.relative_to(folder))
