"""The table of numbers: a row for each case, fold, split, structure and metric.

It is tidy (one value a row), so that pandas, R and spreadsheets group and filter it as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medseg.bundle import model_file
from medseg.config import TaskConfig
from medseg.dataset import QualityRow, files_of, read_quality
from medseg.evaluation.metrics import UNITS, volumes, why_undefined
from medseg.evaluation.summary import case_of
from medseg.imaging import ENDING, read_header
from medseg.nnunet import SUMMARY, TrainedFold, read_summary
from medseg.project import UserError, atomic_file, file_hash, progress
from medseg.tracking import run_id

SPLITS = ("validation", "test")

KEYS = {
    "case": str, "label": str, "label_value": str, "metric": str, "value": float, "unit": str,
    "reason": str, "fold": str, "split": str, "run_id": str, "model_sha256": str,
    "dataset_hash": str, "config": str,
}  # fmt: skip
"""What a row says: the case, the structure and nnU-Net's key of it, the metric, its value and unit,
why there is none, and where it comes from."""

FACTS = {
    **{f"size_{axis}": float for axis in "ijk"},
    **{f"spacing_{axis}": float for axis in "ijk"},
    "intensity_min": float, "intensity_max": float, "orientation": str, "warnings": str,
}  # fmt: skip
"""What it says of the case's image: voxels and millimetres along i, j, k; the rest where the
dataset was converted from DICOM by this project."""


@dataclass(frozen=True)
class _Source:
    """A summary, and what all of its rows share."""

    summary: Path
    names: dict[str, str]
    shared: dict[str, str]
    quality: dict[str, QualityRow] = field(default_factory=dict)
    config: TaskConfig | None = None


def metrics_table(config: TaskConfig, folds: Sequence[int] = ()) -> pd.DataFrame:
    """The table of a task, from the summaries that ``validate`` and ``test_model`` left.

    Args:
        config: The task's config.
        folds: Folds to take, -1 for the config's own; by default all that have results.

    Returns:
        The table, with the columns :data:`KEYS` and :data:`FACTS`, by split, fold, case and
        structure. A value that is not defined is NaN, and ``reason`` says why.

    Raises:
        UserError: There are no results, or a summary cannot be read.
    """
    quality = {row.case: row for row in read_quality(config.data_folder)}
    sources = [
        _Source(
            summary=path,
            names=own.label_set.names,
            shared=_provenance(own, split, path),
            quality=quality,
            config=own,
        )
        for split in SPLITS
        for own in _folds(config, folds)
        if (path := own.fold_folder() / split / SUMMARY).is_file()
    ]
    rows = [row for source in sources for row in _rows(source)]
    if not rows:
        raise UserError(
            f"the summaries in {config.results_folder} hold no case with a label of the config: "
            "run validate again."
        )
    return _frame(rows)


def summary_table(path: Path) -> pd.DataFrame:
    """The table of one summary, nnU-Net's own or one of ours.

    Args:
        path: The ``summary.json``; where the predictions lie beside it, volumes and sizes are known
            too.

    Returns:
        As :func:`metrics_table`; ``split`` is the name of the summary's folder.

    Raises:
        UserError: It is no summary, or holds no case.
    """
    names = read_summary(path).get("labels", {})
    rows = list(_rows(_Source(path, names, {"split": path.parent.name})))
    if not rows:
        raise UserError(f"{path} holds no case: run the prediction again.")
    return _frame(rows)


def write_table(table: pd.DataFrame, target: Path) -> list[Path]:
    """Writes a table as CSV and as Parquet, each of them whole or not at all.

    Args:
        table: The table.
        target: The files' path without an ending.

    Returns:
        The two files.
    """
    paths = [target.with_name(f"{target.name}.{ending}") for ending in ("csv", "parquet")]
    with atomic_file(paths[0]) as temporary:
        table.to_csv(temporary, index=False)
    with atomic_file(paths[1]) as temporary:
        table.to_parquet(temporary, index=False)
    return paths


def read_table(path: Path) -> pd.DataFrame:
    """A table that :func:`write_table` wrote.

    Args:
        path: The ``.csv`` or ``.parquet`` file.

    Raises:
        UserError: It is missing, or is no such table.
    """
    columns = KEYS | FACTS
    if not path.is_file():
        raise UserError(f"the table {path} does not exist: run export_metrics first.")
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            table = pd.read_csv(path, dtype=columns, keep_default_na=False, na_values={
                name: [""] for name, kind in columns.items() if kind is float
            })  # fmt: skip
        return _typed(table[list(columns)])
    except (ValueError, KeyError, OSError) as error:  # pyarrow's errors are among these
        raise UserError(
            f"{path} is no table of export_metrics ({str(error).splitlines()[0]}): name its "
            "metrics.csv or metrics.parquet."
        ) from None


# --- how ---


def _folds(config: TaskConfig, folds: Sequence[int]) -> list[TaskConfig]:
    """The config for each fold that is wanted and has results."""

    def has_results(own: TaskConfig) -> bool:
        return any((own.fold_folder() / split / SUMMARY).is_file() for split in SPLITS)

    wanted: list[Any] = [config.fold if fold < 0 else fold for fold in folds]
    if not folds:
        names = [path.name.removeprefix("fold_") for path in config.results_folder.glob("fold_*")]
        wanted = [*sorted(int(name) for name in names if name.isdecimal())]
        wanted += ["all"] if "all" in names else []
    own = [config.model_copy(update={"fold": fold}) for fold in dict.fromkeys(wanted)]
    missing = [str(each.fold) for each in own if folds and not has_results(each)]
    own = [each for each in own if has_results(each)]
    if missing or not own:
        what = f"fold {', '.join(missing)} has no" if missing else "no fold has"
        raise UserError(
            f"{what} results in {config.root.relative(config.results_folder)}: run validate or "
            "test_model first."
        )
    return own


def _provenance(config: TaskConfig, split: str, summary: Path) -> dict[str, str]:
    fold = TrainedFold(config)
    model = fold.final if split == "validation" else model_file(config)
    digest = ""
    if model.is_file():
        if model.stat().st_mtime <= summary.stat().st_mtime:
            digest = file_hash(model)
        else:
            stage = {"validation": "validate", "test": "test_model"}[split]
            progress(
                f"warning: {config.root.relative(model)} is newer than the {split} results of fold "
                f"{config.fold}, whose model is not known therefore: run {stage} again"
            )
    return {
        "fold": str(config.fold),
        "split": split,
        "run_id": run_id(config),
        "model_sha256": digest,
        "dataset_hash": fold.dataset_hash,
        "config": config.root.relative(config.path),
    }


def _rows(source: _Source) -> Iterator[dict[str, Any]]:
    summary = read_summary(source.summary)
    try:
        for entry in summary["metric_per_case"]:
            case = case_of(entry)
            facts = _facts(source, case)
            for key, own in entry["metrics"].items():
                if source.config is not None and key not in source.names:
                    continue  # of a label that the config no longer has
                name = {"label": source.names.get(key, key), "label_value": key}
                for metric in _values(own, facts):
                    yield {"case": case, **name, **metric, **source.shared, **facts}
    except (AttributeError, KeyError, TypeError):
        raise UserError(
            f"{source.summary} is not a summary of nnU-Net: remove it, then run validate again."
        ) from None


def _values(own: dict[str, Any], facts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Metric, value, unit and reason of one structure of a case."""
    n_pred, n_ref = int(own["n_pred"]), int(own["n_ref"])
    spacing = [facts.get(f"spacing_{axis}") for axis in "ijk"]
    millilitres = None if None in spacing else float(np.prod(spacing)) / 1000  # type: ignore[arg-type]
    values = {**own, **volumes(n_pred, n_ref, millilitres)}
    for metric, unit in UNITS.items():
        value = values.get(metric)
        reason = "" if value is not None else why_undefined(metric, n_pred, n_ref)
        if value is None and not reason:
            volume = metric.startswith("volume")
            reason = "no label map to take the spacing from" if volume else "not measured"
        yield {"metric": metric, "value": value, "unit": unit, "reason": reason}


