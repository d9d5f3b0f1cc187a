"""Trained networks out of files: nnU-Net's, a bundle's, a packaged model's, Lightning's.

All give the weights by nnU-Net's names. What the network is (plans, ``dataset.json``,
configuration) stands in a ``model.ts`` and in nnU-Net's checkpoints; for a bundle's ``.pt`` and a
Lightning ``.ckpt`` it lies beside the folds, as ``plans.json`` and ``dataset.json``.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from medseg.nnunet.checkpoints import safe_types
from medseg.nnunet.console import quiet
from medseg.nnunet.plans import settings_of
from medseg.nnunet.trainer_classes import find_trainer_class
from medseg.project import UserError, read_json

Kind = Literal["torchscript", "nnunet", "bundle", "lightning"]

WRAPPERS = ("network.", "model.", "module.", "_orig_mod.")
"""What Lightning modules, DDP and ``torch.compile`` put before nnU-Net's names, in any order."""

HEADER = "nnunet_checkpoint.pth"
"""A bundle's copy of what nnU-Net's checkpoint says of the network, beside the folds."""


@dataclass(frozen=True)
class WeightsFile:
    """The content of a file with weights, whoever wrote it.

    Attributes:
        path: The file.
        kind: Who wrote it.
        weights: The network's weights by nnU-Net's names, on the CPU.
        content: The rest of it: a checkpoint's dictionary, or the ``inference.json`` of a
            ``model.ts``.
    """

    path: Path
    kind: Kind
    weights: dict[str, torch.Tensor]
    content: Mapping[str, Any]


@dataclass(frozen=True)
class Model:
    """A trained network with what it was trained for.

    Attributes:
        path: The file.
        weights: By nnU-Net's names, on the CPU.
        plans: nnU-Net's plans.
        dataset: nnU-Net's ``dataset.json``.
        configuration: The configuration in the plans; empty where nothing says it.
        trainer: Name of nnU-Net's trainer class; its default one where nothing says it.
        mirror_axes: Spatial axes over which predictions may be averaged; None where nothing says.
        epochs: Finished epochs of its training; None where the file does not say.
    """

    path: Path
    weights: dict[str, torch.Tensor]
    plans: dict[str, Any]
    dataset: dict[str, Any]
    configuration: str
    trainer: str = "nnUNetTrainer"
    mirror_axes: tuple[int, ...] | None = None
    epochs: int | None = None


def read_weights(path: Path) -> WeightsFile:
    """Reads a file with weights; nothing in it is run.

    Args:
        path: ``model.ts``, a bundle's ``.pt``, nnU-Net's ``.pth`` or a Lightning ``.ckpt``; what
            it is goes by its content.

    Raises:
        UserError: The file is missing, truncated, of another kind, or holds pickled objects of
            classes (the message names the class).
    """
    if not path.is_file():
        raise UserError(
            f"the model {path} does not exist: name a model.ts, a bundle's .pt, nnU-Net's .pth or "
            "a Lightning .ckpt."
        )
    if _is_torchscript(path):
        return _read_torchscript(path)
    content = _read_pickled(path)
    if isinstance(content, Mapping) and isinstance(content.get("network_weights"), Mapping):
        kind: Kind = "nnunet" if "init_args" in content else "bundle"
        weights = content["network_weights"]
    elif isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        kind, weights = "lightning", content["state_dict"]
    else:
        raise UserError(
            f"{path} is no model: it holds neither network_weights (nnU-Net, MONAI bundle) nor a "
            "state_dict (Lightning). Name a checkpoint of a training, or a model.ts."
        )
    if not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError(f"the weights in {path} are not all tensors: name another checkpoint.")
    rest = {key: value for key, value in content.items() if value is not weights}
    return WeightsFile(path, kind, plain_names(weights), rest)


def read_model(path: Path) -> Model:
    """Reads a trained network and what describes it.

    Args:
        path: As for :func:`read_weights`.

    Raises:
        UserError: As for :func:`read_weights`; or nothing describes the network.
    """
    file = read_weights(path)
    content = file.content
    epochs = content.get("current_epoch")
    if file.kind == "torchscript":
        header = content["nnunet_config_ckpt"]
        parts = [content["plans"], content["dataset_json"]]
    elif file.kind == "nnunet":
        header, initial = content, content["init_args"]
        parts = [initial.get("plans"), initial.get("dataset_json")]
    else:
        *parts, header = _described_beside(path)
        epochs = _epochs(content, path)
    plans, dataset = (json.loads(json.dumps(part, default=_plain)) for part in parts)
    if not isinstance(plans, dict) or "configurations" not in plans or not dataset:
        raise UserError(f"{path} holds no plans of nnU-Net (version 2): name another model.")
    axes = header.get("inference_allowed_mirroring_axes")
    return Model(
        path,
        file.weights,
        plans,
        dataset,
        str(header.get("configuration") or header.get("init_args", {}).get("configuration", "")),
        str(header.get("trainer_name") or Model.trainer),
        None if axes is None else tuple(int(axis) for axis in axes),
        epochs,
    )


