"""nnU-Net's checkpoints, read without unpickling code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseg.project import UserError

FINAL, LATEST, BEST = "checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth"
"""nnU-Net's names in a fold's folder."""


def load_checkpoint(path: str | Path, *, map_location: Any = "cpu", mmap: bool = False) -> Any:
    """Reads a checkpoint of nnU-Net's trainer with ``weights_only=True``.

    Args:
        path: A ``checkpoint_*.pth``.
        map_location: Where tensors go, as in ``torch.load``.
        mmap: Leave tensors on the disk until they are used; quick where only the rest is wanted.

    Returns:
        nnU-Net's dictionary: ``network_weights``, ``optimizer_state``, ``grad_scaler_state``,
        ``logging``, ``_best_ema``, ``current_epoch``, ``init_args``, ``trainer_name``,
        ``inference_allowed_mirroring_axes``.

    Raises:
        UserError: The file is missing, truncated, or holds anything but tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"the checkpoint {path} does not exist: train the fold first.")
    try:
        with torch.serialization.safe_globals(safe_types()):
            content = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"the checkpoint {path} cannot be read ({reason}): it is truncated or not one of "
            "nnU-Net's. Remove it, then run the same command again."
        ) from None
    if not isinstance(content, dict) or "network_weights" not in content:
        raise UserError(f"{path} is no nnU-Net checkpoint: it holds no network_weights.")
    return content


@dataclass(frozen=True)
class Checkpoint:
    """What other rooms want of one of nnU-Net's checkpoints.

    Attributes:
        weights: The network's weights.
        optimizer: The optimizer's state.
        epochs: Finished epochs.
        best_dice: The highest moving average of the pseudo Dice so far; 0 where there is none.
        header: What the network is built from: ``init_args`` (plans, configuration, …),
            ``trainer_name`` and ``inference_allowed_mirroring_axes``.
    """

    weights: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, Any]
    epochs: int
    best_dice: float
    header: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Reads a file; errors are those of :func:`load_checkpoint`."""
        content = load_checkpoint(path)
        return cls(
            content["network_weights"],
            content["optimizer_state"],
            int(content["current_epoch"]),
            float(content["_best_ema"] or 0),
            {
                key: content[key]
                for key in ("init_args", "trainer_name", "inference_allowed_mirroring_axes")
            },
        )


def safe_types() -> list[Any]:
    """The types beside torch's own that nnU-Net's checkpoints hold: NumPy's scalars."""
    return [
        np._core.multiarray.scalar,  # type: ignore[attr-defined]
        np.dtype,
        *{type(np.dtype(kind)) for kind in (np.float64, np.float32, np.float16, np.int64)},
    ]


def scheduler_state(initial_lr: float, epochs: int, epoch: int) -> dict[str, Any]:
    """The state of nnU-Net's learning rate schedule, which its checkpoints leave out.

    Args:
        initial_lr: Learning rate of the first epoch.
        epochs: Epochs that were planned.
        epoch: Epochs that are finished.

    Returns:
        What ``PolyLRScheduler.load_state_dict`` takes.
    """
    from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=initial_lr)
    schedule = PolyLRScheduler(optimizer, initial_lr, epochs)
    schedule.step(max(0, min(epoch, epochs) - 1))
    schedule.ctr = schedule.last_epoch = epoch
    state: dict[str, Any] = schedule.state_dict()
    return state