def _facts(source: _Source, case: str) -> dict[str, Any]:
    """What is known of the case's image; its grid is that of prediction and reference."""
    candidates = [source.summary.parent / f"{case}{ENDING}"]
    if config := source.config:
        references = config.preprocessed_folder / "gt_segmentations"
        candidates += [references / f"{case}{ENDING}", files_of(config, case).label]
    facts: dict[str, Any] = {}
    grid = next((path for path in candidates if path.is_file()), None)
    if grid is not None:
        header = read_header(grid)
        facts |= {f"size_{axis}": n for axis, n in zip("ijk", header.shape, strict=True)}
        facts |= {f"spacing_{axis}": mm for axis, mm in zip("ijk", header.spacing, strict=True)}
    if row := source.quality.get(case):
        low, high = row.intensity
        facts |= {"intensity_min": low, "intensity_max": high, "orientation": row.orientation}
        facts["warnings"] = "; ".join(row.warnings)
    return facts


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return _typed(pd.DataFrame(rows, columns=[*KEYS, *FACTS]))


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """Every column of its kind, an empty one too; text that is not there is empty."""
    texts = [name for name, kind in (KEYS | FACTS).items() if kind is str]
    filled = table.assign(**{name: table[name].astype(object).fillna("") for name in texts})
    return filled.astype(KEYS | FACTS).reset_index(drop=True)
