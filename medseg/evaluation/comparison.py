"""Two models on the same cases: what differs, by how much, and whether that may be chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from medseg.config import load_config
from medseg.evaluation.metrics import UNITS
from medseg.evaluation.statistics import LEVEL, by_case, holm, paired_test
from medseg.evaluation.table import SPLITS, metrics_table, read_table, summary_table
from medseg.project import DataRoot, UserError, progress

BETTER = {"Dice": 1, "IoU": 1, "ASD": -1, "HD95": -1, "volume_error_abs": -1}
"""The metrics that two models can be compared by, and the sign of a difference for the better."""

COMPARED = ("Dice", "ASD", "HD95", "volume_error_abs")
"""Those compared by default; IoU says the same as Dice, and every further test costs strength."""


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found.

    Attributes:
        tests: A row for each structure and metric: ``pairs`` (cases with a value from both),
            ``undefined`` (cases where one or both have none), means of both models,
            ``difference`` (the model's less the baseline's) with its interval (``low``,
            ``high``), how many cases are ``better``, ``worse`` and ``equal``, Wilcoxon's
            ``statistic``, ``p``, and ``p_holm``, corrected over all rows.
        pairs: A row for each case, structure and metric, with both values and the difference.
        cases: Those that were compared.
        left_out: Why cases or structures were not compared, to their names.
    """

    tests: pd.DataFrame
    pairs: pd.DataFrame
    cases: list[str]
    left_out: dict[str, list[str]] = field(default_factory=dict)


def read_numbers(root: DataRoot, name: str, split: str, fold: int, *, field: str) -> pd.DataFrame:
    """The numbers of one model, wherever they are.

    Args:
        root: The data root.
        name: A task's config (``.yaml``), a table of ``export_metrics`` (``.csv``,
            ``.parquet``), or a ``summary.json``, whose cases are one set whatever it is called.
        split: ``validation`` or ``test``: which rows of a config or table.
        fold: Which of its folds; negative takes all, and the mean of each case over them.
        field: The name of the parameter, for messages.

    Returns:
        The rows of a table of numbers.

    Raises:
        UserError: It is none of these, cannot be read, or has no such rows.
    """
    path = root.resolve(name, field=field)
    kind = path.suffix.lower()
    if kind == ".json":
        return summary_table(path)
    if split not in SPLITS:
        raise UserError(f"split is {split!r}: give {' or '.join(SPLITS)}.")
    if kind in (".yaml", ".yml"):
        table = metrics_table(load_config(name, root), [fold] if fold >= 0 else ())
    elif kind in (".csv", ".parquet"):
        table = read_table(path)
        if fold >= 0:
            table = table[table["fold"] == str(fold)]
    else:
        raise UserError(
            f"{field} is {name}: give a config (.yaml), a table of export_metrics (.parquet, .csv) "
            "or a summary.json."
        )
    wanted = table[table["split"] == split]
    if wanted.empty:
        sets = table[["split", "fold"]].drop_duplicates().itertuples(index=False)
        there = [f"{own.split} of fold {own.fold}" for own in sets]
        raise UserError(
            f"{name} holds no {split} results{f' of fold {fold}' if fold >= 0 else ''} "
            f"({', '.join(there) or 'nothing'} is there): give another split or fold, or run "
            f"{'validate' if split == 'validation' else 'test_model'} first."
        )
    return wanted


def compare(
    model: pd.DataFrame, baseline: pd.DataFrame, metrics: Sequence[str] = COMPARED
) -> Comparison:
    """Compares two models case by case.

    Cases are paired by their identifiers. Where several folds measured a case, their mean is its
    value. A case that only one of them has, or whose reference differs between them, is left out.

    Args:
        model: Rows of a table of numbers (:func:`read_numbers`).
        baseline: Those of the model that it is compared with.
        metrics: Metrics to compare, of :data:`BETTER`.

    Raises:
        UserError: A metric cannot be compared, or no case is in both.
    """
    metrics = list(dict.fromkeys(metrics))
    unknown = [metric for metric in metrics if metric not in BETTER]
    if unknown or not metrics:
        raise UserError(
            f"metrics names {', '.join(unknown) or 'nothing'}: give some of {', '.join(BETTER)}."
        )
    both = {"the model": model, "the baseline": baseline}
    left_out: dict[str, list[str]] = {}
    for column, what in (("case", "cases"), ("label", "structures")):
        _check_common(both, column, what)
        for (name, own), other in zip(both.items(), reversed(list(both.values())), strict=True):
            only = sorted(set(own[column]) - set(other[column]))
            if only:
                left_out[f"{what} that only {name} has"] = only
    changed = _other_references(model, baseline)
    if changed:
        left_out["cases whose reference is not the same"] = changed
    common = sorted(set(model["case"]) & set(baseline["case"]) - set(changed))
    if not common:
        raise UserError(
            f"the references of all {len(changed)} common cases differ: measure both models on the "
            "same labels."
        )
    pairs = _pairs(model, baseline, common, metrics)
    tests = _tests(pairs)
    for what, names in left_out.items():
        progress(f"left out: {len(names)} {what}")
    return Comparison(tests, pairs, common, left_out)


