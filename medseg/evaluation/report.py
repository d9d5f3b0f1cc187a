"""The report: one HTML file that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from medseg import __version__
from medseg.config import TaskConfig
from medseg.evaluation.facts import (
    CaseFacts,
    dataset_facts,
    file_hashes,
    plans_facts,
    training_facts,
    versions,
)
from medseg.evaluation.figures import dataset_figure, metric_figure, training_figure
from medseg.evaluation.overlays import overlay_figure
from medseg.evaluation.parts import METRICS, Part, case_files
from medseg.evaluation.runs import keep_part
from medseg.evaluation.summary import case_of
from medseg.evaluation.viewer import build_viewer
from medseg.nnunet import SUMMARY, History, TrainedFold, read_summary
from medseg.project import UserError, duration, progress, write_text
from medseg.project.files import remove_stale


def write_report(config: TaskConfig, output: Path, test: Path | None = None) -> Path:
    """Writes the report of the config's fold: what went in, how it was trained, what came out.

    Dataset, training curves, distributions of every metric, a table of all cases that sorts and
    filters, a viewer of their slices, overlays of the best, median and worst case, other runs to
    compare with, and versions and SHA-256 hashes. What a stage has not produced yet is left out,
    with the reason in its place. Nothing comes from elsewhere, and no script runs but those of the
    file; cases go by their identifiers. In ``reports/<run>`` the predictions are kept beside it,
    for the reports of later runs.

    Args:
        config: The task's config.
        output: The HTML file.
        test: The summary of the test cases, its predictions beside it; default: the one that
            :func:`medseg.evaluation.evaluate_test_cases` left.

    Returns:
        ``output``.

    Raises:
        UserError: A summary exists but cannot be read.
    """
    folder = config.fold_folder()
    structures = config.label_set.per_class
    parts = [
        _part(config, "validation", folder / "validation" / SUMMARY),
        _part(config, "test", test or folder / "test" / SUMMARY),
    ]
    measured = [part for part in parts if part.cases]
    cases, dataset_source = dataset_facts(config)
    history, training_source = training_facts(config)
    settings = TrainedFold(config).settings
    figures = [
        figure
        for metric, unit in METRICS.items()
        if (figure := metric_figure(metric, unit, _points(measured, metric)))
    ]
    viewer = build_viewer(config, measured, output.parent) if measured else None
    template = files("medseg.evaluation").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = _number
    html = environment.from_string(template).render(
        config=config,
        fold=config.fold,
        written=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC").lstrip("0"),
        version=__version__,
        channels=config.modality_list or list(config.channels),
        structures=structures,
        metrics=METRICS,
        tiles=_tiles(cases, parts, history, settings),
        cases=cases,
        counts={
            part: sum(case.part == part for case in cases)
            for part in ("training", "validation", "test")
        },
        ranges=_ranges(cases),
        warned=[case for case in cases if case.warnings],
        dataset_source=dataset_source,
        dataset_figure=dataset_figure(cases) if cases else None,
        training_source=training_source,
        training_figure=training_figure(history) if history else None,
        plans=plans_facts(config),
        training_settings=_training_settings(config, history, settings),
        parts=parts,
        metric_figures=figures,
        viewer=viewer,
        allowed_scripts=viewer.policy if viewer else "'none'",
        hashes=file_hashes(config),
        versions=versions(),
    )
    for run in (config.root.path / "reports").glob("*"):
        remove_stale(run / output.name)  # each run has a folder of its own, a killed one too
    write_text(output, html)
    if output.parent.parent == config.root.path / "reports":
        for part in measured:
            keep_part(config, part, output.parent)
    progress(f"report of fold {config.fold}: {len(html) / 1e6:.1f} MB")
    return output


def _part(config: TaskConfig, name: str, path: Path) -> Part:
    if not path.is_file():
        if name == "test" and not config.test_cases:
            return Part(name, {}, "The config names no test_cases.")
        stage = {"validation": "validate", "test": "test_model"}[name]
        where = config.root.relative(path) if path.is_relative_to(config.root.path) else path.name
        return Part(name, {}, f"There is no {where}: the stage {stage} has not run.")
    summary = read_summary(path)
    structures = config.label_set.names
    rows = [
        {"case": case_of(entry), "structure": structure}
        | {metric: entry["metrics"][key].get(metric) for metric in METRICS}
        for entry in summary["metric_per_case"]
        for key, structure in structures.items()
        if key in entry["metrics"]
    ]
    if not rows:
        return Part(name, summary, f"{path.name} holds no case with a label of the config.")
    means = [
        {"structure": structure, "count": len(own)}
        | {metric: _statistics([row[metric] for row in own]) for metric in METRICS}
        for structure in structures.values()
        if (own := [row for row in rows if row["structure"] == structure])
    ]
    overlays = _overlays(config, name, path.parent, rows)
    return Part(name, summary, "", means, rows, overlays, path.parent)


def _statistics(values: Sequence[float | None]) -> dict[str, Any] | None:
    defined = [value for value in values if value is not None]
    if not defined:
        return None
    return {
        "mean": float(np.mean(defined)),
        "deviation": float(np.std(defined, ddof=1)) if len(defined) > 1 else None,
        "median": float(np.median(defined)),
        "undefined": len(values) - len(defined),
    }


def _overlays(config: TaskConfig, name: str, folder: Path, rows: list[dict[str, Any]]) -> list[Any]:
    """Figures of the best, median and worst case by mean Dice; or sentences why there is none."""
    dice: dict[str, list[float]] = {}
    for row in rows:
        if row["Dice"] is not None:
            dice.setdefault(row["case"], []).append(row["Dice"])
    ranked = sorted(dice, key=lambda case: (float(np.mean(dice[case])), case))
    chosen: dict[str, str] = {}
    if ranked:
        for title, index in (("Best", -1), ("Median", len(ranked) // 2), ("Worst", 0)):
            case = ranked[index]
            chosen[case] = f"{chosen[case]}, {title.lower()}" if case in chosen else title
    channel = (config.modality_list or list(config.channels))[0]
    overlays: list[Any] = []
    for case, title in chosen.items():
        own = case_files(config, name, folder, case)
        progress(f"{name}: overlay of {case}")
        caption = f"{title}: {case}, Dice {np.mean(dice[case]):.3f}"
        if len(dice[case]) > 1:
            caption += " (mean of its structures)"
        try:
            overlays.append(
                overlay_figure(
                    own.image, own.reference, own.prediction, config.label_set,
                    channel=channel, case=case, caption=caption,
                )
            )  # fmt: skip
        except UserError as error:
            overlays.append(f"{caption}: {error}")
    return overlays


def _points(parts: Sequence[Part], metric: str) -> dict[str, dict[str, list[float]]]:
    points: dict[str, dict[str, list[float]]] = {}
    for part in parts:
        for row in part.cases:
            values = points.setdefault(part.name, {}).setdefault(row["structure"], [])
            if row[metric] is not None:
                values.append(row[metric])
    return points


def _tiles(
    cases: list[CaseFacts], parts: list[Part], history: History | None, settings: dict[str, Any]
) -> list[tuple[str, str, str]]:
    """The figures at the top: value, what it is, and a remark."""
    tiles = []
    for part in parts:
        count = len(part.summary.get("metric_per_case", ()))
        means = part.summary.get("foreground_mean", {})
        if part.cases:
            remark = f"{count} {part.name} case{'s' if count != 1 else ''}"
            tiles.append((_number(means.get("Dice")), f"{part.name} Dice", remark))
            distance = means.get("HD95")
            shown = "–" if distance is None else f"{distance:.1f} mm"
            tiles.append((shown, f"{part.name} HD95", remark))
    if cases:
        counts = [sum(case.part == name for case in cases) for name in ("training", "validation")]
        tiles.append(
            (str(len(cases)), "cases", f"{counts[0]} to train on, {counts[1]} to validate")
        )
    if history:
        steps = settings["num_iterations_per_epoch"]
        tiles.append((str(len(history)), "epochs", f"of {steps} steps"))
    return tiles


def _ranges(cases: list[CaseFacts]) -> list[tuple[str, str]]:
    """Rows of the dataset's table: smallest, median and largest of everything."""
    if not cases:
        return []

    def row(values: Any) -> str:
        values = np.asarray(values, dtype=float)
        low, middle, high = values.min(), np.median(values), values.max()
        return f"{middle:.4g} ({low:.4g} to {high:.4g})"

    rows = [
        ("Spacing in plane (mm)", row([case.spacing[0] for case in cases])),
        ("Spacing between slices (mm)", row([case.spacing[2] for case in cases])),
        ("Columns × rows × slices", " × ".join(
            f"{value:g}" for value in np.median([case.size for case in cases], axis=0)
        )),
    ]  # fmt: skip
    intensities = [case.intensity for case in cases if case.intensity]
    if intensities:
        rows.append(("Smallest intensity", row([low for low, _ in intensities])))
        rows.append(("Largest intensity", row([high for _, high in intensities])))
    for name in dict.fromkeys(name for case in cases for name in case.volumes_ml):
        volumes = [case.volumes_ml[name] for case in cases if name in case.volumes_ml]
        rows.append((f"Volume of {name} (ml)", row(volumes)))
    return rows


def _training_settings(
    config: TaskConfig, history: History | None, settings: dict[str, Any]
) -> dict[str, str]:
    rows = {
        "Trainer": config.trainer_class_name,
        "Configuration": f"{config.configuration} of {config.nnunet_plans_name}",
        "Epochs × steps": f"{settings['num_epochs']} × {settings['num_iterations_per_epoch']}",
        "Initial learning rate": f"{settings['initial_lr']:g}",
        "Seed": str(settings["seed"]),
    }
    if config.pretrained_weights:
        frozen = ", encoder frozen" if settings.get("freeze_encoder") else ""
        rows["Started from"] = f"{config.pretrained_weights}{frozen}"
    if history:
        each = map(history.seconds, range(len(history)))
        seconds = [value for value in each if math.isfinite(value)]
        rows["Time"] = f"{duration(sum(seconds))}, {duration(float(np.median(seconds)))} an epoch"
    return rows


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
