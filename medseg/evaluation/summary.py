"""Summaries in the schema of nnU-Net's ``summary.json``.

What this project adds: ``ASD`` and ``HD95`` (mm) beside ``Dice`` and ``IoU``; ``labels``, the
names of the keys; in ``mean`` of each structure ``undefined_distances``, the number of cases whose
distances are undefined because the structure is missing in prediction or reference. Where nnU-Net
writes the token ``NaN``, which is not JSON, stands ``null``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medseg.config import Labels, TaskConfig
from medseg.evaluation.metrics import DISTANCES, case_metrics
from medseg.imaging import ENDING, check_same_grid, is_nifti, read_label_map, stem
from medseg.project import Failures, Manifest, UserError, fingerprint, progress, write_json

Summary = dict[str, Any]

SUMMARY = "summary.json"


def evaluate(config: TaskConfig) -> Summary:
    """Completes the validation summary of a fold: ASD and HD95 beside nnU-Net's own metrics.

    The summary in ``fold_F/validation`` is replaced as a whole, its means go to MLflow, and a
    second call with unchanged predictions only reads it.

    Args:
        config: The task's config.

    Returns:
        The summary.

    Raises:
        UserError: The fold has no validation summary.
        CasesFailedError: More cases than ``max_failed_cases`` have no readable prediction or
            reference, or the two have different geometry. The others' metrics are kept.
    """
    folder = config.fold_folder() / "validation"
    summary = read_summary(folder / SUMMARY)
    references = config.preprocessed_folder / "gt_segmentations"
    # By name: the paths in the file are those of the machine that predicted.
    pairs = {
        stem(name): (folder / name, references / name)
        for name in (Path(entry["prediction_file"]).name for entry in summary["metric_per_case"])
    }
    done = Manifest(folder, "evaluate")
    inputs = pairs_fingerprint(pairs, config.label_set)
    if done.is_done(inputs):
        return summary
    measured, failures = _measure(pairs, config.label_set)
    for entry in summary["metric_per_case"]:
        case = Path(entry["prediction_file"]).name.removesuffix(ENDING)
        for key, metrics in entry["metrics"].items():
            own = measured.get(case, {}).get(key, {})
            metrics.update({name: own.get(name) for name in DISTANCES})
    summary["labels"] = config.label_set.names
    _add_means(summary, DISTANCES)
    write_json(folder / SUMMARY, summary)
    log_summary(config, "validation", folder / SUMMARY, summary)
    failures.check(len(pairs), config.max_failed_cases)
    done.record(inputs, [folder / SUMMARY])
    return summary


def evaluate_folder(predictions: Path, references: Path, labels: Labels) -> Summary:
    """Measures every prediction against the reference of the same file name.

    Args:
        predictions: Folder of label maps, ``<case>.nii.gz``.
        references: Folder of label maps on the same grids. Those without a prediction are left
            out, as nnU-Net does.
        labels: The structures to measure, and what to leave out.

    Returns:
        The summary.

    Raises:
        UserError: There is no prediction.
        CasesFailedError: A prediction has no reference, cannot be read, or has another geometry.
    """
    return evaluate_pairs(
        {
            stem(path): (path, references / path.name)
            for path in sorted(predictions.glob(f"*{ENDING}"))
            if is_nifti(path)
        },
        labels,
        where=str(predictions),
    )


def evaluate_pairs(
    pairs: Mapping[str, tuple[Path, Path]],
    labels: Labels,
    *,
    where: str = "the prediction folder",
    allowed: int = 0,
) -> Summary:
    """Measures predictions against references.

    Args:
        pairs: Cases to prediction and reference.
        labels: As in :func:`evaluate_folder`.
        where: Where predictions should have been, for the message.
        allowed: Cases that may fail.

    Returns:
        The summary, in the order of ``pairs``.

    Raises:
        UserError: There is no pair.
        CasesFailedError: More than ``allowed`` cases cannot be read or compared.
    """
    if not pairs:
        raise UserError(f"{where} holds no {ENDING} file: run the prediction first.")
    measured, failures = _measure(pairs, labels)
    failures.check(len(pairs), allowed)
    summary: Summary = {
        "metric_per_case": [
            {
                "metrics": metrics,
                "prediction_file": str(pairs[case][0]),
                "reference_file": str(pairs[case][1]),
            }
            for case, metrics in measured.items()
        ],
        "mean": {},
        "foreground_mean": {},
        "labels": labels.names,
    }
    names = next(iter(next(iter(measured.values())).values())).keys() if measured else ()
    _add_means(summary, tuple(names))
    return summary


def of_cases(summary: Summary, cases: Collection[str]) -> Summary:
    """The summary of a part of its cases, its means included.

    Args:
        summary: A summary.
        cases: The cases to keep.
    """
    kept = [entry for entry in summary["metric_per_case"] if case_of(entry) in cases]
    part: Summary = {**summary, "metric_per_case": kept, "mean": {}, "foreground_mean": {}}
    names = next(iter(kept[0]["metrics"].values())).keys() if kept else ("Dice",)
    _add_means(part, tuple(names))
    return part


def case_of(entry: Mapping[str, Any]) -> str:
    """The case that an entry of ``metric_per_case`` is about."""
    return stem(entry["prediction_file"])


def read_summary(path: Path) -> Summary:
    """Reads a summary, nnU-Net's own or one of ours.

    Args:
        path: The ``summary.json``.

    Returns:
        Its content, with None in place of NaN.

    Raises:
        UserError: It is missing or is no summary.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        assert {"metric_per_case", "mean", "foreground_mean"} <= content.keys()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run the stage validate first.") from None
    except (ValueError, AttributeError, AssertionError):
        raise UserError(
            f"{path} is not a summary of nnU-Net: remove it, then run validate again."
        ) from None
    summary: Summary = _without_nan(content)
    return summary


