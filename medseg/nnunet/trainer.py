"""nnU-Net's trainer, extended: atomic checkpoints, seeds, a quiet console, a report an epoch."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseg.config import TaskConfig
from medseg.nnunet.checkpoints import FINAL, LATEST, safe_types
from medseg.nnunet.console import quiet
from medseg.nnunet.devices import choose_bfloat16, choose_device, use_bfloat16
from medseg.nnunet.keeping import StateKeeper
from medseg.nnunet.plans import read_plans
from medseg.nnunet.pretrained import Weights, first_weights, freeze_encoder
from medseg.nnunet.trainer_classes import find_trainer_class
from medseg.project import UserError, atomic_file, hint

CONFIG_FIELDS = {
    "num_epochs": "num_epochs",
    "iterations_per_epoch": "num_iterations_per_epoch",
    "val_iterations_per_epoch": "num_val_iterations_per_epoch",
    "initial_lr": "initial_lr",
    "save_every": "save_every",
}
"""Fields of the config and the attributes of nnU-Net's trainer that they set."""

STATE = {
    "current_epoch", "disable_checkpointing", "fold", "is_cascaded", "is_ddp", "local_rank",
    "was_initialized",
}  # fmt: skip
"""Plain attributes of the trainer that are no settings."""

PLOT_EVERY = 60.0  # s; progress.png takes nnU-Net about 2 s, as much as a short epoch


class _Pause(Exception):  # noqa: N818 - no error
    """Leaves nnU-Net's loop over the epochs."""


