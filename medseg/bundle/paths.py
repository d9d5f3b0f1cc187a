"""Where the parts of a bundle lie.

``models/fold_F`` holds what a fold's training has made; ``models/model.ts`` is the one to use.
"""

from __future__ import annotations

from pathlib import Path

from medseg.config import TaskConfig


def metadata_file(config: TaskConfig) -> Path:
    """What the model is."""
    return config.bundle_folder / "configs" / "metadata.json"


def models_folder(config: TaskConfig) -> Path:
    """Everything that training has made: nnU-Net's descriptions, and a folder for each fold."""
    return config.bundle_folder / "models"


def descriptions(config: TaskConfig) -> tuple[Path, Path, Path]:
    """nnU-Net's plans, its ``dataset.json``, and the header of its checkpoints."""
    folder = models_folder(config)
    return folder / "plans.json", folder / "dataset.json", folder / "nnunet_checkpoint.pth"


def checkpoint_file(config: TaskConfig) -> Path:
    """The checkpoint of the config's fold that is packaged."""
    return models_folder(config) / f"fold_{config.fold}" / "model.pt"


def model_file(config: TaskConfig) -> Path:
    """The packaged model of the config's fold: a candidate until it is promoted."""
    return checkpoint_file(config).with_name("model.ts")


def ensemble_file(config: TaskConfig) -> Path:
    """The packaged model that a cross-validation has chosen: a candidate until it is promoted."""
    return models_folder(config) / "ensemble" / "model.ts"


def present_model(config: TaskConfig) -> Path:
    """The model to use: the last one that was promoted."""
    return models_folder(config) / "model.ts"


def promotions_file(config: TaskConfig) -> Path:
    """Every judgement on a candidate, with its numbers."""
    return models_folder(config) / "promotions.json"
