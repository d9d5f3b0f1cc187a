"""The settings of a training: from the config to nnU-Net's trainer, and from a trained fold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medseg.config import TaskConfig

CONFIG_FIELDS = {
    "num_epochs": "num_epochs",
    "iterations_per_epoch": "num_iterations_per_epoch",
    "val_iterations_per_epoch": "num_val_iterations_per_epoch",
    "initial_lr": "initial_lr",
    "save_every": "save_every",
}
"""Fields of the config and the attributes of nnU-Net's trainer that they set."""


def trained_settings(config: TaskConfig, fold: int | str | None = None) -> dict[str, Any]:
    """The settings that a fold was trained with.

    Its training recorded them. For a fold that nnU-Net's own command trained they are the
    config's, which need not be those of its trainer class.

    Args:
        config: The task's config.
        fold: The fold; None means the config's.

    Returns:
        Settings by the names of nnU-Net's trainer: ``num_epochs``, ``num_iterations_per_epoch``,
        ``initial_lr`` and more; and ``seed``.
    """
    settings = {name: getattr(config, field) for field, name in CONFIG_FIELDS.items()}
    settings["seed"] = config.seed
    try:
        record = json.loads(record_path(config.fold_folder(fold)).read_text(encoding="utf-8"))
        settings.update(record["settings"])
    except (OSError, ValueError, KeyError, TypeError):  # none, or not one of ours
        pass
    return settings


def record_path(folder: Path) -> Path:
    """Where a training records its settings in the fold's folder."""
    return folder / ".medseg" / "training.json"
