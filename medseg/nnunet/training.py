"""The training of one fold: what to resume, what to start anew, what to report."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medseg.config import TaskConfig
from medseg.nnunet.checkpoints import load_checkpoint, safe_types
from medseg.nnunet.paths import available_cpus, environment
from medseg.nnunet.preprocessing import preprocessed
from medseg.nnunet.raw import prepared_hashes
from medseg.nnunet.settings import record_path
from medseg.nnunet.workers import die_with_parent
from medseg.project import Manifest, UserError, fingerprint, lock, progress, write_json
from medseg.tracking import Tracker, is_behind, masked, open_run

FINAL, LATEST, BEST = "checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth"

SUPERSEDED = "superseded"
"""Where, beside the folds, a fold's folder goes when its training starts anew."""


def train(config: TaskConfig, fold: int | str | None = None) -> dict[str, Any]:
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
        fold: 0 to 4, or ``all``; None means the config's.

    Returns:
        ``fold``, ``epochs``, ``train_loss``, ``val_loss``, ``mean_Dice``, ``ema_Dice``, ``Dice``
        (label to value) of the last epoch, ``checkpoint`` (relative to the data root), ``run_id``
        (MLflow). Values that are not finite are None.

    Raises:
        UserError: The dataset is not preprocessed; there is no such fold or trainer; a setting is
            wrong; with ``run_validation_only``, the fold has no final checkpoint.
    """
    fold = config.fold if fold is None else fold
    place = config.root.relative(config.fold_folder(fold)).replace("/", "_")
    with lock(config.root, f"train-{place}"):  # two configs may name one folder
        return _train(config, fold)


def _train(config: TaskConfig, fold: int | str) -> dict[str, Any]:
    folder = config.fold_folder(fold)
    if config.run_validation_only:
        require_final(config, fold)
    data = preprocessed(config)
    identity = fingerprint(
        [],
        {
            "dataset": data["dataset_hash"],
            "plans": data["plans_hash"],
            "split": _split_of(config, fold),
        },
    )
    with environment(config, nnUNet_n_proc_DA=str(_augmentation_processes(config))):
        from medseg.nnunet.trainer import make_trainer

        trainer = make_trainer(config, fold)
        settings = trainer.settings()
        record = {"data": identity, "settings": settings}
        finished = Manifest(folder, "train")
        if config.run_validation_only or finished.is_done(fingerprint([], record)):
            progress(f"fold {fold} is trained already")
            return _finished_before(config, trainer, finished, data)
        checkpoint = _newest(folder)
        if checkpoint is not None:
            reason = _why_anew(config, folder, record, checkpoint, trainer)
            if reason:
                kept = _supersede(folder)
                progress(f"fold {fold} starts anew: {reason}; the old one is kept in {kept}")
                checkpoint = None
            elif checkpoint.name == FINAL and _epochs(checkpoint) >= trainer.num_epochs:
                progress(f"fold {fold} is trained already; its settings are those of its training")
                return _finished_before(config, trainer, finished, data)
        folder.mkdir(parents=True, exist_ok=True)
        with open_run(config, fold) as tracker:
            finished.path.unlink(missing_ok=True)
            write_json(record_path(folder), {**record, "cases": _cases(config, data)})
            _run(config, trainer, checkpoint, tracker, data)
            result = _result(config, trainer, folder, tracker.run_id)
    finished.record(fingerprint([], record), [folder / FINAL], result)
    return result


def require_final(config: TaskConfig, fold: int | str) -> Path:
    """The final checkpoint of a fold.

    Raises:
        UserError: The fold's training is not finished.
    """
    path = config.fold_folder(fold) / FINAL
    if not path.is_file():
        raise UserError(f"fold {fold} has no {FINAL} in {path.parent}: finish its training first.")
    return path


def _finished_before(
    config: TaskConfig, trainer: Any, finished: Manifest, data: dict[str, Any]
) -> dict[str, Any]:
    """The result of a training that ended earlier; what MLflow has not taken then, it gets now."""
    folder = finished.folder
    if is_behind(config, trainer.fold):
        log = load_checkpoint(folder / FINAL, mmap=True)["logging"]
        trainer.logger.my_fantastic_logging = log
        with open_run(config, trainer.fold) as tracker:
            tracker.params(_parameters(config, trainer, data))
            for epoch in range(len(log["epoch_end_timestamps"])):
                _log(trainer, tracker, epoch)
            _artifacts(config, trainer, tracker, sorted(folder.glob("training_log_*.txt"))[-1:])
    return dict(finished.read().get("result") or _result(config, trainer, folder, ""))


# --- what to do with a fold ---


def _split_of(config: TaskConfig, fold: int | str) -> Any:
    path = config.preprocessed_folder / "splits_final.json"
    if fold == "all":
        return "all"
    splits = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(fold, int) or not 0 <= fold < len(splits):
        raise UserError(
            f"fold: there is no fold {fold}; {path.name} has the folds 0 to {len(splits) - 1}, and "
            "'all' trains on every case."
        )
    return splits[fold]


def _newest(folder: Path) -> Path | None:
    """The checkpoint with the most epochs; one that cannot be read is passed over."""
    found: list[tuple[int, int, Path]] = []
    broken: list[UserError] = []
    # Of equal ones, the later in nnU-Net's order of saving: latest, best, final.
    for rank, name in enumerate((LATEST, BEST, FINAL)):
        if (folder / name).is_file():
            try:
                found.append((_epochs(folder / name), rank, folder / name))
            except UserError as error:
                broken.append(error)
    if not found and broken:
        raise broken[0]
    for unreadable in broken:
        progress(f"passed over: {unreadable}")
    return max(found)[2] if found else None


def _epochs(checkpoint: Path) -> int:
    return int(load_checkpoint(checkpoint, mmap=True)["current_epoch"])


def _why_anew(
    config: TaskConfig, folder: Path, record: dict[str, Any], checkpoint: Path, trainer: Any
) -> str:
    try:
        before = json.loads(record_path(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # trained by nnU-Net's own command
        plans = load_checkpoint(checkpoint, mmap=True)["init_args"]["plans"]
        return "" if plans == trainer.plans_manager.plans else "the plans have changed"
    if before["data"] != record["data"]:
        return "the dataset, its split or the plans have changed"
    changed = sorted(
        name
        for name in before["settings"].keys() | record["settings"].keys()
        if before["settings"].get(name) != record["settings"].get(name)
    )
    if changed and not config.continue_training:
        return f"{', '.join(changed)} changed and continue_training is false"
    return ""


def trained_cases(config: TaskConfig, fold: int | str | None = None) -> dict[str, str]:
    """Hashes of the cases that a fold's training was given, and of those refused before it.

    Args:
        config: The task's config.
        fold: The fold; None means the config's.

    Returns:
        Case to the hash that :func:`~medseg.nnunet.raw.case_hashes` gives for the same files.
    """
    found = prepared_hashes(config)
    refused = Manifest(config.raw_folder, "prepare_dataset").read().get("result", {})
    try:
        text = record_path(config.fold_folder(fold)).read_text(encoding="utf-8")
        trained = dict(json.loads(text)["cases"])
    except (OSError, ValueError, KeyError):  # trained by nnU-Net's own command
        return found
    return {case: found[case] for case in refused.get("failed", {}) if case in found} | trained


def _cases(config: TaskConfig, data: dict[str, Any]) -> dict[str, str]:
    """What the preprocessed dataset was made of; unknown where the raw one has changed since."""
    raw = Manifest(config.raw_folder, "prepare_dataset").read().get("result", {})
    return prepared_hashes(config) if raw.get("dataset_hash") == data["dataset_hash"] else {}


def _supersede(folder: Path) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    target = folder.parent / SUPERSEDED / f"{folder.name}-{stamp}"
    target.parent.mkdir(exist_ok=True)
    folder.replace(target)
    return target


# --- the training itself ---


def _run(
    config: TaskConfig,
    trainer: Any,
    checkpoint: Path | None,
    tracker: Tracker,
    data: dict[str, Any],
) -> None:
    import torch

    trainer.begin()
    with (
        _threads(trainer.device.type),
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
                with redirect_stdout(console):
                    _report(trainer, tracker, epoch, start)

            trainer.after_epoch = report
            with redirect_stdout(console):
                tracker.params(_parameters(config, trainer, data))
                _announce(trainer, start, checkpoint)
                for epoch in range(start):  # what a store that was away has missed
                    _log(trainer, tracker, epoch)
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


def _report(trainer: Any, tracker: Tracker, epoch: int, start: int) -> None:
    values = _values(trainer, epoch)
    _log(trainer, tracker, epoch)
    times = [_values(trainer, each)["epoch_seconds"] for each in range(start, epoch + 1)]
    left = (trainer.num_epochs - epoch - 1) * sum(times) / len(times)
    dice = ", ".join(
        f"{name.removeprefix('Dice_')} {value:.3f}"
        for name, value in values.items()
        if name.startswith("Dice_")
    )
    progress(
        f"epoch {epoch + 1}: train loss {values['train_loss']:.4f}, val loss "
        f"{values['val_loss']:.4f}, Dice {values['mean_Dice']:.3f} ({dice}), "
        f"{values['epoch_seconds']:.1f} s, {_duration(left)} left",
        epoch + 1,
        trainer.num_epochs,
    )


def _log(trainer: Any, tracker: Tracker, epoch: int) -> None:
    ended = trainer.logger.my_fantastic_logging["epoch_end_timestamps"][epoch]
    tracker.metrics(_values(trainer, epoch), step=epoch, timestamp=float(ended))


def _values(trainer: Any, epoch: int) -> dict[str, float]:
    logged = trainer.logger.my_fantastic_logging
    per_class = logged["dice_per_class_or_region"][epoch]
    return {
        "train_loss": float(logged["train_losses"][epoch]),
        "val_loss": float(logged["val_losses"][epoch]),
        **{
            f"Dice_{name}": float(value)
            for name, value in zip(_label_names(trainer), per_class, strict=True)
        },
        "mean_Dice": float(logged["mean_fg_dice"][epoch]),
        "ema_Dice": float(logged["ema_fg_dice"][epoch]),
        "lr": float(logged["lrs"][epoch]),
        "epoch_seconds": float(
            logged["epoch_end_timestamps"][epoch] - logged["epoch_start_timestamps"][epoch]
        ),
    }


def _label_names(trainer: Any) -> list[str]:
    """Names in the order of nnU-Net's per-class Dice: by value, or regions as they are declared."""
    labels = {
        name: value
        for name, value in trainer.dataset_json["labels"].items()
        if name not in ("background", "ignore")
    }
    if trainer.label_manager.has_regions:
        return list(labels)
    return sorted(labels, key=lambda name: int(labels[name]))


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
    logged = trainer.logger.my_fantastic_logging
    if not logged["epoch_end_timestamps"]:  # this trainer has not run
        content = load_checkpoint(folder / FINAL, mmap=True)
        logged = trainer.logger.my_fantastic_logging = content["logging"]
    epoch = len(logged["epoch_end_timestamps"]) - 1
    values = {
        name: value if math.isfinite(value) else None
        for name, value in _values(trainer, epoch).items()
    }
    return {
        "fold": trainer.fold,
        "epochs": epoch + 1,
        **{name: values[name] for name in ("train_loss", "val_loss", "mean_Dice", "ema_Dice")},
        "Dice": {name: values[f"Dice_{name}"] for name in _label_names(trainer)},
        "checkpoint": config.root.relative(folder / FINAL),
        "run_id": run_id,
    }


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


# --- processes and threads ---


def _augmentation_processes(config: TaskConfig) -> int:
    """nnU-Net's worker processes for augmentation.

    A GPU waits for them: nnU-Net's own number, at most the CPUs at hand. On a CPU they would take
    from the training what they give, and cost its reproducibility, so augmentation runs in
    between.
    """
    from medseg.nnunet.devices import choose_device

    if choose_device(config).type == "cpu":
        return 0
    return config.num_processes or min(available_cpus(), 12)


@contextmanager
def _threads(device: str) -> Iterator[None]:
    """All CPUs for a training on the CPU, one thread beside a GPU, as nnU-Net's command has it."""
    import torch

    before = torch.get_num_threads()
    if device == "cuda":
        torch.set_num_threads(1)
        torch.backends.cudnn.benchmark = True
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cpus())
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
