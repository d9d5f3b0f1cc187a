"""The files that the numbers become: tables, and a page for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from medseg import __version__
from medseg.config import TaskConfig
from medseg.evaluation.comparison import (
    BETTER,
    COMPARED,
    Comparison,
    compare,
    read_numbers,
    verdict,
)
from medseg.evaluation.figures import Figure, difference_figure
from medseg.evaluation.statistics import LEVEL, RESAMPLES, means_table
from medseg.evaluation.table import metrics_table, write_table
from medseg.project import DataRoot, progress, write_text

INTERVAL = f"{LEVEL:.0%} confidence intervals by bootstrap (BCa, {RESAMPLES} samples of the cases)"

EMPTY = (
    "A structure that is not there leaves no value where it leaves no meaning: Dice and IoU where "
    "reference and prediction both lack it, surface distances where one does, the relative volume "
    "error where the reference does. Such cases are left out of means, intervals and tests, and "
    "are counted as undefined."
)


@dataclass(frozen=True)
class _Table:
    """A table of a page: header, whether a column holds numbers, rows of texts."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    numeric: list[bool]


@dataclass(frozen=True)
class _Page:
    kind: str
    title: str
    subtitle: str
    notes: list[str]
    tables: list[_Table]
    figures: list[Figure] = field(default_factory=list)
    lists: dict[str, list[str]] = field(default_factory=dict)


def export_metrics(config: TaskConfig, folder: Path, folds: Sequence[int] = ()) -> dict[str, Path]:
    """Writes all numbers of a task as tables, and a page with their means.

    Args:
        config: The task's config.
        folder: Where the files go.
        folds: As in :func:`medseg.evaluation.metrics_table`.

    Returns:
        ``table`` and ``means`` (Parquet; the same as CSV beside them) and ``page`` (HTML).

    Raises:
        UserError: As :func:`medseg.evaluation.metrics_table`.
    """
    table = metrics_table(config, folds)
    means = means_table(table)
    paths = {
        "table": write_table(table, folder / "metrics")[-1],
        "means": write_table(means, folder / "means")[-1],
        "page": folder / "metrics.html",
    }
    cases, taken = table["case"].nunique(), list(dict.fromkeys(table["fold"]))
    page = _Page(
        "Metrics",
        config.experiment_name,
        f"{config.configuration}, fold{'s' if len(taken) > 1 else ''} {', '.join(taken)}: "
        f"{cases} cases",
        [
            f"{INTERVAL}. Over all folds a case counts once, with the mean of the folds that "
            "measured it.",
            EMPTY,
            "Every case is in metrics.csv and metrics.parquet beside this page.",
        ],
        [
            _means(f"{split.capitalize()}, {_fold_name(fold)}", group)
            for (split, fold), group in means.groupby(["split", "fold"], sort=False)
        ],
    )
    _write(paths["page"], page)
    progress(f"{len(table)} rows of {cases} cases, folds {', '.join(taken)}")
    return paths


def compare_models(
    root: DataRoot,
    model: str,
    baseline: str,
    folder: Path,
    *,
    split: str = "test",
    model_fold: int = -1,
    baseline_fold: int = -1,
    metrics: Sequence[str] = COMPARED,
) -> dict[str, Path]:
    """Compares two models on the same cases, and writes tables and a page.

    Args:
        root: The data root.
        model: The model's numbers, as in :func:`medseg.evaluation.comparison.read_numbers`.
        baseline: Those of the model that it is compared with.
        folder: Where the files go.
        split: ``validation`` or ``test``.
        model_fold: Fold of the model; negative takes all.
        baseline_fold: Fold of the baseline; negative takes all.
        metrics: As in :func:`medseg.evaluation.comparison.compare`.

    Returns:
        ``table`` and ``pairs`` (Parquet; the same as CSV beside them) and ``page`` (HTML).

    Raises:
        UserError: Numbers cannot be read, or have nothing in common.
    """
    found = compare(
        read_numbers(root, model, split, model_fold, field="model"),
        read_numbers(root, baseline, split, baseline_fold, field="baseline"),
        metrics,
    )
    paths = {
        "table": write_table(found.tests, folder / "comparison")[-1],
        "pairs": write_table(found.pairs, folder / "pairs")[-1],
        "page": folder / "comparison.html",
    }
    names = [
        f"{name}, fold {fold}" if fold >= 0 else name
        for name, fold in ((model, model_fold), (baseline, baseline_fold))
    ]
    _write(paths["page"], _comparison_page(found, *names))
    progress(f"{len(found.cases)} cases compared, {len(found.tests)} tests")
    return paths


