"""What a cross-validation has chosen: the configurations that vote, and how results are mended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medseg.config import TaskConfig
from medseg.nnunet.checkpoints import FINAL, load_checkpoint
from medseg.nnunet.plans import channel_names, settings_of
from medseg.project import UserError, fingerprint, read_json

ENSEMBLES = "ensembles"
"""nnU-Net's folder for what belongs to several configurations, beside their folders."""

OWN = "plans of the configuration"
"""What differs between configurations, but not between folds of one."""


@dataclass(frozen=True)
class Choice:
    """What find_best_configuration has chosen.

    Attributes:
        configurations: One, or two that vote.
        folds: The folds of each.
        postprocessing: Label values of which only the largest component is kept, step by step.
        dice: Mean Dice of the cross-validation, over all structures, after the post-processing.
        structures: The same of each structure.
        candidates: Of all that were compared: ``configurations``, ``dice``, ``structures``; before
            any post-processing.
    """

    configurations: tuple[str, ...]
    folds: tuple[int, ...]
    postprocessing: tuple[tuple[int, ...], ...]
    dice: float | None
    structures: Mapping[str, float | None]
    candidates: Sequence[Mapping[str, Any]]

    def first(self, config: TaskConfig) -> TaskConfig:
        """The config of the first fold that was chosen.

        Args:
            config: The task's config.
        """
        return config.of(configuration=self.configurations[0], fold=self.folds[0])

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Choice:
        """From what :meth:`to_json` gave."""
        return cls(
            tuple(content["configurations"]),
            tuple(content["folds"]),
            tuple(tuple(step) for step in content["postprocessing"]),
            content["dice"],
            content["structures"],
            content["candidates"],
        )


def ensembles_folder(config: TaskConfig) -> Path:
    """Where that lies which belongs to several configurations of the config's trainer and plans."""
    name = f"{config.trainer_class_name}__{config.nnunet_plans_name}"
    return config.results_folder.parent / ENSEMBLES / name


def choice_file(config: TaskConfig) -> Path:
    """The record of the choice."""
    return ensembles_folder(config) / "best_configuration.json"


def read_choice(config: TaskConfig) -> Choice:
    """The last choice.

    Args:
        config: The task's config.

    Raises:
        UserError: There is none, or its file is damaged.
    """
    path = choice_file(config)
    remedy = "Remove it, and run find_best_configuration again."
    try:
        return Choice.from_json(read_json(path, remedy=remedy))
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist: run find_best_configuration, or cross_validate, first."
        ) from None
    except (KeyError, TypeError):
        raise UserError(f"{path} is no record of find_best_configuration. {remedy}") from None


def check_folds(config: TaskConfig, configurations: Sequence[str], folds: Sequence[int]) -> None:
    """Makes sure that all folds are trained, and for the same task.

    Args:
        config: The task's config.
        configurations: Those that are wanted.
        folds: Those of each.

    Raises:
        UserError: A fold is not trained to its end, or was trained with other plans, channels or
            labels than the first; all that are missing are named.
    """
    wanted = [config.of(configuration=name, fold=fold) for name in configurations for fold in folds]
    missing = [each for each in wanted if not (each.fold_folder() / FINAL).is_file()]
    if missing:
        raise UserError(f"{_named(missing)} not trained to the end: {remedy(config, missing)}")
    first: dict[str, tuple[TaskConfig, dict[str, str]]] = {}
    for each in wanted:
        own = _identity(each)
        for key, (other, before) in first.items():
            differing = [part for part in own if own[part] != before[part]]
            if key != each.configuration:
                differing = [part for part in differing if part != OWN]
            if differing:
                raise UserError(
                    f"fold {each.fold} of {each.configuration} was trained with other "
                    f"{differing[0]} than fold {other.fold} of {other.configuration}, so that they "
                    f"cannot vote together: {remedy(config, [each])}"
                )
        first.setdefault(each.configuration, (each, own))


def remedy(config: TaskConfig, folds: Sequence[TaskConfig]) -> str:
    """The command that trains and validates folds.

    Args:
        config: The task's config.
        folds: The folds, at least one.
    """
    numbers = sorted({int(each.fold) for each in folds})
    names = list(dict.fromkeys(each.configuration for each in folds))
    quoted = ", ".join(f'"{name}"' for name in names)
    return (
        f"medseg run cross_validate -p config_file_path={config.root.relative(config.path)} "
        f"-p folds='{numbers}' -p configurations='[{quoted}]' trains and validates "
        f"{'it' if len(folds) == 1 else 'them'}."
    )


def _named(folds: Sequence[TaskConfig]) -> str:
    names = [f"fold {each.fold} of {each.configuration}" for each in folds]
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _identity(config: TaskConfig) -> dict[str, str]:
    """What the folds of an ensemble have in common, each as a hash."""
    path = config.fold_folder() / FINAL
    initial = load_checkpoint(path, mmap=True)["init_args"]
    plans, dataset = initial["plans"], initial["dataset_json"]
    common = {key: value for key, value in plans.items() if key != "configurations"}
    return {
        "channels": fingerprint({"names": channel_names(dataset)}),
        "labels": fingerprint(
            {"labels": dataset["labels"], "order": dataset.get("regions_class_order")}
        ),
        "plans": fingerprint({"plans": common}),
        OWN: fingerprint({"settings": settings_of(plans, config.configuration)}),
    }
