"""The packaged model of a cross-validation: what was chosen, all of its folds, in one file."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from medseg.bundle.members import MEMBERS, Member, Members, append
from medseg.bundle.metadata import build_metadata
from medseg.bundle.monai_config import inference_json
from medseg.bundle.paths import ensemble_file
from medseg.bundle.torchscript import BFLOAT16_DICE, compare
from medseg.config import TaskConfig
from medseg.nnunet.choice import Choice, check_folds, read_choice
from medseg.nnunet.fold_network import fold_patches, load_fold
from medseg.nnunet.plans import read_plans, settings_of
from medseg.nnunet.precision import bfloat16_dice
from medseg.project import (
    Manifest,
    atomic_file,
    file_hash,
    fingerprint,
    progress,
)


def package_ensemble(config: TaskConfig) -> dict[str, Any]:
    """Packages what find_best_configuration has chosen as ``models/ensemble/model.ts``.

    All folds of the chosen configurations, and of the first stages of cascades among them, each
    traced and compared with the original as by
    :func:`~medseg.bundle.torchscript.convert_pt_to_ts`; one is in memory at a time. The metadata
    hold the Dice of the cross-validation.

    Args:
        config: The task's config.

    Returns:
        ``path`` (relative to the data root), ``sha256``, ``max_difference`` (of logits), and the
        measures (``mean_dice``, …).

    Raises:
        UserError: Nothing has been chosen; a fold is missing or of other plans; a traced network
            differs from the original.
    """
    choice, target = read_choice(config), ensemble_file(config)
    plans, _ = read_plans(config)
    names = _with_first_stages(plans, choice.configurations)
    check_folds(config, names, choice.folds)
    folds = [config.of(configuration=name, fold=fold) for name in names for fold in choice.folds]
    metadata = build_metadata(
        choice.first(config), networks=_described(choice), eval_metrics=_measures(choice)
    )
    inputs = fingerprint(
        {"choice": choice.to_json(), "metadata": metadata},
        [each.fold_folder() / "checkpoint_final.pth" for each in folds],
    )
    manifest = Manifest(target.parent, "package_ensemble")
    before = manifest.result(inputs)
    if before is not None:
        progress("the ensemble is packaged already")
        return before
    with atomic_file(target) as temporary:
        difference = _write(temporary, folds, choice, metadata)
    result = {
        "path": config.root.relative(target),
        "sha256": file_hash(target),
        "max_difference": difference,
        **metadata["eval_metrics"],
    }
    manifest.record(inputs, [target], result)
    progress(f"{result['path']} packaged: {_described(choice)}")
    return result


def _write(
    path: Path, folds: Sequence[TaskConfig], choice: Choice, metadata: Mapping[str, Any]
) -> float:
    """Writes all networks into one file; returns the largest difference from the originals."""
    members: list[Member] = []
    plans: dict[str, Any] = {}
    difference, dice = 0.0, 1.0
    for number, fold in enumerate(folds):
        network, header = load_fold(fold)
        initial = header["init_args"]
        plans = plans or {**initial["plans"], "configurations": {}}
        own = initial["plans"]["configurations"]
        plans["configurations"] = {**own, **plans["configurations"]}
        members.append(
            Member(
                fold.configuration,
                fold.fold,
                header["trainer_name"],
                tuple(header["inference_allowed_mirroring_axes"] or ()),
                f"members/{number}.ts" if number else "",
            )
        )
        packed, apart, same = _traced(fold, network, initial["plans"])
        difference, dice = max(difference, apart), min(dice, same)
        if number:
            append(path, members[-1].file, packed.getbuffer())
        else:
            path.write_bytes(packed.getbuffer())
            first = header
        progress(f"{fold.configuration} fold {fold.fold} packaged", number + 1, len(folds))
    inference = inference_json(
        plans,
        first["init_args"]["dataset_json"],
        first,
        channels=metadata["network_data_format"]["inputs"]["image"]["num_channels"],
        fold=folds[0].fold,
    )
    texts = {
        "metadata.json": json.dumps({**metadata, BFLOAT16_DICE: round(dice, 6)}),
        "inference.json": json.dumps(inference),
        MEMBERS: Members(tuple(members), choice.configurations, choice.postprocessing).to_json(),
    }
    for name, text in texts.items():
        append(path, name, memoryview(text.encode()))
    return difference


def _traced(
    fold: TaskConfig, network: torch.nn.Module, plans: dict[str, Any]
) -> tuple[io.BytesIO, float, float]:
    """A network as TorchScript, by how much its logits differ, and its Dice in bfloat16."""
    patches = fold_patches(fold, plans)
    dice = bfloat16_dice(network, patches, regions=fold.label_set.has_regions)
    with torch.no_grad():
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            network, patches[:1], check_trace=False
        )
    packed = io.BytesIO()
    torch.jit.save(traced, packed)
    packed.seek(0)
    again = torch.jit.load(packed, map_location="cpu")  # type: ignore[no-untyped-call]
    return packed, compare(network, again, patches), dice


def _with_first_stages(plans: Mapping[str, Any], configurations: Sequence[str]) -> list[str]:
    """The configurations, each after the first stage that it needs."""
    names: dict[str, None] = {}
    for name in configurations:
        stage = settings_of(plans, name).get("previous_stage")
        names |= dict.fromkeys(_with_first_stages(plans, [stage]) if stage else [])
        names[name] = None
    return list(names)


def _described(choice: Choice) -> str:
    folds = f"{len(choice.folds)} fold{'s' * (len(choice.folds) > 1)}"
    return f"{' and '.join(choice.configurations)}, {folds} voting"


def _measures(choice: Choice) -> dict[str, float]:
    values = {
        "mean_dice": choice.dice,
        **{f"dice_{name}": dice for name, dice in choice.structures.items()},
    }
    return {name: round(value, 4) for name, value in values.items() if value is not None}
