"""The config of a fine-tuning, made of a task's config."""

from __future__ import annotations

from typing import Any

import yaml

from medseg.config.task import FINE_TUNING, TaskConfig, load_config
from medseg.project import UserError, progress, write_text

SUFFIX = "_finetune"
"""Stands behind the name of the task's config."""


def finetuning_config(
    config: TaskConfig,
    *,
    weights: str = "",
    epochs: int = 0,
    iterations_per_epoch: int = 0,
    initial_lr: float = 0,
    freeze_encoder: bool = False,
    new_heads: bool = False,
) -> TaskConfig:
    """The task's config as that of a training that starts from a model.

    A config that names ``pretrained_weights`` is one already, and is returned where nothing is
    asked for beside it. Else a config is written beside it, ``<name>_finetune.yaml``, so that every
    stage that follows finds what was trained. What a config without ``pretrained_weights`` says of
    epochs, learning rate and plans is about a training from scratch and does not count.

    Args:
        config: The task's config.
        weights: The model; empty: the config's ``pretrained_weights``.
        epochs: 0: the config's ``num_epochs``, by default 50.
        iterations_per_epoch: 0: the config's.
        initial_lr: 0: the config's, by default 0.001.
        freeze_encoder: As the config's field.
        new_heads: As the config's field.

    Returns:
        The config to train, for the same fold.

    Raises:
        UserError: No model is named, or a value is out of its range.
    """
    content: dict[str, Any] = yaml.safe_load(config.path.read_text(encoding="utf-8"))
    before = dict(content)
    if not config.pretrained_weights:
        if not weights:
            raise UserError(
                f"nothing says which model the training starts from: name it as weights, or as "
                f"pretrained_weights in {config.path.name}."
            )
        content = {name: value for name, value in content.items() if name not in FINE_TUNING}
    asked = {
        "pretrained_weights": weights,
        "num_epochs": epochs,
        "iterations_per_epoch": iterations_per_epoch,
        "initial_lr": initial_lr,
        "freeze_encoder": freeze_encoder,
        "new_heads": new_heads,
    }
    content |= {name: value for name, value in asked.items() if value}
    if content == before:
        return config
    path = config.path.with_name(f"{config.path.stem}{SUFFIX}.yaml")
    comment = f"# Made by finetune of {config.path.name}, and made anew when it runs again.\n"
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    write_text(path, comment + text)
    progress(f"the config of the fine-tuning is {config.root.relative(path)}")
    made = load_config(path, config.root)
    return made.model_copy(update={"fold": config.fold})
