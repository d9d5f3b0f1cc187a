"""Intervals, and the paired test: SciPy's, with Holm's correction.

The unit is the case. Where several folds measured a case, their mean is its value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import bootstrap, wilcoxon

RESAMPLES, LEVEL, SEED = 9999, 0.95, 0
"""How intervals are found: samples drawn, confidence level, and the seed that repeats them."""

MEASURED = (
    "Dice", "IoU", "ASD", "HD95",
    "volume_ref", "volume_pred", "volume_error", "volume_error_abs", "volume_error_rel",
)  # fmt: skip
"""The metrics whose means say something; those of counts do not."""

ALL_FOLDS = "all folds"


@dataclass(frozen=True)
class PairedTest:
    """What a paired comparison of two series says.

    Attributes:
        difference: Mean of the differences, first less second.
        interval: Its confidence interval; None of a single pair.
        statistic: Wilcoxon's, the smaller sum of signed ranks.
        p: Two-sided.
    """

    difference: float
    interval: tuple[float, float] | None
    statistic: float
    p: float


def mean_interval(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, float] | None:
    """The bootstrap's confidence interval of a mean (BCa, :func:`scipy.stats.bootstrap`).

    Args:
        values: Defined values of cases that are independent of each other.

    Returns:
        Its ends; both the value itself where all are equal; None for fewer than two values.
    """
    data = np.asarray(values, dtype=float)
    if len(data) < 2:
        return None
    if np.ptp(data) <= 1e-12 * np.abs(data).max():  # BCa divides by their spread
        return float(data[0]), float(data[0])
    found = bootstrap(
        (data,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        batch=1000,
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


def paired_test(first: Sequence[float], second: Sequence[float]) -> PairedTest:
    """Wilcoxon's signed-rank test, and the mean difference with its interval.

    Pairs without a difference are left out of the test, as Wilcoxon did and SciPy does by default;
    where no pair differs, p is 1.

    Args:
        first: Values of the cases, one at least.
        second: Values of the same cases in the same order.
    """
    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    statistic, p = 0.0, 1.0
    if differences.any():
        found = wilcoxon(first, second)
        statistic, p = float(found.statistic), float(found.pvalue)
    return PairedTest(float(differences.mean()), mean_interval(differences), statistic, p)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction for testing several hypotheses at once.

    SciPy has corrections of the false discovery rate only.

    Args:
        p: The p-values, without NaN.

    Returns:
        The corrected ones, in the same order, 1 at most.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    values = np.asarray(p, dtype=float)
    order = np.argsort(values, kind="stable")
    steps = values[order] * np.arange(len(values), 0, -1)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return [float(value) for value in corrected]


def means_table(table: pd.DataFrame) -> pd.DataFrame:
    """Means of a table of numbers, with their intervals.

    Args:
        table: As :func:`medseg.evaluation.metrics_table` gives it.

    Returns:
        A row for each split, fold, structure and metric, and over all folds where there are
        several: ``cases`` (with a value), ``undefined`` (without), ``mean``, ``low`` and ``high``
        (95 % interval), ``deviation`` (standard deviation) and ``median``; NaN where there is none.
    """
    measured = table[table["metric"].isin(MEASURED)]
    rows = []
    for split, part in measured.groupby("split", sort=False):
        folds = list(part["fold"].unique())
        parts = {fold: part[part["fold"] == fold] for fold in folds}
        if len(folds) > 1:
            parts[ALL_FOLDS] = part
        for fold, own in parts.items():
            for (label, metric, unit), group in own.groupby(
                ["label", "metric", "unit"], sort=False
            ):
                values = by_case(group)
                defined = values.dropna().to_numpy()
                low, high = mean_interval(defined) or (np.nan, np.nan)
                rows.append(
                    {
                        "split": split, "fold": fold, "label": label, "metric": metric,
                        "unit": unit, "cases": len(defined),
                        "undefined": len(values) - len(defined),
                        "mean": defined.mean() if len(defined) else np.nan,
                        "low": low, "high": high,
                        "deviation": defined.std(ddof=1) if len(defined) > 1 else np.nan,
                        "median": np.median(defined) if len(defined) else np.nan,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def by_case(group: pd.DataFrame) -> pd.Series:
    """The value of each case: the mean of the folds where it has one; NaN where it has none."""
    return group.groupby("case", sort=True)["value"].mean()
