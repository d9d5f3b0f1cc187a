"""A trained fold, asked instead of read: what other rooms want to know of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medseg.config import TaskConfig
from medseg.nnunet.checkpoints import BEST, FINAL, LATEST, load_checkpoint
from medseg.nnunet.history import History
from medseg.nnunet.plans import PlanFacts, plan_facts
from medseg.nnunet.preprocessing import Split, split_of, splits_path
from medseg.nnunet.raw import dataset_record
from medseg.nnunet.resume import read_record, trained_cases
from medseg.nnunet.trainer import CONFIG_FIELDS
from medseg.project import UserError, read_json


class TrainedFold:
    """The config's fold as its training left it; every property reads when it is asked for.

    Args:
        config: The task's config.

    Attributes:
        folder: The fold's folder.
        final: Its final checkpoint, there or not.
        plans_file: The plans that it was trained with, beside the folds.
        dataset_file: nnU-Net's ``dataset.json``, beside the folds.
        splits_file: The split of the cases into folds.
    """

    def __init__(self, config: TaskConfig) -> None:
        self._config = config
        self.folder = config.fold_folder()
        self.final = self.folder / FINAL
        self.plans_file = config.results_folder / "plans.json"
        self.dataset_file = config.results_folder / "dataset.json"
        self.splits_file = splits_path(config)

    @property
    def best(self) -> Path:
        """The checkpoint with the best Dice on patches, where there is one, else the final one."""
        path = self.folder / BEST
        return path if path.is_file() else self.final

    @property
    def newest(self) -> Path:
        """The final checkpoint; of an unfinished training the latest, or the best.

        Raises:
            UserError: The fold has none.
        """
        for name in (FINAL, LATEST, BEST):
            if (self.folder / name).is_file():
                return self.folder / name
        where = self._config.root.relative(self.folder)
        raise UserError(f"Fold {self._config.fold} has no checkpoint in {where}.")

    @property
    def history(self) -> History:
        """What the training has logged, from :attr:`newest`.

        Raises:
            UserError: The fold has no checkpoint, or its newest cannot be read.
        """
        path = self.newest
        try:
            log = load_checkpoint(path, mmap=True)["logging"]
            return History.of_log(log, self._config.label_set.per_class)
        except (KeyError, TypeError):
            raise UserError(f"The checkpoint {path} holds no log of nnU-Net.") from None

    @property
    def settings(self) -> dict[str, Any]:
        """What it was trained with, by the names of nnU-Net's trainer, and ``seed``.

        The training recorded them. For a fold that nnU-Net's own command trained they are the
        config's, which need not be those of its trainer class.
        """
        config = self._config
        settings = {name: getattr(config, field) for field, name in CONFIG_FIELDS.items()}
        return {"seed": config.seed, **settings, **read_record(config).get("settings", {})}

    @property
    def split(self) -> Split | None:
        """The cases that it trains on and those that it validates; None before the split.

        Also of the fold ``all`` and of one that the split does not have.
        """
        try:
            split = split_of(self._config)
        except (UserError, OSError, ValueError):
            return None
        return split if isinstance(split, Split) else None

    @property
    def cases(self) -> dict[str, str]:
        """Hashes of the cases that the training was given, and of those refused before it."""
        return trained_cases(self._config)

    @property
    def origin(self) -> str:
        """SHA-256 of the model that its training started from; empty for one from scratch."""
        return str(read_record(self._config).get("weights", ""))

    @property
    def plan(self) -> PlanFacts | None:
        """What nnU-Net planned for it; None where there are no plans that can be read."""
        try:
            plans = read_json(self.plans_file)
            return plan_facts(plans, self._config.configuration)
        except (OSError, KeyError, TypeError, UserError):
            return None

    @property
    def dataset_hash(self) -> str:
        """The hash of nnU-Net's raw dataset; empty before ``prepare_dataset``."""
        return str(dataset_record(self._config).get("dataset_hash", ""))
