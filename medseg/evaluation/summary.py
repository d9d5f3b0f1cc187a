"""Summaries in the schema of nnU-Net's ``summary.json``.

Each case is measured once, and the numbers that nnU-Net would have measured are the same. What this
project adds: ``ASD`` and ``HD95`` (mm) beside ``Dice`` and ``IoU``; ``labels``, the
names of the keys; in ``mean`` of each structure ``undefined_distances``, the number of cases whose
distances are undefined because the structure is missing in prediction or reference. Where nnU-Net
writes the token ``NaN``, which is not JSON, stands ``null``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medseg.config import Labels, TaskConfig
from medseg.evaluation.metrics import case_metrics
from medseg.imaging import ENDING, check_same_grid, is_nifti, read_label_map, stem
from medseg.nnunet import SUMMARY, Summary, read_summary
from medseg.project import Failures, Manifest, UserError, fingerprint, progress, write_json
from medseg.tracking import metric_name, open_run


def evaluate(config: TaskConfig) -> Summary:
    """Measures the validation predictions of a fold and writes their summary.

    ``fold_F/validation/summary.json`` is written as a whole, its means go to MLflow, and a second
    call with unchanged predictions only reads it.

    Args:
        config: The task's config.

    Returns:
        The summary.

    Raises:
        UserError: The fold has no predictions.
        CasesFailedError: More cases than ``max_failed_cases`` have no readable prediction or
            reference, or the two have different geometry. The others' metrics are kept.
    """
    folder = config.fold_folder() / "validation"
    pairs = _pairs(folder, config.preprocessed_folder / "gt_segmentations")
    if not pairs:
        raise UserError(f"{folder} holds no {ENDING} file: run the stage validate first.")
    record = Manifest(folder, "evaluate")
    inputs = pairs_fingerprint(pairs, config.label_set)
    if record.is_done(inputs):
        return read_summary(folder / SUMMARY)
    summary, failures = _summarise(pairs, config.label_set)
    write_json(folder / SUMMARY, summary)
    log_summary(config, "validation", folder / SUMMARY, summary)
    failures.check(len(pairs), config.max_failed_cases)
    record.record(inputs, [folder / SUMMARY])
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
    return evaluate_pairs(_pairs(predictions, references), labels, where=str(predictions))


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
    summary, failures = _summarise(pairs, labels)
    failures.check(len(pairs), allowed)
    return summary


def of_cases(summary: Summary, cases: Collection[str]) -> Summary:
    """The summary of a part of its cases, its means included.

    Args:
        summary: A summary.
        cases: The cases to keep.
    """
    kept = [entry for entry in summary["metric_per_case"] if case_of(entry) in cases]
    return _with_means({**summary, "metric_per_case": kept})


def case_of(entry: Mapping[str, Any]) -> str:
    """The case that an entry of ``metric_per_case`` is about."""
    return stem(entry["prediction_file"])


def flat_means(summary: Summary) -> dict[str, float]:
    """The means of a summary under names for metrics: ``Dice_spleen``, ``HD95_spleen_mm``, ….

    Args:
        summary: A summary, or an empty dictionary.

    Returns:
        Dice, IoU, ASD and HD95 of each structure, and ``mean_…`` of all structures where there is
        more than one or none is undefined; what is undefined is left out.
    """
    units = {"Dice": "", "IoU": "", "ASD": "_mm", "HD95": "_mm"}
    names = summary.get("labels", {})
    result = {}
    for name, unit in units.items():
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
                result[metric_name(flat)] = float(value)
    return result


def log_summary(config: TaskConfig, part: str, path: Path, summary: Summary) -> None:
    """Sends a summary's means, and the file, to the fold's MLflow run.

    Args:
        config: The task's config.
        part: ``validation`` or ``test``: what the names start with.
        path: The summary's file.
        summary: Its content.
    """
    with open_run(config) as tracker:
        tracker.metrics({f"{part}/{name}": v for name, v in flat_means(summary).items()})
        tracker.artifact(path, part)


def pairs_fingerprint(pairs: Mapping[str, tuple[Path, Path]], labels: Labels) -> str:
    """The fingerprint of what decides a summary: the files that are there, cases and labels."""
    return fingerprint(
        {"labels": [labels.structures, labels.ignore], "cases": sorted(pairs)},
        [path for pair in pairs.values() for path in pair if path.is_file()],
    )


# --- how ---


def _pairs(predictions: Path, references: Path) -> dict[str, tuple[Path, Path]]:
    """Every prediction of a folder, and the reference of the same file name."""
    return {
        stem(path): (path, references / path.name)
        for path in sorted(predictions.glob(f"*{ENDING}"))
        if is_nifti(path)
    }


def _summarise(pairs: Mapping[str, tuple[Path, Path]], labels: Labels) -> tuple[Summary, Failures]:
    """The summary of the cases that can be measured, and why others cannot."""
    failures = Failures()
    entries = []
    for number, (case, (prediction_file, reference_file)) in enumerate(pairs.items(), 1):
        with failures.case(case):
            prediction = replace(read_label_map(prediction_file), name=str(prediction_file))
            reference = replace(read_label_map(reference_file), name=str(reference_file))
            check_same_grid(reference, prediction)
            entries.append(
                {
                    "metrics": case_metrics(
                        prediction.array, reference.array, reference.spacing, labels
                    ),
                    "prediction_file": str(prediction_file),
                    "reference_file": str(reference_file),
                }
            )
            progress(f"{case} measured", number, len(pairs))
    summary = {"metric_per_case": entries, "labels": labels.names}
    return _with_means(summary), failures


def _with_means(summary: Summary) -> Summary:
    """Means over cases (undefined ones left out), then over structures (all must be defined)."""
    cases = [entry["metrics"] for entry in summary["metric_per_case"]]
    mean: dict[str, dict[str, float | None]] = {}
    for key, metrics in cases[0].items() if cases else ():
        mean[key] = {
            name: mean_of_defined(case[key][name] for case in cases if case[key][name] is not None)
            for name in metrics
        }
        mean[key]["undefined_distances"] = sum(case[key]["HD95"] is None for case in cases)
    overall = {}
    for name in next(iter(cases[0].values())) if cases else ("Dice",):
        values = [means[name] for means in mean.values()]
        overall[name] = None if None in values else mean_of_defined(values)
    return {**summary, "mean": mean, "foreground_mean": overall}


def mean_of_defined(values: Iterable[Any]) -> float | None:
    """The mean of values of which none is None; None of no values."""
    defined = list(values)
    return float(np.mean(defined)) if defined else None
