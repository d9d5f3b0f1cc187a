"""The training of one fold: at a stretch, or some epochs at a time."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from medseg.config import TaskConfig
from medseg.nnunet.checkpoints import BEST, FINAL, LATEST, load_checkpoint
from medseg.nnunet.console import quiet
from medseg.nnunet.devices import augmentation_processes, threads
from medseg.nnunet.history import History, describe
from medseg.nnunet.paths import environment
from medseg.nnunet.plans import load_plans, plans_path
from medseg.nnunet.preprocessing import preprocessed, split_of
from medseg.nnunet.pretrained import origin
from medseg.nnunet.previous_stage import check_previous_stage
from medseg.nnunet.resume import (
    decide,
    preprocessed_cases,
    read_record,
    require_final,
    write_record,
)
from medseg.nnunet.trainer import make_trainer
from medseg.nnunet.workers import forked_workers_end_with_us
from medseg.project import Manifest, UserError, fingerprint, lock, progress, write_text
from medseg.project.files import remove_stale
from medseg.tracking import Tracker, is_behind, masked, metric_name, open_run

_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED", re.I)
"""What torch says where it raises a plain RuntimeError."""


@dataclass(frozen=True)
class TrainingResult:
    """What the last epoch of a fold's training came to; values that are not finite are None.

    Attributes:
        fold: The fold.
        epochs: Finished epochs.
        train_loss: Mean loss of the training steps.
        val_loss: Mean loss on patches of the validation cases.
        mean_Dice: nnU-Net's pseudo Dice, on patches, over all structures.
        ema_Dice: Its moving average.
        Dice: The pseudo Dice of each structure.
        checkpoint: The final checkpoint, relative to the data root.
        run_id: The MLflow run; empty where the store has not been reached.
    """

    fold: int | str
    epochs: int
    train_loss: float | None
    val_loss: float | None
    mean_Dice: float | None  # noqa: N815 - MLflow's and the record's name
    ema_Dice: float | None  # noqa: N815
    Dice: dict[str, float | None]
    checkpoint: str
    run_id: str

    @property
    def measures(self) -> dict[str, float]:
        """Losses and Dice, as far as they are finite, by MLflow's names (``Dice_<structure>``)."""
        values = {
            "train_loss": self.train_loss,
            "val_loss": self.val_loss,
            "mean_Dice": self.mean_Dice,
            "ema_Dice": self.ema_Dice,
            **{metric_name(f"Dice_{name}"): value for name, value in self.Dice.items()},
        }
        return {name: value for name, value in values.items() if value is not None}


def train(config: TaskConfig) -> TrainingResult:
    """Trains one fold with nnU-Net's own trainer; with ``pretrained_weights`` it starts from these.

    Results lie where nnU-Net puts them (``checkpoint_final.pth``, ``checkpoint_best.pth``,
    ``progress.png``, the log), and ``nnUNetv2_predict`` works on them. Every epoch is reported to
    MLflow: ``train_loss``, ``val_loss``, ``Dice_<label>``, ``mean_Dice`` and ``ema_Dice``
    (nnU-Net's pseudo Dice, on patches), ``lr``, ``epoch_seconds``.

    What happens to a fold that has been trained before, wholly or in part:

    * Dataset, split, plans or the model that it starts from have changed: it starts anew.
    * The training was interrupted: it goes on from its newest checkpoint. After SIGTERM that is
      the last finished epoch where the process has time to write it: in a local run, also in
      containers, it has. After SIGKILL or a crash, and on a cluster, whose pods have less than a
      second, it may be older, by no more than ``checkpoint_minutes`` of training (as far as an
      epoch is shorter): states are written beside the training, see
      :class:`~medseg.nnunet.keeping.StateKeeper`.
    * It was finished with the same settings: nothing is done.
    * Settings have changed, ``continue_training: true``: an interrupted training goes on with the
      new ones; a finished one goes on where ``num_epochs`` was raised, else it is kept as it is.
    * Settings have changed, ``continue_training: false``: it starts anew.

    Starting anew moves the old folder to ``superseded/``, beside the folds; nothing is deleted.

    Args:
        config: The task's config.

    Returns:
        The last epoch's values.

    Raises:
        UserError: The dataset is not preprocessed; there is no such fold or trainer; a setting is
            wrong; of a cascade, the first stage has not predicted every case; with
            ``run_validation_only``, the fold has no final checkpoint; the model that it starts from
            is missing, or does not fit the task.
    """
    with TrainingSession.open(config) as session:
        session.train()
    return session.result


