"""nnU-Net's log as values, and the line that an epoch gets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from medseg.nnunet import History
from medseg.nnunet.history import describe

LOG: dict[str, list[Any]] = {
    "train_losses": [np.float32(0.5), np.float32(0.25)],
    "val_losses": [0.4, 0.3],
    "dice_per_class_or_region": [[np.float64(0.1), np.nan], [0.3, 0.5]],
    "mean_fg_dice": [0.1, 0.4],
    "ema_fg_dice": [0.1, 0.13],
    "lrs": [0.01, 0.009, 0.008],
    "epoch_start_timestamps": [100.0, 200.0, 300.0],
    "epoch_end_timestamps": [190.0, 270.0],
}
"""Two epochs, and the beginning of a third."""


def test_an_epoch_that_is_not_finished_is_left_out() -> None:
    history = History.of_log(LOG, ("left", "right"))
    assert len(history) == 2
    assert history.learning_rates == (0.01, 0.009)
    first, second = history.values(0), history.values(1)
    assert math.isnan(first.pop("Dice_right"))
    assert first == {
        "train_loss": 0.5, "val_loss": 0.4, "Dice_left": 0.1, "mean_Dice": 0.1, "ema_Dice": 0.1,
        "lr": 0.01, "epoch_seconds": 90.0,
    }  # fmt: skip
    assert second["Dice_right"] == 0.5
    assert {type(value) for value in (*first.values(), *second.values())} == {float}
    assert not History.of_log({key: [] for key in LOG}, ("left", "right"))


def test_a_log_of_something_else() -> None:
    with pytest.raises(KeyError):
        History.of_log({"loss": [1.0]}, ())


def test_the_line_of_an_epoch() -> None:
    history = History.of_log(LOG, ("left", "right"))
    line = "epoch 2: train loss 0.2500, val loss 0.3000, Dice 0.400 (left 0.300, right 0.500), 70.0"
    assert describe(history, 102, 0) == f"{line} s, 2 h 13 min left"
    assert describe(history, 3, 1) == f"{line} s, 70 s left"  # by this process's pace
