"""A training that starts from a model: what of the model it takes, and whether the model fits."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from medseg.config import Labels, Structure, TaskConfig
from medseg.config.labels import BACKGROUND
from medseg.dataset import channel_names as channels_of_task
from medseg.nnunet.models import Model, check_same_network, read_model
from medseg.nnunet.plans import channel_names
from medseg.project import UserError, file_hash, progress, read_json

HEADS = ".seg_layers."
"""What the names of the layers contain whose output channels are the labels."""

Weights = Mapping[str, torch.Tensor]


def read_pretrained(config: TaskConfig) -> Model:
    """Reads the model that the config's training starts from.

    Args:
        config: The task's config, with ``pretrained_weights``.

    Raises:
        UserError: As for :func:`~medseg.nnunet.models.read_model`; or the model is for another
            configuration, for other channels, or, without ``new_heads``, for other labels.
    """
    model = read_model(_file(config))
    configurations = list(model.plans["configurations"])
    trained_for = [model.configuration] if model.configuration else configurations
    if config.configuration not in trained_for:
        raise UserError(
            f"configuration: {config.configuration!r} is not what {model.path} was trained for "
            f"({', '.join(trained_for)}): set configuration to that, or name another model."
        )
    _check_channels(config, model)
    theirs, ours = _heads(_labels_of(model)), _heads(config.label_set)
    if theirs == ours:
        return model
    if not config.new_heads:
        raise UserError(
            f"labels: {model.path} segments {_described(theirs)}, the task's labels are "
            f"{_described(ours)}: name a model of the same labels, or set new_heads: true, so that "
            "those of the same name are kept and the others learnt anew."
        )
    kept = [name for name in _names(ours) if name in _names(theirs)]
    new = [name for name in _names(ours) if name not in kept]
    progress(f"new heads: {', '.join(new) or 'none'}; kept: {', '.join(kept) or 'none'}")
    return model


def adopted_plans(config: TaskConfig, model: Model) -> dict[str, Any]:
    """A model's plans for the config's dataset, as nnU-Net's ``move_plans_between_datasets``.

    Args:
        config: The task's config; its raw dataset is prepared.
        model: The model.

    Returns:
        The model's plans under the config's ``nnunet_plans_name``: preprocessed cases lie in
        folders of that name, beside those of the dataset's own plans.
    """
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    plans = copy.deepcopy(model.plans)
    before, name = str(plans.get("plans_name", "")), config.nnunet_plans_name
    for configuration in plans["configurations"].values():
        folder = configuration.get("data_identifier")
        if folder is not None and name != before:
            rest = folder.removeprefix(before) if folder.startswith(before) else f"_{folder}"
            configuration["data_identifier"] = f"{name}{rest}"
    image = min((config.raw_folder / "imagesTr").iterdir())
    reader = determine_reader_writer_from_dataset_json(
        read_json(config.raw_folder / "dataset.json"), str(image), verbose=False
    )
    return plans | {
        "dataset_name": config.dataset_name,
        "plans_name": name,
        "image_reader_writer": reader.__name__,
    }


def origin(config: TaskConfig, record: Mapping[str, Any]) -> dict[str, Any]:
    """What a fold's record says of the weights that its training started from.

    A model that this fine-tuning has made itself, and that has taken the place of the file, does
    not count as a change.

    Args:
        config: The task's config.
        record: The fold's record so far.

    Returns:
        ``weights``: the SHA-256 of the file; empty for a training from scratch.

    Raises:
        UserError: The file is missing or cannot be read.
    """
    if not config.pretrained_weights:
        return {}
    digest, known = file_hash(_file(config)), record.get("weights")
    if known not in (None, digest):
        plans = read_model(_file(config)).plans
        own = (config.dataset_name, config.nnunet_plans_name)
        if (plans.get("dataset_name"), plans.get("plans_name")) == own:
            return {"weights": known}
    return {"weights": digest}


def first_weights(config: TaskConfig, own: Weights) -> dict[str, torch.Tensor]:
    """The weights that the training of the config's fold starts from.

    Args:
        config: The task's config, with ``pretrained_weights``.
        own: The weights of the new network.

    Returns:
        The model's in place of all of ``own``. With other labels, the output channels of labels
        that the model does not have stay as in ``own``.

    Raises:
        UserError: As for :func:`read_pretrained`; or the weights are those of another network.
    """
    model = read_pretrained(config)
    theirs, ours = _heads(_labels_of(model)), _heads(config.label_set)
    weights = dict(model.weights)
    if theirs != ours:
        for name in [name for name in weights.keys() & own.keys() if HEADS in name]:
            weights[name] = _with_heads(own[name], weights[name], _names(ours), _names(theirs))
    check_same_network(model.path, weights, own)
    return weights


def freeze_encoder(network: torch.nn.Module) -> None:
    """Lets the parameters of the network's encoder stay as they are.

    Raises:
        UserError: The network has no encoder.
    """
    encoder = getattr(network, "encoder", None)
    if not isinstance(encoder, torch.nn.Module):
        raise UserError(
            f"freeze_encoder: the network ({type(network).__name__}) has no part of that name: "
            "set it to false."
        )
    encoder.requires_grad_(False)


def _file(config: TaskConfig) -> Path:
    path = config.pretrained_file
    assert path is not None  # its callers ask only then
    if not path.is_file():
        raise UserError(
            f"pretrained_weights: {path} does not exist: name a model.ts, a bundle's .pt, "
            "nnU-Net's .pth or a Lightning .ckpt."
        )
    return path


def _check_channels(config: TaskConfig, model: Model) -> None:
    theirs, ours = channel_names(model.dataset), channels_of_task(config)
    if [name.casefold() for name in theirs] == [name.casefold() for name in ours]:
        return
    remedy = "name a model of the same channels"
    if len(theirs) == len(ours):
        remedy += (
            f"; if they are the same under other names, write modality_list: [{', '.join(theirs)}]"
        )
    raise UserError(
        f"channels: {model.path} takes {', '.join(theirs)}, the task has {', '.join(ours)}: "
        f"{remedy}."
    )


def _labels_of(model: Model) -> Labels:
    try:
        return Labels.of(model.dataset["labels"], model.dataset.get("regions_class_order"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{model.path} does not say which labels it segments ({error}): name another model."
        ) from None


def _heads(labels: Labels) -> list[Structure]:
    """What each output channel stands for, in nnU-Net's order; names without upper case."""
    values = {structure.name: structure.values for structure in labels.structures.values()}
    heads = [Structure(name.casefold(), values[name]) for name in labels.per_class]
    return heads if labels.has_regions else [Structure(BACKGROUND, (0,)), *heads]


def _names(heads: Sequence[Structure]) -> list[str]:
    return [head.name for head in heads]


def _described(heads: Sequence[Structure]) -> str:
    return ", ".join(f"{head.name} ({', '.join(map(str, head.values))})" for head in heads)


def _with_heads(
    own: torch.Tensor, given: torch.Tensor, ours: Sequence[str], theirs: Sequence[str]
) -> torch.Tensor:
    """A layer's weights ``(heads, …)`` of the new labels; those of the same name are given ones."""
    if len(own) != len(ours) or len(given) != len(theirs) or own.shape[1:] != given.shape[1:]:
        return given  # of another network, as will be found
    mixed = own.detach().cpu().clone()
    for place, name in enumerate(ours):
        if name in theirs:
            mixed[place] = given[theirs.index(name)]
    return mixed