# --- pages ---


def _comparison_page(found: Comparison, model: str, baseline: str) -> _Page:
    notes = [
        "Differences are the model's value less the baseline's, case by case: mean, with "
        f"{INTERVAL}. Better, worse and equal count cases.",
        "p is that of Wilcoxon's signed-rank test (two-sided); pairs without a difference are left "
        f"out of it. Holm's correction is over all {len(found.tests)} tests of this page, and a "
        f"verdict is given where the corrected p is below {1 - LEVEL:.2g}. That no difference is "
        "shown does not mean that there is none.",
        EMPTY,
    ]
    few = found.tests["pairs"] < 6
    if few.any():
        notes.append(
            "With fewer than six pairs p cannot fall below 0.05, whatever the values are: "
            f"{few.sum()} of {len(few)} tests here."
        )
    figures = []
    for metric, group in found.pairs.groupby("metric", sort=False):
        points = {
            label: own["difference"].dropna().tolist()
            for label, own in group.groupby("label", sort=False)
        }
        figure = difference_figure(
            metric, group["unit"].iloc[0], points, larger_is_better=BETTER[metric] > 0
        )
        if figure:
            figures.append(figure)
    return _Page(
        "Comparison of two models",
        f"{model} against {baseline}",
        f"{len(found.cases)} cases",
        notes,
        [_tests(found.tests)],
        figures,
        found.left_out,
    )


def _tests(tests: pd.DataFrame) -> _Table:
    header = [
        "Structure", "Metric", "Pairs", "Undefined", "Model", "Baseline", "Difference",
        f"{LEVEL:.0%} interval", "Better / worse / equal", "p", "p (Holm)", "Verdict",
    ]  # fmt: skip
    rows = [
        [
            row.label, _with_unit(row.metric, row.unit), str(row.pairs), str(row.undefined),
            _number(row.mean_model), _number(row.mean_baseline), _number(row.difference, "+"),
            _interval(row.low, row.high, "+"),
            "–" if np.isnan(row.p) else f"{row.better:.0f} / {row.worse:.0f} / {row.equal:.0f}",
            _number(row.p), _number(row.p_holm), verdict(row.metric, row.difference, row.p_holm),
        ]
        for row in tests.itertuples()
    ]  # fmt: skip
    return _Table("Paired differences", header, rows, [False] * 2 + [True] * 9 + [False])


def _means(caption: str, group: pd.DataFrame) -> _Table:
    header = [
        "Structure", "Metric", "Cases", "Undefined", "Mean", f"{LEVEL:.0%} interval",
        "Standard deviation", "Median",
    ]  # fmt: skip
    rows = [
        [
            row.label, _with_unit(row.metric, row.unit), str(row.cases), str(row.undefined),
            _number(row.mean), _interval(row.low, row.high), _number(row.deviation),
            _number(row.median),
        ]
        for row in group.itertuples()
    ]  # fmt: skip
    return _Table(caption, header, rows, [False] * 2 + [True] * 6)


def _fold_name(fold: str) -> str:
    return f"fold {fold}" if fold.isdecimal() else fold


def _with_unit(metric: str, unit: str) -> str:
    return f"{metric} ({unit})" if unit else metric


def _number(value: float, sign: str = "") -> str:
    if value is None or np.isnan(value):
        return "–"
    return f"{value:{sign}.3g}" if abs(value) < 1e-3 and value else f"{value:{sign}.3f}"


def _interval(low: float, high: float, sign: str = "") -> str:
    return "–" if np.isnan(low) else f"{_number(low, sign)} to {_number(high, sign)}"


def _write(path: Path, page: _Page) -> None:
    template = files("medseg.evaluation").joinpath("numbers.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    content: dict[str, Any] = {
        "page": page,
        "written": datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC").lstrip("0"),
        "version": __version__,
    }
    write_text(path, environment.from_string(template).render(**content))