class ExtendedTraining:
    """What is mixed into nnU-Net's trainer class; see :func:`make_trainer`.

    Attributes:
        seed: Epoch ``n`` draws its random numbers from ``seed + n``, so that a resumed training
            goes on as it would have gone (where augmentation runs in this process; nnU-Net's
            worker processes take their own seeds from the system).
        bfloat16: Whether the network computes in bfloat16 on the CPU.
        after_epoch: Called with the number of each finished epoch, from 0.
        keeper: Has the state after the last finished epoch.
        first_weights: Makes the weights that a new training starts from out of the network's
            own; None: those.
        freeze_encoder: Whether the network's encoder stays as it is.
    """

    seed: int = 0
    bfloat16: bool = False
    after_epoch: Callable[[int], None] = staticmethod(lambda _epoch: None)
    keeper: StateKeeper
    first_weights: Callable[[Weights], Weights] | None = None
    freeze_encoder: bool = False
    # nnU-Net's own
    fold: int | str
    current_epoch: int
    num_epochs: int
    device: torch.device
    output_folder: str
    log_file: str
    dataset_json: dict[str, Any]
    plans_manager: Any
    label_manager: Any
    logger: Any
    network: Any
    optimizer: Any
    grad_scaler: Any
    my_init_kwargs: dict[str, Any]
    inference_allowed_mirroring_axes: Any
    disable_checkpointing: bool
    _best_ema: float | None

    _logs = False
    _log_lines: tuple[tuple[Any, ...], ...] = ()  # what came before the log
    _runs = False
    _pause_at = -1
    _plotted = 0.0
    _saved_epoch: int = -1
    _epoch_began = 0.0
    _to_keep = False  # the present state is that after the last finished epoch, and not yet kept

    def begin_log(self) -> None:
        """Lets the log file begin: nnU-Net makes one for every trainer, even for one not used."""
        self._logs = True
        for line in self._log_lines:
            self.print_to_log_file(*line, add_timestamp=False)

    def plot_seldom(self) -> None:
        """Lets ``progress.png`` be drawn at most once a minute, and after the last epoch."""
        plot = self.logger.plot_progress_png

        def plot_sometimes(folder: str) -> None:
            last = self.current_epoch == self.num_epochs - 1
            if last or time.monotonic() - self._plotted > PLOT_EVERY:
                plot(folder)
                self._plotted = time.monotonic()

        self.logger.plot_progress_png = plot_sometimes

    def settings(self) -> dict[str, bool | int | float]:
        """The plain attributes that decide what the training learns."""
        plain = {
            name: value
            for name, value in vars(self).items()
            if isinstance(value, bool | int | float)
            and not name.startswith("_")
            and name not in STATE
        }
        return {"seed": self.seed, **plain}

    def train_until(self, epoch: int) -> None:
        """Trains until that many epochs are finished; after the last planned one nnU-Net ends it.

        Args:
            epoch: At most ``num_epochs``.
        """
        self._pause_at = epoch
        with suppress(_Pause):
            self.run_training()  # type: ignore[attr-defined]

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of the network's weights, on the CPU, by nnU-Net's names."""
        state = self._plain_network().state_dict()
        return {name: value.detach().to("cpu", copy=True) for name, value in state.items()}

    def set_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Gives the network these weights; they count as those of the last finished epoch.

        Args:
            weights: As :meth:`weights` gives them.
        """
        self._plain_network().load_state_dict(weights)
        self._to_keep = True
        self._keep()

    def _plain_network(self) -> torch.nn.Module:
        network: torch.nn.Module = getattr(self.network, "_orig_mod", self.network)  # compiled
        return network

    def _keep(self) -> None:
        if not self.disable_checkpointing:
            self.keeper.keep(self.state())
        self._to_keep = False

    def state(self) -> dict[str, Any]:
        """What nnU-Net saves, of the present state; its tensors are the trainer's own."""
        scaler = self.grad_scaler
        return {
            "network_weights": self._plain_network().state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": scaler.state_dict() if scaler is not None else None,
            "logging": self.logger.get_checkpoint(),
            "_best_ema": self._best_ema,
            "current_epoch": self.current_epoch,
            "init_args": self.my_init_kwargs,
            "trainer_name": type(self).__name__,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
        }

    def save_completed(self, name: str = LATEST) -> None:
        """Saves the state after the last finished epoch, unless it is on the disk.

        What an unfinished epoch has changed is left out, so the resumed training is the one that
        would have been.

        Args:
            name: The checkpoint's name.
        """
        if self._to_keep:  # it was told to end while it was being kept
            self._keep()
        self.keeper.save(Path(self.output_folder) / name)

    def close(self) -> None:
        """Ends the augmentation's worker processes, which nnU-Net does only after success."""
        for name in ("dataloader_train", "dataloader_val"):
            finish = getattr(getattr(self, name, None), "_finish", None)
            if finish is not None:
                finish()

    # --- nnU-Net's methods ---

    def print_to_log_file(self, *args: Any, add_timestamp: bool = True, **_console: bool) -> None:
        """Writes to nnU-Net's log file alone."""
        if not self._logs:
            self._log_lines = (*self._log_lines, args)
            return
        super().print_to_log_file(  # type: ignore[misc]
            *args, also_print_to_console=False, add_timestamp=add_timestamp
        )

    def initialize(self) -> None:
        """Builds network, optimizer and loss: from the seed, and for bfloat16 where wanted."""
        seed_all(self.seed)
        super().initialize()  # type: ignore[misc]
        if self.bfloat16:
            use_bfloat16(self.network)

    def configure_optimizers(self) -> Any:
        """Puts the first weights in and freezes what stays: before DDP takes hold of the network.

        nnU-Net calls it when the network is built.
        """
        network = self._plain_network()
        if self.first_weights is not None:
            network.load_state_dict(self.first_weights(network.state_dict()))
        if self.freeze_encoder:
            freeze_encoder(network)
        return super().configure_optimizers()  # type: ignore[misc]

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """Goes on from a checkpoint, read without unpickling code."""
        self.first_weights = None  # the checkpoint's have come from them
        with torch.serialization.safe_globals(safe_types()):
            super().load_checkpoint(filename_or_checkpoint)  # type: ignore[misc]

    def on_train_start(self) -> None:
        """Starts once, however often the training pauses."""
        if not self._runs:
            super().on_train_start()  # type: ignore[misc]
            self._runs = True
            self.keeper.begin()

    def on_epoch_start(self) -> None:
        """Seeds the epoch."""
        self._epoch_began = time.monotonic()
        seed_all(self.seed + self.current_epoch)
        super().on_epoch_start()  # type: ignore[misc]

    def on_epoch_end(self) -> None:
        """Keeps the state of the finished epoch, reports it, and pauses where it is time.

        Raises:
            UserError: The loss is not a number: of such a state nothing is kept.
        """
        epoch = self.current_epoch
        self._require_a_loss()
        super().on_epoch_end()  # type: ignore[misc]
        self._to_keep = self._saved_epoch != epoch
        if self._to_keep:
            self._keep()
        pauses = self.current_epoch == self._pause_at
        if not pauses:  # else it is saved now
            self.keeper.write_if_due(time.monotonic() - self._epoch_began)
        self.after_epoch(epoch)
        if pauses and self.current_epoch < self.num_epochs:
            raise _Pause

    def _require_a_loss(self) -> None:
        log = self.logger.get_checkpoint()
        loss = log["train_losses"][-1]
        if math.isfinite(loss):
            return
        kept = f"the state after epoch {self.current_epoch} is kept" if self.current_epoch else ""
        raise UserError(
            f"fold {self.fold}: the loss of epoch {self.current_epoch + 1} is not a number"
            f"{'; ' * bool(kept)}{kept}. Lower initial_lr (it is {self.initial_lr:g}), set "  # type: ignore[attr-defined]
            "precision: float32, or look for cases of extreme intensities in the report's dataset; "
            "then run train again."
        )

    def save_checkpoint(self, filename: str) -> None:
        """Saves a checkpoint, all of it or nothing."""
        path = Path(filename)
        if path.name in (LATEST, FINAL):  # what is being written is older, and must not come after
            self.keeper.settle()
        with atomic_file(path) as temporary:
            super().save_checkpoint(str(temporary))  # type: ignore[misc]
        self._saved_epoch = self.current_epoch
        self.keeper.saved()