class TrainingSession:
    """The training of one fold, open for as long as its user likes.

    ::

        with TrainingSession.open(config) as session:
            while not session.finished:
                session.load(weights)
                session.train(epochs=2)
                weights = average(session.weights)

    What happens to a fold that has been trained before is what :func:`train` does to it: sessions
    of some epochs each, one after the other, are one training of all these epochs. The session
    holds the fold's lock and its MLflow run. However it ends, the training goes on after its last
    finished epoch; where the process is killed, no earlier than where the last :meth:`train`
    returned, and ``checkpoint_minutes`` before the kill. An error inside :meth:`train` closes the
    session.

    Attributes:
        finished: Whether all of the config's ``num_epochs`` are trained. The session of a fold
            that was finished before may still be asked for its weights, or be given others.
    """

    def __init__(self, config: TaskConfig) -> None:
        """Use :meth:`open`."""
        self.finished = False
        self._config = config
        self._folder = config.fold_folder()
        self._record = Manifest(self._folder, "train")
        self._inputs = ""  # fingerprint of what the record is about
        self._changed = False  # the record is to be written anew
        self._stack = ExitStack()
        self._tracker: Tracker | None = None
        self._checkpoint: Path | None = None
        self._start = 0
        self._ready = False
        self._closed = False

    # --- its user's ---

    @classmethod
    def open(cls, config: TaskConfig) -> Self:
        """Opens the training of the config's fold.

        Args:
            config: The task's config. Its ``num_epochs`` is the length of the whole training, by
                which the learning rate falls.

        Raises:
            UserError: As for :func:`train`; or somebody else is training this fold.
        """
        session = cls(config)
        with ExitStack() as stack:
            session._stack = stack
            session._open()
            session._stack = stack.pop_all()
        return session

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed = True
        self._stack.__exit__(kind, error, trace)

    def close(self) -> None:
        """Saves what is not saved yet, and gives the fold free."""
        self.__exit__(None, None, None)

    def train(self, epochs: int | None = None) -> None:
        """Trains, and saves the state after the last epoch.

        Args:
            epochs: How many epochs, at least 1; by default, and at most, all that are left.

        Raises:
            ValueError: ``epochs`` is less than 1.
            UserError: The loss is no longer a number, or memory does not suffice; the state after
                the last finished epoch is kept.
        """
        self._check_open()
        if epochs is not None and epochs < 1:
            raise ValueError(f"epochs must be at least 1, not {epochs}")
        if self.finished:
            return
        trainer = self._trainer
        left = trainer.num_epochs - trainer.current_epoch
        end = trainer.current_epoch + (left if epochs is None else min(epochs, left))
        self._announce(end)
        try:
            with self._working(), self._explained():
                trainer.train_until(end)
            self.finished = trainer.current_epoch >= trainer.num_epochs
            self._save()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of the network's weights, on the CPU, by the names of nnU-Net's checkpoints."""
        self._initialize()
        return self._trainer.weights()

    def load(self, weights: Mapping[str, Any]) -> None:
        """Gives the network other weights, which the next epoch starts from.

        The optimizer keeps its momentum. For a finished fold they are the final weights.

        Args:
            weights: Names to tensors or arrays: all that :attr:`weights` has, in the same shapes.

        Raises:
            UserError: They are those of another network.
        """
        self._check_open()
        tensors = {name: torch.as_tensor(value) for name, value in weights.items()}
        shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        own = {name: tuple(value.shape) for name, value in self.weights.items()}
        if shapes != own:
            name = min(name for name, _ in shapes.items() ^ own.items())
            raise UserError(
                f"fold {self._config.fold}: the weights given are those of another network: its "
                f"{name} has the shape {shapes.get(name, 'of nothing')}, here it is "
                f"{own.get(name, 'not there')}. Give weights of a training with the same plans."
            )
        self._trainer.set_weights(tensors)
        self._changed = True

    @property
    def history(self) -> History:
        """What the training has logged so far."""
        if self._ready:
            log = self._trainer.logger.get_checkpoint()
        else:  # it was finished before
            log = load_checkpoint(self._folder / FINAL, mmap=True)["logging"]
        return History.of_log(log, self._config.label_set.per_class)

    @property
    def result(self) -> TrainingResult:
        """The values of the last finished epoch, once there is one."""
        recorded = self._record.read().get("result")
        if self.finished and recorded:
            return TrainingResult(**recorded)
        history = self.history
        values = {
            name: value if math.isfinite(value) else None
            for name, value in history.values(len(history) - 1).items()
        }
        return TrainingResult(
            fold=self._config.fold,
            epochs=len(history),
            train_loss=values["train_loss"],
            val_loss=values["val_loss"],
            mean_Dice=values["mean_Dice"],
            ema_Dice=values["ema_Dice"],
            Dice={name: values[f"Dice_{name}"] for name in history.structures},
            checkpoint=self._config.root.relative(self._folder / FINAL),
            run_id=self._tracker.run_id if self._tracker else "",
        )

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the training session is closed: open another")

    # --- how it begins and ends ---

    def _open(self) -> None:
        config = self._config
        place = config.root.relative(self._folder).replace("/", "_")
        self._stack.enter_context(lock(config.root, f"train-{place}"))
        if config.run_validation_only:
            require_final(config)
        self._data = data = preprocessed(config)
        split = split_of(config)
        identity: dict[str, Any] = {
            "dataset": data.dataset_hash,
            "plans": data.plans_hash,
            "split": split if isinstance(split, str) else asdict(split),
        }
        configuration = load_plans(plans_path(config)).get_configuration(config.configuration)
        if stage := configuration.previous_stage_name:
            seen = data.cases if isinstance(split, str) else [*split.train, *split.val]
            identity["previous_stage"] = check_previous_stage(config, stage, seen)
        with self._environment():
            self._trainer = make_trainer(config)
        record = {"data": fingerprint(identity), "settings": self._trainer.settings()}
        record |= origin(config, read_record(config))
        self._inputs = fingerprint(record)
        self._stack.enter_context(self._recorded())
        if config.run_validation_only or self._record.is_done(self._inputs):
            progress(f"fold {config.fold} is trained already")
            self.finished, self._checkpoint = True, self._folder / FINAL
        else:
            resumption = decide(config, record, self._trainer)
            self.finished, self._checkpoint = resumption.finished, resumption.checkpoint
        if self.finished:
            self._inputs = self._record.read().get("inputs", "")
            self._catch_up()
            return
        if self._checkpoint is None:  # of an own model in the weights' place this is a new start
            record |= origin(config, {})
            self._inputs = fingerprint(record)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._tracker = self._stack.enter_context(open_run(config, trains=True))
        self._record.forget()
        for name in (LATEST, BEST, FINAL):
            remove_stale(self._folder / name)  # of a training that was killed
        self._changed = True
        cases = preprocessed_cases(config, data.dataset_hash)
        write_record(config, {**record, "cases": cases})
        self._initialize()

    def _initialize(self) -> None:
        if self._ready:
            return
        self._check_open()
        trainer = self._trainer
        trainer.begin_log()
        with self._working():
            if self._checkpoint is not None:
                trainer.load_checkpoint(str(self._checkpoint))
            else:
                trainer.initialize()
        self._ready = True
        self._start = trainer.current_epoch
        trainer.after_epoch = self._report
        self._stack.enter_context(self._kept())
        if self._tracker is not None:
            self._tracker.params(self._parameters())
            _log(self.history, self._tracker)  # what a store that was away has missed

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """At the end notes that the fold is finished, unless it ends with an error."""
        yield
        if self.finished and self._changed and self._inputs:
            self._record.record(self._inputs, [self._folder / FINAL], asdict(self.result))

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """At the end saves what is not saved yet, and sends nnU-Net's files to MLflow."""
        try:
            yield
        except BaseException:
            with suppress(OSError):  # a full disk must not hide what went wrong
                self._save()
            raise
        else:
            self._save()
        finally:
            with quiet():
                self._trainer.close()
            if self._tracker is not None:
                self._send_files(self._tracker, [Path(self._trainer.log_file)])

    def _save(self) -> None:
        self._trainer.save_completed(FINAL if self.finished else LATEST)

    def _catch_up(self) -> None:
        """Gives MLflow what it has not taken when the training ended."""
        if not is_behind(self._config):
            return
        with open_run(self._config, trains=True) as tracker:
            tracker.params(self._parameters())
            _log(self.history, tracker)
            self._send_files(tracker, sorted(self._folder.glob("training_log_*.txt"))[-1:])

    # --- nnU-Net at work ---

    def _environment(self) -> Any:
        workers = augmentation_processes(self._config)
        return environment(self._config, nnUNet_n_proc_DA=str(workers))

    @contextmanager
    def _working(self) -> Iterator[None]:
        """nnU-Net gets its folders and threads, and prints into its log."""
        self._console = sys.stdout
        with (
            self._environment(),
            threads(self._trainer.device.type),
            Path(self._trainer.log_file).open("a", encoding="utf-8") as log,
            forked_workers_end_with_us(),
            redirect_stdout(log),
        ):
            yield

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Says what to lower where memory does not suffice."""
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not isinstance(
                error, torch.OutOfMemoryError | MemoryError
            ) and not _OUT_OF_MEMORY.search(str(error)):
                raise
            plan, base = self._data, self._config.configuration
            patch = " × ".join(map(str, plan.patch_size))
            where = "the GPU's memory" if self._trainer.device.type == "cuda" else "memory"
            raise UserError(
                f"fold {self._config.fold}: {where} does not suffice for a batch of "
                f"{plan.batch_size} patches of {patch} voxels: give the stage more, or add to the "
                f"plans a configuration that inherits from {base}, with a smaller batch_size (at "
                "least 2) or patch_size, and name it in configuration; then run train again."
            ) from None

    # --- what is told of it ---

    def _announce(self, end: int) -> None:
        trainer = self._trainer
        how = "bfloat16" if trainer.bfloat16 else "float32"
        precision = "mixed precision" if trainer.device.type == "cuda" else how
        start = trainer.current_epoch
        begun = ""
        if self._checkpoint is not None and start == self._start:
            begun = f", resumed from {self._checkpoint.name}"
        elif start == 0 and self._config.pretrained_weights:
            begun = f", starting from {self._config.pretrained_weights}"
        progress(
            f"fold {trainer.fold}: epochs {start + 1} to {end} on {trainer.device.type} in "
            f"{precision}{begun}"
        )

    def _report(self, epoch: int) -> None:
        history, planned = self.history, self._trainer.num_epochs
        with redirect_stdout(self._console):
            if self._tracker is not None:
                _log(history, self._tracker, epoch)
            progress(describe(history, planned, self._start), epoch + 1, planned)
            problem = self._trainer.keeper.problem()
            if problem:
                progress(
                    f"the checkpoint could not be written ({problem}); the training goes on, and "
                    "it is tried again after every epoch"
                )

    def _parameters(self) -> dict[str, Any]:
        trainer, data = self._trainer, self._data
        plain = {
            name: value
            for name, value in self._config.model_dump(mode="json").items()
            if name not in ("bundle_config", "fold")
        }
        return {
            **plain,
            "fold": trainer.fold,
            "trainer": trainer.settings(),
            "plans": {
                name: getattr(data, name)
                for name in ("patch_size", "spacing", "batch_size", "normalization")
            },
            "hash": {
                "dataset": data.dataset_hash,
                "plans": data.plans_hash,
                **origin(self._config, read_record(self._config)),
            },
            "device": str(trainer.device),
            "bfloat16": trainer.bfloat16,
            "version": {
                name: version(name)
                for name in ("kfp-medseg", "nnunetv2", "torch", "numpy", "mlflow")
            },
        }

    def _send_files(self, tracker: Tracker, logs: list[Path]) -> None:
        config, folder = self._config, self._folder
        for path in (folder / "progress.png", folder.parent / "plans.json", *logs):
            if path.is_file():
                tracker.artifact(path, f"fold_{config.fold}")
        # The config goes along without a password that its tracking_uri may hold.
        copy = folder / ".medseg" / config.path.name
        with suppress(OSError):  # a full disk must not hide what went wrong
            write_text(copy, masked(config.path.read_text(encoding="utf-8")))
            tracker.artifact(copy, f"fold_{config.fold}")


def _log(history: History, tracker: Tracker, start: int = 0) -> None:
    for epoch in range(start, len(history)):
        if math.isfinite(history.ended[epoch]):  # not where another program trained
            tracker.metrics(history.values(epoch), step=epoch, timestamp=history.ended[epoch])
