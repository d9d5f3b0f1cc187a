"""What to do with a fold that has been trained before, wholly or in part."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medseg.config import TaskConfig
from medseg.nnunet.checkpoints import BEST, FINAL, LATEST, load_checkpoint
from medseg.nnunet.raw import dataset_record, prepared_hashes
from medseg.nnunet.trainer import ExtendedTraining
from medseg.project import UserError, progress, read_json, write_json

SUPERSEDED = "superseded"
"""Where, beside the folds, a fold's folder goes when its training starts anew."""


@dataclass(frozen=True)
class Resumption:
    """What to do with a fold.

    Attributes:
        finished: It is trained with these settings, or with others that are to be kept.
        checkpoint: The checkpoint to go on from; None where the training starts at its beginning.
    """

    finished: bool
    checkpoint: Path | None


def decide(config: TaskConfig, record: dict[str, Any], trainer: ExtendedTraining) -> Resumption:
    """Decides by the newest checkpoint; a fold that must start anew is moved aside.

    Args:
        config: The task's config.
        record: ``data`` and ``settings`` of the training to come, and ``weights`` where it starts
            from a model.
        trainer: The trainer of the training to come.
    """
    folder, fold = config.fold_folder(), config.fold
    checkpoint = _newest(folder)
    if checkpoint is None:
        return Resumption(False, None)
    reason = _why_anew(config, record, checkpoint, trainer)
    if reason:
        kept = supersede(folder)
        progress(f"fold {fold} starts anew: {reason}; the old one is kept in {kept}")
        return Resumption(False, None)
    if checkpoint.name == FINAL and _epochs(checkpoint) >= trainer.num_epochs:
        progress(f"fold {fold} is trained already; its settings are those of its training")
        return Resumption(True, checkpoint)
    return Resumption(False, checkpoint)


def write_record(config: TaskConfig, record: dict[str, Any]) -> None:
    """Notes in the fold's folder what its training is given.

    Args:
        config: The task's config.
        record: ``data``, ``settings`` (see :func:`decide`), ``cases`` (case to hash), and
            ``weights`` (a hash) where it starts from a model.
    """
    write_json(_record_path(config.fold_folder()), record)


def read_record(config: TaskConfig) -> dict[str, Any]:
    """What the fold's training was given; empty for one that nnU-Net's own command trained."""
    try:
        return dict(read_json(_record_path(config.fold_folder()), {}))
    except (OSError, UserError):
        return {}


def _record_path(folder: Path) -> Path:
    return folder / ".medseg" / "training.json"


def require_final(config: TaskConfig) -> Path:
    """The final checkpoint of the config's fold.

    Raises:
        UserError: The fold's training is not finished.
    """
    path = config.fold_folder() / FINAL
    if not path.is_file():
        raise UserError(
            f"fold {config.fold} has no {FINAL} in {path.parent}: finish its training first."
        )
    return path


def trained_cases(config: TaskConfig) -> dict[str, str]:
    """Hashes of the cases that a fold's training was given, and of those refused before it.

    Args:
        config: The task's config.

    Returns:
        Case to the hash that :func:`~medseg.dataset.case_hashes` gives for the same files.
    """
    hashes = prepared_hashes(config)
    trained = read_record(config).get("cases")
    if trained is None:  # trained by nnU-Net's own command
        return hashes
    refused = dataset_record(config).get("failed", {})
    return {case: hashes[case] for case in refused if case in hashes} | dict(trained)


def preprocessed_cases(config: TaskConfig, dataset_hash: str) -> dict[str, str]:
    """What the preprocessed dataset was made of; unknown where the raw one has changed since.

    Args:
        config: The task's config.
        dataset_hash: Of the preprocessed dataset.
    """
    current = dataset_record(config).get("dataset_hash") == dataset_hash
    return prepared_hashes(config) if current else {}


def _newest(folder: Path) -> Path | None:
    """The checkpoint with the most epochs; one that cannot be read is passed over."""
    checkpoints: list[tuple[int, bool, int, Path]] = []
    broken: list[UserError] = []
    for name in (LATEST, BEST, FINAL):
        path = folder / name
        if path.is_file():
            try:
                # Of the same epoch the latest is newer than the best where a session was given
                # other weights after it.
                rank = (_epochs(path), name == FINAL, path.stat().st_mtime_ns)
                checkpoints.append((*rank, path))
            except UserError as error:
                broken.append(error)
    if not checkpoints and broken:
        raise broken[0]
    for unreadable in broken:
        progress(f"passed over: {unreadable}")
    return max(checkpoints)[-1] if checkpoints else None


def _epochs(checkpoint: Path) -> int:
    return int(load_checkpoint(checkpoint, mmap=True)["current_epoch"])


def _why_anew(
    config: TaskConfig, record: dict[str, Any], checkpoint: Path, trainer: ExtendedTraining
) -> str:
    before = read_record(config)
    if not before:  # trained by nnU-Net's own command
        plans = load_checkpoint(checkpoint, mmap=True)["init_args"]["plans"]
        return "" if plans == trainer.plans_manager.plans else "the plans have changed"
    if before["data"] != record["data"]:
        return "the dataset, its split or the plans have changed"
    if before.get("weights") != record.get("weights"):
        return "the model that it starts from has changed"
    changed = sorted(
        name
        for name in before["settings"].keys() | record["settings"].keys()
        if before["settings"].get(name) != record["settings"].get(name)
    )
    if changed and not config.continue_training:
        return f"{', '.join(changed)} changed and continue_training is false"
    return ""


def supersede(folder: Path) -> Path:
    """Moves a fold's folder aside, to ``superseded/`` beside the folds.

    Returns:
        Where it is now.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    target = folder.parent / SUPERSEDED / f"{folder.name}-{stamp}"
    target.parent.mkdir(exist_ok=True)
    folder.replace(target)
    return target
