"""The packaged model: one TorchScript file with metadata and inference configuration."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medseg.bundle.members import MEMBERS, Members, load_member
from medseg.bundle.monai_config import inference_json
from medseg.bundle.paths import checkpoint_file, descriptions, model_file
from medseg.config import Label, Labels, TaskConfig
from medseg.nnunet import channel_names
from medseg.nnunet.precision import bfloat16_dice
from medseg.nnunet.preprocessing import example_patches
from medseg.project import (
    Manifest,
    UserError,
    atomic_file,
    file_hash,
    fingerprint,
    progress,
    read_json,
)

TOLERANCE = 1e-3
"""Largest difference of logits, as a fraction of their range, between traced and original network;
float16 keeps three digits."""

BFLOAT16_DICE = "bfloat16_dice"
"""Field of the metadata: Dice between results in float32 and in bfloat16 (see
:func:`medseg.nnunet.precision.bfloat16_dice`)."""


@dataclass(frozen=True)
class PackagedModel:
    """What a ``model.ts`` carries.

    Attributes:
        network: The TorchScript network, on the CPU.
        metadata: ``metadata.json``.
        plans: nnU-Net's plans.
        dataset: nnU-Net's ``dataset.json``.
        checkpoint: ``trainer_name``, ``configuration``, ``inference_allowed_mirroring_axes``.
        path: The file.
        members: What its networks are, where there are several.
    """

    network: torch.jit.ScriptModule
    metadata: dict[str, Any]
    plans: dict[str, Any]
    dataset: dict[str, Any]
    checkpoint: dict[str, Any]
    path: Path = Path("model.ts")
    members: Members | None = None

    def networks(self, configuration: str) -> list[torch.nn.Module]:
        """The networks of a configuration, its folds; they are read from the file now.

        Args:
            configuration: Its name.

        Raises:
            UserError: One is missing, or damaged.
        """
        if self.members is None:
            return [self.network]
        return [
            load_member(self.path, member.file) if member.file else self.network
            for member in self.members.of(configuration)
        ]

    @property
    def channels(self) -> list[str]:
        """The names of the input channels, in their order."""
        return channel_names(self.dataset)

    @property
    def bfloat16_dice(self) -> float | None:
        """Dice between its results in float32 and in bfloat16; None where nobody measured it."""
        dice = self.metadata.get(BFLOAT16_DICE)
        return float(dice) if isinstance(dice, int | float) else None

    @property
    def segments(self) -> dict[str, Label]:
        """Segment names to label values, of a region to the list of its values.

        The names are those of the metadata, which users edit; there a region stands at the value
        that it is painted with.

        Raises:
            UserError: The metadata names no labels.
        """
        try:
            definition = self.metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
            names = {int(value): str(name) for value, name in definition.items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(
                "the model's metadata.json has no network_data_format.outputs.pred.channel_def "
                "that names its labels: make the model anew with convert_pt_to_ts."
            ) from None
        regions: dict[int, Label] = {}
        if order := self.dataset.get("regions_class_order"):
            labels = Labels.of(self.dataset["labels"], order)
            regions = {
                labels.painted[name]: list(values) for name, values in labels.regions.items()
            }
        return {name: regions.get(value, value) for value, name in names.items()}


def convert_pt_to_ts(config: TaskConfig) -> dict[str, Any]:
    """Packages the bundle's ``models/fold_F/model.pt`` as ``models/fold_F/model.ts``.

    The network is traced (scripting nnU-Net's U-Nets fails), saved with ``metadata.json`` and
    ``inference.json`` as extra files, loaded again, and compared with the original on patches of
    preprocessed training cases before it takes its name. The validation Dice of the fold, where
    there is one, goes into the metadata, here and in the bundle.

    Args:
        config: The task's config.

    Returns:
        ``path`` (relative to the data root), ``sha256``, ``max_difference`` (of logits),
        and the validation measures (``mean_dice``, …).

    Raises:
        UserError: The bundle has no checkpoint of the fold, no preprocessed case is there to
            compare on, or the traced network differs from the original.
    """
    # Not at the top: what makes metadata takes half a second, which inference need not wait for.
    from medseg.bundle.layout import write_metadata
    from medseg.bundle.metadata import build_metadata

    fold, source, target = config.fold, checkpoint_file(config), model_file(config)
    described = descriptions(config)
    for path in (source, *described):
        if not path.is_file():
            raise UserError(f"{path} does not exist: train fold {fold} first.")
    metadata = build_metadata(config)
    facts = {"metadata": metadata, "fold": fold, "records": BFLOAT16_DICE}
    inputs = fingerprint(facts, [source, *described])
    manifest = Manifest(target.parent, "convert_pt_to_ts")
    before = manifest.result(inputs)
    if before is not None:
        progress(f"fold {fold}: model.ts is packaged already")
        return before

    plans, dataset = map(read_json, described[:2])
    checkpoint = torch.load(described[2], weights_only=True)
    network = load_network(source)
    configuration = checkpoint["init_args"]["configuration"]
    patches = example_patches(config.preprocessed_folder, plans, configuration)
    channels = metadata["network_data_format"]["inputs"]["image"]["num_channels"]
    labels = Labels.of(dataset["labels"], dataset.get("regions_class_order"))
    metadata[BFLOAT16_DICE] = round(bfloat16_dice(network, patches, regions=labels.has_regions), 6)
    extra = {
        "metadata.json": json.dumps(metadata),
        "inference.json": json.dumps(
            inference_json(plans, dataset, checkpoint, channels=channels, fold=fold)
        ),
    }
    progress(f"fold {fold}: tracing the network")
    with torch.no_grad():
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            network, patches[:1], check_trace=False
        )
    packed = io.BytesIO()  # on a full disk TorchScript's own writer aborts the process
    torch.jit.save(traced, packed, _extra_files=extra)
    with atomic_file(target) as temporary:
        temporary.write_bytes(packed.getbuffer())
        progress(f"fold {fold}: comparing it with the original on {len(patches)} patches")
        difference = compare(network, load_packaged(temporary).network, patches)
    write_metadata(config, metadata)
    result = {
        "path": config.root.relative(target),
        "sha256": file_hash(target),
        "max_difference": difference,
        **metadata["eval_metrics"],
    }
    manifest.record(inputs, [target], result)
    progress(
        f"fold {fold}: {result['path']} packaged; on {len(patches)} patches its logits differ from "
        f"the original's by at most {difference:.2g}"
    )
    return result


def compare(original: torch.nn.Module, packaged: torch.nn.Module, patches: torch.Tensor) -> float:
    """Compares a packaged network with the original, patch by patch and as one batch.

    Args:
        original: The network.
        packaged: What must do the same.
        patches: Real input ``(batch, channels, *patch)``.

    Returns:
        The largest difference of two logits.

    Raises:
        UserError: The difference exceeds :data:`TOLERANCE` of the logits' range.
    """
    difference = 0.0
    with torch.inference_mode():
        for batch in (*(patch[None] for patch in patches), patches):
            expected, output = original(batch), packaged(batch)
            scale = float(expected.abs().max())
            apart = float((expected - output).abs().max())
            if not apart <= TOLERANCE * max(scale, 1.0):  # also where it is not a number
                raise UserError(
                    "the traced network does not do what the original does: on real patches its "
                    f"logits (up to {scale:.3g}) differ by up to {apart:.3g}. The architecture "
                    "cannot be packaged as TorchScript; use the bundle's model.pt."
                )
            difference = max(difference, apart)
    return difference


def load_packaged(path: Path) -> PackagedModel:
    """Opens a ``model.ts``: ours, or one of MAIA's that carries plans and dataset.

    TorchScript and JSON are data: opening the file runs no Python of its author.

    Args:
        path: The file.

    Raises:
        UserError: The file is missing, truncated, no TorchScript, or lacks ``metadata.json`` or
            a usable ``inference.json``.
    """
    if not path.is_file():
        raise UserError(f"the model {path} does not exist: name a model.ts file.")
    extra: dict[str, Any] = {"metadata.json": "", "inference.json": "", MEMBERS: ""}
    try:
        network = torch.jit.load(  # type: ignore[no-untyped-call]
            path, map_location="cpu", _extra_files=extra
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the model {path} cannot be read: it is truncated, damaged or not TorchScript. "
            "Copy it again, or make it anew with convert_pt_to_ts."
        ) from error
    several = extra.pop(MEMBERS)
    contents = {}
    for name, text in extra.items():
        try:
            contents[name] = json.loads(text)
        except ValueError:
            contents[name] = None
        if not isinstance(contents[name], dict):
            raise UserError(
                f"the model {path} carries no {name}: it was not packaged by convert_pt_to_ts; "
                "make it anew with that."
            )
    inference = contents["inference.json"]
    parts = [inference.get(key) for key in ("plans", "dataset_json", "nnunet_config_ckpt")]
    if not all(isinstance(part, dict) for part in parts):
        raise UserError(
            f"the model {path} has an inference.json without nnU-Net's plans, dataset_json and "
            "nnunet_config_ckpt: make it anew with convert_pt_to_ts."
        )
    plans, dataset, checkpoint = parts
    members = Members.from_json(several, path) if several else None
    return PackagedModel(
        network, contents["metadata.json"], plans, dataset, checkpoint, path, members
    )


def load_network(checkpoint: Path) -> torch.nn.Module:
    """The network of a bundle's ``model.pt`` with its weights, as MONAI's nnU-Net bundle reads it.

    Args:
        checkpoint: ``models/fold_N/model.pt`` of a bundle.
    """
    # Not at the top: MONAI takes seconds, which inference images spare themselves (images/map/app).
    from monai.apps.nnunet.nnunet_bundle import get_nnunet_monai_predictor

    predictor = get_nnunet_monai_predictor(checkpoint.parent, checkpoint.name).predictor
    network: torch.nn.Module = predictor.network
    network.load_state_dict(predictor.list_of_parameters[0])
    return network.eval()