def _epochs(content: Mapping[str, Any], path: Path) -> int | None:
    """A Lightning file counts epochs from 0; a bundle's has them in its name."""
    if "epoch" in content:
        return int(content["epoch"]) + 1
    named = re.fullmatch(r"checkpoint_epoch=(\d+)\.pt", path.name)
    return int(named[1]) if named else None


def network_of(model: Model) -> torch.nn.Module:
    """The network that a model's plans describe, with the model's weights, on the CPU.

    Raises:
        UserError: The plans do not hold the configuration, or the weights are those of another
            network.
    """
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    settings_of(model.plans, model.configuration)  # raises where they do not hold it
    with quiet():
        manager = PlansManager(model.plans)
        configuration = manager.get_configuration(model.configuration)
        network: torch.nn.Module = find_trainer_class(model.trainer).build_network_architecture(
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
            determine_num_input_channels(manager, configuration, model.dataset),
            manager.get_label_manager(model.dataset).num_segmentation_heads,
            enable_deep_supervision=False,
        )
    check_same_network(model.path, model.weights, network.state_dict())
    network.load_state_dict(model.weights)
    return network.eval()


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


def plain_names(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by nnU-Net's names, whatever wrapped the network when they were saved.

    Args:
        weights: Names to tensors; all carry the same wrappers' prefixes, or none.
    """
    names = {name: name for name in weights}
    while names and (prefix := _common_wrapper(list(names.values()))):
        names = {name: short.removeprefix(prefix) for name, short in names.items()}
    return {names[name]: value for name, value in weights.items()}


def check_same_network(
    path: Path, given: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]
) -> None:
    """Refuses weights that are not those of a network.

    Args:
        path: Where they come from.
        given: The weights.
        own: The network's, by the same names.

    Raises:
        UserError: Names or shapes differ; the message names some.
    """

    def shape(weights: Mapping[str, torch.Tensor], name: str) -> str:
        return "×".join(map(str, weights[name].shape)) or "one value"

    found = {
        "it lacks": sorted(own.keys() - given.keys()),
        "it has beside": sorted(given.keys() - own.keys()),
        "of other shapes are": [
            f"{name} ({shape(given, name)}, not {shape(own, name)})"
            for name in sorted(own.keys() & given.keys())
            if own[name].shape != given[name].shape
        ],
    }
    differences = [
        f"{what} {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if names[3:] else "")
        for what, names in found.items()
        if names
    ]
    if differences:
        raise UserError(
            f"{path} holds the weights of another network than its plans describe: "
            f"{'; '.join(differences)}. Name a model whose plans.json belongs to it."
        )


def _common_wrapper(names: list[str]) -> str:
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in names):
            return prefix
    return ""


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return path.suffix == ".ts"
    return any(re.fullmatch(r"[^/]+/constants\.pkl", name) for name in names)


def _read_torchscript(path: Path) -> WeightsFile:
    extra: dict[str, Any] = {"inference.json": ""}
    try:
        network = torch.jit.load(  # type: ignore[no-untyped-call]
            path, map_location="cpu", _extra_files=extra
        )
    except (RuntimeError, ValueError):
        raise UserError(
            f"the model {path} cannot be read: it is truncated, damaged or not TorchScript. Copy "
            "it again, or make it anew with convert_pt_to_ts."
        ) from None
    try:
        content = json.loads(extra["inference.json"])
        parts = [content[key] for key in ("plans", "dataset_json", "nnunet_config_ckpt")]
    except (ValueError, KeyError, TypeError):
        parts = []
    if not parts or not all(isinstance(part, dict) for part in parts):
        raise UserError(
            f"the model {path} carries no inference.json with nnU-Net's plans: it was not packaged "
            "by convert_pt_to_ts; make it anew with that."
        )
    return WeightsFile(path, "torchscript", dict(network.state_dict()), content)


def _read_pickled(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(safe_types()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, OSError, pickle.UnpicklingError) as error:
        found = re.search(r"(?:GLOBAL|Unsupported class|global:?) ([\w.]+\.\w+)", str(error))
        if found:
            raise UserError(
                f"{path} holds pickled objects of {found[1]}, which are not read, as that would "
                "run code of whoever made the file: save the checkpoint again with tensors and "
                "plain values alone."
            ) from None
        raise UserError(
            f"{path} cannot be read: it is truncated, or no file of torch. Copy it again, or name "
            "another model."
        ) from None


def _described_beside(path: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Plans, ``dataset.json`` and nnU-Net's header beside a checkpoint, or beside its fold."""
    for folder in (path.parent, path.parent.parent):
        plans, dataset = folder / "plans.json", folder / "dataset.json"
        if plans.is_file() and dataset.is_file():
            header = folder / HEADER
            described = _read_pickled(header) if header.is_file() else {}
            return read_json(plans), read_json(dataset), described
    raise UserError(
        f"nothing says what network {path} is: put its plans.json and dataset.json into "
        f"{path.parent}, as nnU-Net and MONAI bundles have them beside their folds."
    )