def _check_common(both: Mapping[str, pd.DataFrame], column: str, what: str) -> None:
    (first, one), (second, other) = both.items()
    if not set(one[column]) & set(other[column]):
        raise UserError(
            f"no {what} are in both: {first} has {_some(one[column])}; {second} has "
            f"{_some(other[column])}. Compare results on the same data."
        )


def _some(names: pd.Series) -> str:
    found = sorted(set(names))
    return ", ".join(found[:3]) + (f" and {len(found) - 3} others" if len(found) > 3 else "")


def _other_references(model: pd.DataFrame, baseline: pd.DataFrame) -> list[str]:
    """Cases of which a structure's reference has another number of voxels in the two."""
    sizes = [
        own[own["metric"] == "n_ref"].groupby(["case", "label"])["value"].agg(["min", "max"])
        for own in (model, baseline)
    ]
    joined = pd.concat(sizes, axis="columns", join="inner")
    changed = joined[joined.nunique(axis="columns") > 1]
    return sorted(set(changed.index.get_level_values("case")))


def _pairs(
    model: pd.DataFrame, baseline: pd.DataFrame, cases: list[str], metrics: Sequence[str]
) -> pd.DataFrame:
    parts = []
    labels = [name for name in dict.fromkeys(model["label"]) if name in set(baseline["label"])]
    for label in labels:
        for metric in metrics:
            values = {
                name: by_case(own[(own["label"] == label) & (own["metric"] == metric)])
                for name, own in (("model", model), ("baseline", baseline))
            }
            part = pd.DataFrame(values).reindex(cases).rename_axis("case").reset_index()
            part.insert(1, "label", label)
            part.insert(2, "metric", metric)
            part.insert(3, "unit", UNITS[metric])
            part["difference"] = part["model"] - part["baseline"]
            parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _tests(pairs: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (label, metric, unit), group in pairs.groupby(["label", "metric", "unit"], sort=False):
        own = group.dropna(subset=["difference"])
        row = {"label": label, "metric": metric, "unit": unit, "pairs": len(own)}
        row["undefined"] = len(group) - len(own)
        if len(own):
            test = paired_test(own["model"].to_numpy(), own["baseline"].to_numpy())
            low, high = test.interval or (np.nan, np.nan)
            signs = np.sign(own["difference"]) * BETTER[metric]
            row |= {
                "mean_model": own["model"].mean(), "mean_baseline": own["baseline"].mean(),
                "difference": test.difference, "low": low, "high": high,
                "better": int((signs > 0).sum()), "worse": int((signs < 0).sum()),
                "equal": int((signs == 0).sum()), "statistic": test.statistic, "p": test.p,
            }  # fmt: skip
        rows.append(row)
    table = pd.DataFrame(rows, columns=[
        "label", "metric", "unit", "pairs", "undefined", "mean_model", "mean_baseline",
        "difference", "low", "high", "better", "worse", "equal", "statistic", "p",
    ])  # fmt: skip
    table["p_holm"] = np.nan
    tested = table["p"].notna()
    table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"].to_numpy())
    return table


def verdict(metric: str, difference: float, p: float) -> str:
    """What a test says, in words.

    Args:
        metric: The metric.
        difference: Mean difference, model less baseline.
        p: The corrected p-value; NaN where there was nothing to test.
    """
    if np.isnan(p):
        return "not tested"
    if p >= 1 - LEVEL or not difference:
        return "no difference shown"
    return "better" if difference * BETTER[metric] > 0 else "worse"