def kfp_metrics(summary: Summary) -> dict[str, float]:
    """The means of a summary as flat names, such as ``Dice_spleen`` and ``HD95_spleen_mm``.

    Args:
        summary: A summary, or an empty dictionary.

    Returns:
        Dice, IoU, ASD and HD95 of each structure, and ``mean_…`` of all structures where there is
        more than one or none is undefined; what is undefined is left out.
    """
    shown = {"Dice": "", "IoU": "", "ASD": "_mm", "HD95": "_mm"}
    names = summary.get("labels", {})
    result = {}
    for name, unit in shown.items():
        means = {
            f"mean_{name}{unit}": summary.get("foreground_mean", {}),
            **{
                f"{name}_{names.get(key, key)}{unit}": metrics
                for key, metrics in summary.get("mean", {}).items()
            },
        }
        for flat, metrics in means.items():
            value = metrics.get(name)
            if value is not None and math.isfinite(value):
                result[flat] = float(value)
    return result


def log_summary(config: TaskConfig, part: str, path: Path, summary: Summary) -> None:
    """Sends a summary's means, and the file, to the fold's MLflow run.

    Args:
        config: The task's config.
        part: ``validation`` or ``test``: what the names start with.
        path: The summary's file.
        summary: Its content.
    """
    from medseg.tracking import open_run

    with open_run(config) as tracker:
        tracker.metrics({f"{part}/{name}": v for name, v in kfp_metrics(summary).items()})
        tracker.artifact(path, part)


def pairs_fingerprint(pairs: Mapping[str, tuple[Path, Path]], labels: Labels) -> str:
    """The fingerprint of what decides a summary: the files that are there, cases and labels."""
    return fingerprint(
        {"labels": [labels.structures, labels.ignore], "cases": sorted(pairs)},
        [path for pair in pairs.values() for path in pair if path.is_file()],
    )


# --- how ---


def _measure(
    pairs: Mapping[str, tuple[Path, Path]], labels: Labels
) -> tuple[dict[str, dict[str, Any]], Failures]:
    from dataclasses import replace

    failures = Failures()
    measured = {}
    for number, (case, (prediction_file, reference_file)) in enumerate(pairs.items(), 1):
        with failures.case(case):
            prediction = replace(read_label_map(prediction_file), name=str(prediction_file))
            reference = replace(read_label_map(reference_file), name=str(reference_file))
            check_same_grid(reference, prediction)
            measured[case] = case_metrics(
                prediction.array, reference.array, reference.spacing, labels
            )
            progress(f"{case} measured", number, len(pairs))
    return measured, failures


def _add_means(summary: Summary, names: tuple[str, ...]) -> None:
    """Means over cases (undefined ones left out), then over structures (all must be defined)."""
    cases = [entry["metrics"] for entry in summary["metric_per_case"]]
    for key in cases[0] if cases else ():
        means = summary["mean"].setdefault(key, {})
        for name in names:
            defined = [case[key][name] for case in cases if case[key][name] is not None]
            means[name] = float(np.mean(defined)) if defined else None
        means["undefined_distances"] = sum(case[key]["HD95"] is None for case in cases)
    for name in names:
        values = [means[name] for means in summary["mean"].values()]
        complete = bool(values) and None not in values
        summary["foreground_mean"][name] = float(np.mean(values)) if complete else None


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
