"""``metadata.json``: generated from the task, edited field by field by the user."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from medseg.bundle.templates import render
from medseg.config import Labels, TaskConfig
from medseg.nnunet import (
    SUMMARY,
    TrainedFold,
    channel_names,
    dataset_record,
    intensity_range,
    plan_facts,
    read_plans,
    read_summary,
)
from medseg.project import UserError
from medseg.tracking import run_id

PACKAGES = ("monai", "torch", "numpy", "nnunetv2", "nibabel", "SimpleITK")
"""Packages whose versions the metadata states."""


def build_metadata(
    config: TaskConfig, *, networks: str = "", eval_metrics: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """The bundle's metadata, by MONAI's bundle specification.

    Generated from the config, nnU-Net's dataset and plans, the installed versions and, once the
    fold is validated, its ``summary.json``; then the fields of ``bundle_config.metadata_file``
    take the place of the generated ones.

    Args:
        config: The task's config; the validation of its fold counts.
        networks: What the networks are, in words; by default the config's configuration.
        eval_metrics: Measures in the place of those of the fold's validation.

    Returns:
        The content of ``metadata.json``. Shapes are in voxels of the network's grid, in nnU-Net's
        axis order (slices first).

    Raises:
        UserError: The dataset is not planned yet, the fold's ``summary.json`` is no summary, or
            the user's metadata file is no JSON object of this layout.
    """
    plans, dataset = read_plans(config)
    channels = channel_names(dataset)
    labels = Labels.of(dataset["labels"], dataset.get("regions_class_order"))
    # of regions, the name at a value is the one that is painted with it
    painted = sorted(labels.painted.items(), key=lambda item: item[1])
    names = ", ".join(name for name, value in painted if value)
    modality = "/".join(dict.fromkeys(map(_modality, channels)))
    is_ct = all(name.upper() == "CT" for name in channels)
    metadata: dict[str, Any] = json.loads(
        render(
            "metadata.json.j2",
            config=config,
            versions={name: _version(name) for name in PACKAGES},
            structures=names,
            modality=modality,
            cases=dataset["numTraining"],
            channels={str(index): name for index, name in enumerate(channels)},
            labels={str(value): name for name, value in painted},
            patch=list(plan_facts(plans, config.configuration).patch_size),
            value_range=list(intensity_range(plans)) if is_ct else [],
            eval_metrics=validation_dice(config, labels) if eval_metrics is None else eval_metrics,
            networks=networks or config.configuration,
            provenance=provenance(config),
        )
    )
    if config.bundle_config.metadata_file:
        metadata = merge(metadata, _read_users_file(config))
        _check(metadata, config)
    return metadata


def merge(generated: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``generated`` with the fields of ``given``; mappings are merged, all else is replaced.

    A ``channel_def`` or ``changelog`` counts as one value: its keys are data, not fields.
    """
    merged = dict(generated)
    for key, value in given.items():
        old = merged.get(key)
        whole = key in ("channel_def", "changelog", "eval_metrics")
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not whole:
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def validation_dice(config: TaskConfig, labels: Labels) -> dict[str, float]:
    """Mean Dice of the fold's validation cases, over all and per label; empty before validation."""
    path = config.fold_folder() / "validation" / SUMMARY
    if not path.is_file():
        return {}
    summary = read_summary(path)
    values = {"mean_dice": summary["foreground_mean"].get("Dice")}
    for key, measures in summary["mean"].items():
        values[f"dice_{labels.names.get(key, key)}"] = measures.get("Dice")
    return {name: round(value, 4) for name, value in values.items() if value is not None}


def provenance(config: TaskConfig) -> dict[str, str]:
    """Where a model comes from, as far as it is known.

    Returns:
        ``dataset_hash``, ``mlflow_run_id``, and ``pretrained_weights``: the SHA-256 of the model
        that the training started from.
    """
    dataset = dataset_record(config).get("dataset_hash", "")
    facts = {
        "dataset_hash": str(dataset),
        "mlflow_run_id": run_id(config),
        "pretrained_weights": TrainedFold(config).origin,
    }
    return {name: value for name, value in facts.items() if value}


def _read_users_file(config: TaskConfig) -> dict[str, Any]:
    field = "bundle_config.metadata_file"
    path = config.root.resolve(config.bundle_config.metadata_file or "", field=field)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{field}: {path} does not exist.") from None
    except ValueError as error:
        raise UserError(f"{field}: {path} is not valid JSON: {error}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{field}: {path} must hold a JSON object with fields of metadata.json.")
    return content


def _check(metadata: Mapping[str, Any], config: TaskConfig) -> None:
    """What this project itself reads of the metadata must keep its shape."""
    try:
        definition = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
        sound = all(str(int(key)) == key and isinstance(definition[key], str) for key in definition)
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise UserError(
            f"bundle_config.metadata_file: {config.bundle_config.metadata_file}: "
            "network_data_format.outputs.pred.channel_def must map label values to names, "
            'such as {"0": "background", "1": "Spleen"}.'
        )


def _modality(channel: str) -> str:
    return {"MRI": "MR", "NONORM": "n/a"}.get(channel.upper(), channel)


def _version(package: str) -> str:
    return version(package).partition("+")[0]  # without the build: 2.13.0, not 2.13.0+cpu
