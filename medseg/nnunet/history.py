"""nnU-Net's log of a training as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medseg.project import duration


@dataclass(frozen=True)
class History:
    """What a training has logged: one value an epoch, the first epoch first.

    Its length is the number of finished epochs.

    Attributes:
        structures: Names of the structures, in the order of their Dice.
        train_losses: Mean loss of the training steps.
        val_losses: Mean loss on patches of the validation cases.
        dice: nnU-Net's pseudo Dice of each structure, counted over patches of the validation
            cases; not a number where a structure did not occur.
        mean_dice: Mean of ``dice``.
        ema_dice: Moving average of ``mean_dice``, by which nnU-Net chooses its best checkpoint.
        learning_rates: Learning rate.
        started: When the epoch began, in seconds since 1970.
        ended: When it ended, in seconds since 1970.
    """

    structures: tuple[str, ...]
    train_losses: tuple[float, ...]
    val_losses: tuple[float, ...]
    dice: tuple[tuple[float, ...], ...]
    mean_dice: tuple[float, ...]
    ema_dice: tuple[float, ...]
    learning_rates: tuple[float, ...]
    started: tuple[float, ...]
    ended: tuple[float, ...]

    @classmethod
    def of_log(cls, log: Mapping[str, Sequence[Any]], structures: Sequence[str]) -> History:
        """The history in nnU-Net's log; an epoch that is not finished is left out.

        Args:
            log: ``logging`` of a checkpoint, or what the trainer's logger gives for one.
            structures: Names in nnU-Net's order of per-class values.

        Raises:
            KeyError: It is no log of nnU-Net.
        """
        epochs = len(log["epoch_end_timestamps"])

        def column(name: str) -> tuple[float, ...]:
            return tuple(float(value) for value in log[name][:epochs])

        return cls(
            structures=tuple(structures),
            train_losses=column("train_losses"),
            val_losses=column("val_losses"),
            dice=tuple(
                tuple(float(value) for value in values)
                for values in log["dice_per_class_or_region"][:epochs]
            ),
            mean_dice=column("mean_fg_dice"),
            ema_dice=column("ema_fg_dice"),
            learning_rates=column("lrs"),
            started=column("epoch_start_timestamps"),
            ended=column("epoch_end_timestamps"),
        )

    def __len__(self) -> int:
        return len(self.ended)

    def seconds(self, epoch: int) -> float:
        """How long an epoch took; epochs count from 0."""
        return self.ended[epoch] - self.started[epoch]

    def values(self, epoch: int) -> dict[str, float]:
        """What is reported of an epoch, by MLflow's names; epochs count from 0."""
        return {
            "train_loss": self.train_losses[epoch],
            "val_loss": self.val_losses[epoch],
            **{
                f"Dice_{name}": value
                for name, value in zip(self.structures, self.dice[epoch], strict=True)
            },
            "mean_Dice": self.mean_dice[epoch],
            "ema_Dice": self.ema_dice[epoch],
            "lr": self.learning_rates[epoch],
            "epoch_seconds": self.seconds(epoch),
        }


def describe(history: History, epochs: int, start: int) -> str:
    """The newest epoch in one line, with the time that is left.

    Args:
        history: The training so far.
        epochs: Epochs that are planned.
        start: The first epoch of this process, from 0: the time that is left goes by its pace.
    """
    epoch = len(history) - 1
    values = history.values(epoch)
    times = [history.seconds(each) for each in range(start, epoch + 1)]
    left = (epochs - epoch - 1) * sum(times) / len(times)
    dice = ", ".join(
        f"{name} {value:.3f}"
        for name, value in zip(history.structures, history.dice[epoch], strict=True)
    )
    return (
        f"epoch {epoch + 1}: train loss {values['train_loss']:.4f}, val loss "
        f"{values['val_loss']:.4f}, Dice {values['mean_Dice']:.3f} ({dice}), "
        f"{values['epoch_seconds']:.1f} s, {duration(left)} left"
    )
