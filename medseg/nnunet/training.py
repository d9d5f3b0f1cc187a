"""The training of one fold, and what is reported of it."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from medseg.config import Labels, TaskConfig
from medseg.nnunet.checkpoints import FINAL, load_checkpoint, safe_types
from medseg.nnunet.devices import augmentation_processes, threads
from medseg.nnunet.history import History, describe
from medseg.nnunet.paths import environment
from medseg.nnunet.preprocessing import preprocessed, split_of
from medseg.nnunet.resume import preprocessed_cases, require_final, resume, write_record
from medseg.nnunet.workers import die_with_parent
from medseg.project import Manifest, fingerprint, progress
from medseg.tracking import Tracker, is_behind, masked, open_run


def train(config: TaskConfig) -> dict[str, Any]:
    """Trains one fold with nnU-Net's own trainer.

    Results lie where nnU-Net puts them (``checkpoint_final.pth``, ``checkpoint_best.pth``,
    ``progress.png``, the log), and ``nnUNetv2_predict`` works on them. Every epoch is reported to
    MLflow: ``train_loss``, ``val_loss``, ``Dice_<label>``, ``mean_Dice`` and ``ema_Dice``
    (nnU-Net's pseudo Dice, on patches), ``lr``, ``epoch_seconds``.

    What happens to a fold that has been trained before, wholly or in part:

    * Dataset, split or plans have changed: it starts anew.
    * The training was interrupted: it goes on from its newest checkpoint. After SIGTERM that is
      the last finished epoch; after SIGKILL or a crash, the last one saved (``save_every``).
    * It was finished with the same settings: nothing is done.
    * Settings have changed, ``continue_training: true``: an interrupted training goes on with the
      new ones; a finished one goes on where ``num_epochs`` was raised, else it is kept as it is.
    * Settings have changed, ``continue_training: false``: it starts anew.

    Starting anew moves the old folder to ``superseded/``, beside the folds; nothing is deleted.

    Args:
        config: The task's config.

    Returns:
        ``fold``, ``epochs``, ``train_loss``, ``val_loss``, ``mean_Dice``, ``ema_Dice``, ``Dice``
        (label to value) of the last epoch, ``checkpoint`` (relative to the data root), ``run_id``
        (MLflow). Values that are not finite are None.

    Raises:
        UserError: The dataset is not preprocessed; there is no such fold or trainer; a setting is
            wrong; with ``run_validation_only``, the fold has no final checkpoint.
    """
    folder = config.fold_folder()
    if config.run_validation_only:
        require_final(config)
    data, split = preprocessed(config), split_of(config)
    identity = fingerprint(
        {
            "dataset": data["dataset_hash"],
            "plans": data["plans_hash"],
            "split": split if isinstance(split, str) else asdict(split),
        }
    )
    with environment(config, nnUNet_n_proc_DA=str(augmentation_processes(config))):
        from medseg.nnunet.trainer import make_trainer

        trainer = make_trainer(config)
        settings = trainer.settings()
        record = {"data": identity, "settings": settings}
        finished = Manifest(folder, "train")
        if config.run_validation_only or finished.is_done(fingerprint(record)):
            progress(f"fold {config.fold} is trained already")
            return _finished_before(config, trainer, finished, data)
        resumption = resume(config, record, trainer)
        if resumption.finished:
            return _finished_before(config, trainer, finished, data)
        folder.mkdir(parents=True, exist_ok=True)
        with open_run(config) as tracker:
            finished.forget()
            cases = preprocessed_cases(config, data["dataset_hash"])
            write_record(config, {**record, "cases": cases})
            _run(config, trainer, resumption.checkpoint, tracker, data)
            result = _result(config, trainer, folder, tracker.run_id)
    finished.record(fingerprint(record), [folder / FINAL], result)
    return result


def _finished_before(
    config: TaskConfig, trainer: Any, finished: Manifest, data: dict[str, Any]
) -> dict[str, Any]:
    """The result of a training that ended earlier; what MLflow has not taken then, it gets now."""
    folder = finished.folder
    if is_behind(config):
        history = _history(trainer, load_checkpoint(folder / FINAL, mmap=True)["logging"])
        with open_run(config) as tracker:
            tracker.params(_parameters(config, trainer, data))
            for epoch in range(len(history)):
                _log(history, tracker, epoch)
            _artifacts(config, trainer, tracker, sorted(folder.glob("training_log_*.txt"))[-1:])
    return dict(finished.read().get("result") or _result(config, trainer, folder, ""))


# --- the training itself ---


def _run(
    config: TaskConfig,
    trainer: Any,
    checkpoint: Path | None,
    tracker: Tracker,
    data: dict[str, Any],
) -> None:
    trainer.begin()
    with (
        threads(trainer.device.type),
        Path(trainer.log_file).open("a", encoding="utf-8") as log,
        _workers_end_with_us(),
    ):
        console = sys.stdout
        with redirect_stdout(log):
            if checkpoint is not None:
                with torch.serialization.safe_globals(safe_types()):
                    trainer.load_checkpoint(str(checkpoint))
            else:
                trainer.initialize()
            start = int(trainer.current_epoch)

            def report(epoch: int) -> None:
                history = _history(trainer)
                with redirect_stdout(console):
                    _log(history, tracker, epoch)
                    progress(
                        describe(history, trainer.num_epochs, start), epoch + 1, trainer.num_epochs
                    )

            trainer.after_epoch = report
            with redirect_stdout(console):
                tracker.params(_parameters(config, trainer, data))
                _announce(trainer, start, checkpoint)
                history = _history(trainer)
                for epoch in range(start):  # what a store that was away has missed
                    _log(history, tracker, epoch)
            try:
                trainer.run_training()
            except BaseException:
                with suppress(OSError):  # a full disk must not hide what went wrong
                    trainer.save_completed()
                raise
            finally:
                trainer.close()
                with redirect_stdout(console):
                    _artifacts(config, trainer, tracker, [Path(log.name)])


def _announce(trainer: Any, start: int, checkpoint: Path | None) -> None:
    how = "bfloat16" if trainer.bfloat16 else "float32"
    precision = "mixed precision" if trainer.device.type == "cuda" else how
    resumed = f", resumed from {checkpoint.name}" if checkpoint is not None else ""
    progress(
        f"fold {trainer.fold}: epochs {start + 1} to {trainer.num_epochs} on "
        f"{trainer.device.type} in {precision}{resumed}"
    )


def _log(history: History, tracker: Tracker, epoch: int) -> None:
    tracker.metrics(history.values(epoch), step=epoch, timestamp=history.ended[epoch])


def _history(trainer: Any, log: dict[str, Any] | None = None) -> History:
    log = trainer.logger.get_checkpoint() if log is None else log
    dataset = trainer.dataset_json
    labels = Labels.of(dataset["labels"], dataset.get("regions_class_order"))
    return History.of_log(log, labels.per_class)


def _parameters(config: TaskConfig, trainer: Any, data: dict[str, Any]) -> dict[str, Any]:
    plain = {
        name: value
        for name, value in config.model_dump(mode="json").items()
        if name not in ("bundle_config", "fold")
    }
    return {
        **plain,
        "fold": trainer.fold,
        "trainer": trainer.settings(),
        "plans": {
            name: data[name] for name in ("patch_size", "spacing", "batch_size", "normalization")
        },
        "hash": {"dataset": data["dataset_hash"], "plans": data["plans_hash"]},
        "device": str(trainer.device),
        "bfloat16": trainer.bfloat16,
        "version": {
            name: version(name) for name in ("kfp-medseg", "nnunetv2", "torch", "numpy", "mlflow")
        },
    }


def _artifacts(config: TaskConfig, trainer: Any, tracker: Tracker, logs: list[Path]) -> None:
    folder = Path(trainer.output_folder)
    for path in (folder / "progress.png", folder.parent / "plans.json", *logs):
        if path.is_file():
            tracker.artifact(path, f"fold_{trainer.fold}")
    # The config goes along without a password that its tracking_uri may hold.
    copy = folder / ".medseg" / config.path.name
    with suppress(OSError):  # a full disk must not hide what went wrong
        copy.write_text(masked(config.path.read_text(encoding="utf-8")), encoding="utf-8")
        tracker.artifact(copy, f"fold_{trainer.fold}")


def _result(config: TaskConfig, trainer: Any, folder: Path, run_id: str) -> dict[str, Any]:
    history = _history(trainer)
    if not history:  # this trainer has not run
        history = _history(trainer, load_checkpoint(folder / FINAL, mmap=True)["logging"])
    epoch = len(history) - 1
    values = {
        name: value if math.isfinite(value) else None
        for name, value in history.values(epoch).items()
    }
    return {
        "fold": trainer.fold,
        "epochs": epoch + 1,
        **{name: values[name] for name in ("train_loss", "val_loss", "mean_Dice", "ema_Dice")},
        "Dice": {name: values[f"Dice_{name}"] for name in history.structures},
        "checkpoint": config.root.relative(folder / FINAL),
        "run_id": run_id,
    }


_trains = False
_registered = False


@contextmanager
def _workers_end_with_us() -> Iterator[None]:
    """Lets processes forked inside the block end with this one.

    nnU-Net forks its augmentation workers; after a SIGKILL of the training they would go on.
    """
    global _trains, _registered
    parent = os.getpid()

    def in_child() -> None:
        if _trains and os.getppid() == parent:
            die_with_parent(parent)

    if not _registered:
        os.register_at_fork(after_in_child=in_child)
        _registered = True
    _trains = True
    try:
        yield
    finally:
        _trains = False
