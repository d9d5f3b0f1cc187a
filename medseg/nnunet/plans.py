"""nnU-Net's plans and ``dataset.json``: read, and asked what they say for one configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.config import TaskConfig
from medseg.project import UserError, fingerprint, read_json


def plans_path(config: TaskConfig) -> Path:
    """The file of the config's plans."""
    return config.preprocessed_folder / f"{config.nnunet_plans_name}.json"


def read_plans(config: TaskConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """nnU-Net's plans and ``dataset.json`` of the task.

    Raises:
        UserError: They do not exist yet, or are damaged.
    """
    return _read(plans_path(config)), _read(config.preprocessed_folder / "dataset.json")


def _read(path: Path) -> dict[str, Any]:
    remedy = "Correct it, or remove it and run plan_and_preprocess."
    try:
        return dict(read_json(path, remedy=remedy))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run plan_and_preprocess first.") from None


def settings_of(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """The settings of a configuration, with those that it inherits.

    Args:
        plans: nnU-Net's plans.
        configuration: Its name, such as ``3d_fullres``.

    Raises:
        UserError: The plans do not hold it.
    """
    if configuration not in plans["configurations"]:
        raise UserError(
            f"configuration: {configuration!r} is not in nnU-Net's plans, which hold "
            f"{', '.join(plans['configurations'])}."
        )
    own = dict(plans["configurations"][configuration])
    parent = own.pop("inherits_from", None)
    return {**settings_of(plans, parent), **own} if parent else own


def check_same_plans(members: Mapping[str, Mapping[str, Any]], configuration: str) -> None:
    """Folds can be averaged on the network's grid only where one plan made them.

    Args:
        members: What to call each fold in a message, and its plans.
        configuration: Name of the configuration in all of them.

    Raises:
        UserError: Some fold was trained with other plans; the message names the first difference.
    """
    described = {
        name: {**_common(plans), **settings_of(plans, configuration)}
        for name, plans in members.items()
    }
    (first, expected), *others = described.items()
    for name, own in others:
        for key in sorted({*expected, *own} - {"batch_size", "batch_dice", "plans_name"}):
            if own.get(key) != expected.get(key):
                raise UserError(
                    f"{name} was trained with other plans than {first}: {key} is {own.get(key)}, "
                    f"not {expected.get(key)}. Folds of an ensemble need the same plans: leave it "
                    "out, or train it anew with them."
                )


@dataclass(frozen=True)
class PlanFacts:
    """What nnU-Net planned for one configuration, in its axis order (slices first).

    Attributes:
        patch_size: Voxels.
        spacing: Millimetres.
        batch_size: Patches in a batch.
        normalization: The intensity normalisation of each channel.
    """

    patch_size: tuple[int, ...]
    spacing: tuple[float, ...]
    batch_size: int
    normalization: tuple[str, ...]


def plan_facts(plans: Mapping[str, Any], configuration: str) -> PlanFacts:
    """What the plans say for a configuration.

    Args:
        plans: nnU-Net's plans.
        configuration: Its name.

    Raises:
        UserError: The plans do not hold it.
    """
    settings = settings_of(plans, configuration)
    return PlanFacts(
        tuple(int(size) for size in settings["patch_size"]),
        tuple(float(step) for step in settings["spacing"]),
        int(settings["batch_size"]),
        tuple(settings["normalization_schemes"]),
    )


def intensity_range(plans: Mapping[str, Any]) -> tuple[float, float]:
    """The foreground's intensities in the training cases, over all channels.

    Args:
        plans: nnU-Net's plans.

    Returns:
        The lowest 0.5th and the highest 99.5th percentile.
    """
    channels = plans["foreground_intensity_properties_per_channel"].values()
    return (
        min(channel["percentile_00_5"] for channel in channels),
        max(channel["percentile_99_5"] for channel in channels),
    )


def channel_names(dataset: Mapping[str, Any]) -> list[str]:
    """The names of the input channels, in their order.

    Args:
        dataset: nnU-Net's ``dataset.json``, also of the time when it called them ``modality``.
    """
    names = dataset.get("channel_names") or dataset["modality"]
    return [str(names[key]) for key in sorted(names, key=int)]


def load_plans(plans_file: Path) -> Any:
    """nnU-Net's ``PlansManager`` of a file.

    Raises:
        UserError: The file does not exist, or is damaged.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    return PlansManager(_read(plans_file))


def configuration_of(config: TaskConfig, plans: Any) -> Any:
    """nnU-Net's ``ConfigurationManager`` of the config's configuration.

    Args:
        config: The task's config.
        plans: nnU-Net's ``PlansManager``.

    Raises:
        UserError: The plans have no such configuration; the message names those they have.
    """
    available = list(plans.plans["configurations"])
    if config.configuration not in available:
        raise UserError(
            f"configuration: the plans {plans_path(config).name} of {config.dataset_name} have no "
            f"{config.configuration!r}; they have {', '.join(available)}."
        )
    return plans.get_configuration(config.configuration)


def plans_hash(plans: Any, configuration: Any) -> str:
    """The hash of what the plans say for one configuration, whatever others they hold.

    Args:
        plans: nnU-Net's ``PlansManager``.
        configuration: Its ``ConfigurationManager``.
    """
    own = configuration.configuration
    return fingerprint({"plans": _common(plans.plans), "configuration": own})


def case_settings(plans: Any, configuration: Any) -> dict[str, Any]:
    """The part of the plans that decides a preprocessed case: all but the network and batch.

    Args:
        plans: nnU-Net's ``PlansManager``.
        configuration: Its ``ConfigurationManager``.
    """
    own = {
        key: value
        for key, value in configuration.configuration.items()
        if key not in ("architecture", "batch_size", "batch_dice", "inherits_from")
    }
    return {"plans": _common(plans.plans), "configuration": own}


def _common(plans: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plans.items() if key != "configurations"}
