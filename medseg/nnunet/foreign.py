"""Weights that another program has trained become the checkpoints of a fold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medseg.config import TaskConfig
from medseg.nnunet.checkpoints import BEST, FINAL, LATEST
from medseg.nnunet.console import quiet
from medseg.nnunet.models import check_same_network
from medseg.nnunet.paths import environment
from medseg.nnunet.plans import read_plans
from medseg.nnunet.resume import supersede
from medseg.nnunet.trainer import ExtendedTraining, make_trainer
from medseg.project import atomic_file, lock, progress, write_json


@dataclass(frozen=True)
class ForeignState:
    """A state of a training that nnU-Net's trainer has not run.

    Attributes:
        path: The file that it was read from.
        weights: The network's weights by nnU-Net's names.
        epochs: Finished epochs.
        best_dice: The Dice by which it was kept; None where the file does not say one.
        optimizer: The optimizer's state; None where there is none, or one of another optimizer.
    """

    path: Path
    weights: Mapping[str, torch.Tensor]
    epochs: int
    best_dice: float | None = None
    optimizer: Mapping[str, Any] | None = None


def take_over(config: TaskConfig, last: ForeignState, best: ForeignState | None) -> list[Path]:
    """Writes states as the checkpoints of the config's fold, as if nnU-Net had trained it.

    ``validate``, ``convert_pt_to_ts``, ``nnUNetv2_predict`` and a training that goes on work with
    them. What was logged epoch by epoch is not in such files: the log holds values that are not
    numbers, one an epoch. A fold that was trained before is moved to ``superseded/``.

    Args:
        config: The task's config; its dataset is preprocessed.
        last: Becomes ``checkpoint_final.pth``.
        best: Becomes ``checkpoint_best.pth``, where there is one.

    Returns:
        The checkpoints.

    Raises:
        UserError: There are no plans; weights are not those of the plans' network; somebody is
            training the fold.
    """
    folder = config.fold_folder()
    place = config.root.relative(folder).replace("/", "_")
    with lock(config.root, f"train-{place}"), environment(config):
        trainer = make_trainer(config)
        with quiet():
            trainer.initialize()
        states = {FINAL: last, BEST: best}
        contents = {
            folder / name: _content(config, trainer, state, best or last)
            for name, state in states.items()
            if state is not None
        }
        if any((folder / name).is_file() for name in (LATEST, BEST, FINAL)):
            kept = supersede(folder)
            progress(f"fold {config.fold} was trained before; the old one is kept in {kept}")
        folder.mkdir(parents=True, exist_ok=True)
        _describe(config)
        for path, content in reversed(contents.items()):  # the final one is what others wait for
            with atomic_file(path) as temporary:
                torch.save(content, temporary)
    return list(contents)


def _content(
    config: TaskConfig, trainer: ExtendedTraining, state: ForeignState, best: ForeignState
) -> dict[str, Any]:
    own = trainer.weights()
    check_same_network(state.path, state.weights, own)
    content = dict(trainer.state())
    content["network_weights"] = dict(state.weights)
    if state.optimizer is not None:
        with suppress(ValueError, KeyError, TypeError, IndexError):  # another optimizer's: none
            trainer.optimizer.load_state_dict(state.optimizer)
            content["optimizer_state"] = dict(state.optimizer)
    log: dict[str, list[Any]] = {name: [math.nan] * state.epochs for name in content["logging"]}
    structures = len(config.label_set.per_class)
    log["dice_per_class_or_region"] = [[math.nan] * structures for _ in range(state.epochs)]
    if best.best_dice is not None:  # a training that goes on compares with it
        log["ema_fg_dice"][-1:] = [best.best_dice]
    return content | {"logging": log, "current_epoch": state.epochs, "_best_ema": best.best_dice}


def _describe(config: TaskConfig) -> None:
    """What nnU-Net lays beside the folds when a training starts."""
    plans, dataset = read_plans(config)
    write_json(config.results_folder / "plans.json", plans)
    write_json(config.results_folder / "dataset.json", dataset)
    fingerprint = config.preprocessed_folder / "dataset_fingerprint.json"
    with atomic_file(config.results_folder / fingerprint.name) as temporary:
        temporary.write_bytes(fingerprint.read_bytes())