def make_trainer(config: TaskConfig) -> ExtendedTraining:
    """An instance of the config's nnU-Net trainer class, extended and with the config's settings.

    The class keeps its name, so that folders and checkpoints are those of nnU-Net itself. Fields
    that the config does not set stay what the trainer class says (``nnUNetTrainer_250epochs``).
    Must be called inside :func:`medseg.nnunet.environment`.

    Args:
        config: The task's config; its dataset is preprocessed.

    Returns:
        The trainer, not yet initialized.

    Raises:
        UserError: No such trainer class; ``train_extra_configs`` names an attribute that the
            trainer does not have, or gives it a value of another type; no CUDA device; plans that
            cannot be read.
    """
    base = find_trainer_class(config.trainer_class_name)
    device = choose_device(config.device)
    plans, dataset = read_plans(config)
    extended = type(base.__name__, (ExtendedTraining, base), {"__doc__": base.__doc__})
    with quiet():
        trainer: ExtendedTraining = extended(
            plans=plans,
            configuration=config.configuration,
            fold=config.fold,
            dataset_json=dataset,
            device=device,
        )
    trainer.plot_seldom()
    trainer.keeper = StateKeeper(
        Path(trainer.output_folder) / LATEST, 60 * config.checkpoint_minutes
    )
    trainer.seed = config.seed
    trainer.bfloat16 = choose_bfloat16(config.precision, device.type)
    if config.pretrained_weights:
        trainer.first_weights = partial(first_weights, config)
        trainer.freeze_encoder = config.freeze_encoder
    for field, attribute in CONFIG_FIELDS.items():
        if field in config.model_fields_set:
            setattr(trainer, attribute, getattr(config, field))
    _set_extras(trainer, config.train_extra_configs)
    return trainer


def _set_extras(trainer: ExtendedTraining, extras: dict[str, Any]) -> None:
    known = trainer.settings()
    for name, value in extras.items():
        if name not in known or name == "seed":
            raise UserError(
                f"train_extra_configs: {type(trainer).__name__} has no setting {name!r}"
                f"{hint(name, sorted(known))}."
            )
        kind = type(known[name])
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise UserError(
                f"train_extra_configs: {name} must be of type {kind.__name__}, not {value!r}."
            )
        setattr(trainer, name, value)


def seed_all(seed: int) -> None:
    """Seeds every generator that nnU-Net draws from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - nnU-Net draws from NumPy's global generator
    torch.manual_seed(seed)
