"""Other predictions of a report's cases: what stands beside the model that it is about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.config import TaskConfig
from medseg.evaluation.parts import Part
from medseg.evaluation.summary import case_of
from medseg.imaging import ENDING
from medseg.nnunet import SUMMARY, Summary, read_summary
from medseg.project import UserError, link_or_copy, progress, write_json

KEPT = "predictions"
"""Folder of a report that keeps the predictions that it shows, for the reports to come."""

SHOWN = 6
"""Other runs in a report, at most."""


@dataclass(frozen=True)
class Run:
    """Predictions of a set of cases, and how they were measured.

    Attributes:
        name: What people know it by.
        folder: Holds ``<case>.nii.gz``.
        summary: Its summary.
    """

    name: str
    folder: Path
    summary: Summary

    @property
    def entries(self) -> dict[str, dict[str, Any]]:
        """Case to its metrics by nnU-Net's key of each structure."""
        return {case_of(entry): entry["metrics"] for entry in self.summary["metric_per_case"]}

    def prediction(self, case: str) -> Path:
        """The label map of a case."""
        return self.folder / f"{case}{ENDING}"


def run_of(part: Part) -> Run:
    """The run that a part of the report shows."""
    return Run(part.name, part.folder, part.summary)


def other_runs(config: TaskConfig, part: str, own: Run, report: Path) -> list[Run]:
    """Runs that predicted cases of ``own`` and were measured against the same reference.

    In this order: what earlier reports kept, the newest first; the model that was promoted before,
    as it was judged; other folds. A run that says what another one says is left out.

    Args:
        config: The task's config.
        part: ``validation`` or ``test``.
        own: The run that the report is about.
        report: The report's folder; what it kept when it was written before is no other run.
    """
    found = [own]
    for name, folder in _places(config, part, report):
        if len(found) > SHOWN or not (folder / SUMMARY).is_file():
            continue
        try:
            run = Run(name, folder, read_summary(folder / SUMMARY))
        except UserError as error:
            progress(f"{name} is not compared: {error}")
            continue
        entries = run.entries
        if not any(same_reference(m, entries.get(case)) for case, m in own.entries.items()):
            continue
        if all(run.entries != other.entries for other in found):
            found.append(run)
    return found[1:]


def same_reference(metrics: dict[str, Any], others: dict[str, Any] | None) -> bool:
    """Whether two entries of a case are about the same structures, each as large in the reference.

    Args:
        metrics: nnU-Net's key of a structure to its metrics.
        others: The same of another run; None where it has no such case.
    """
    return others is not None and all(
        key in others and own.get("n_ref") == others[key].get("n_ref")
        for key, own in metrics.items()
    )


def keep_part(config: TaskConfig, part: Part, report: Path) -> None:
    """Keeps predictions and summary in the report's folder: by hard links, which cost no space.

    Args:
        config: The task's config.
        part: What to keep.
        report: The report's folder.
    """
    own = run_of(part)
    folder = report / KEPT / _name(config) / part.name
    for case in own.entries:
        if own.prediction(case).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            link_or_copy(own.prediction(case), folder / own.prediction(case).name)
    write_json(folder / SUMMARY, own.summary)


def _name(config: TaskConfig) -> str:
    return f"{config.experiment_name}-{config.configuration}-fold_{config.fold}"


def _places(config: TaskConfig, part: str, report: Path) -> Iterator[tuple[str, Path]]:
    kept = (config.root.path / "reports").glob(f"*/{KEPT}/*/{part}/{SUMMARY}")
    earlier = [path.parent for path in kept if report not in path.parents]
    for folder in sorted(earlier, key=lambda p: (p / SUMMARY).stat().st_mtime, reverse=True):
        model, run = folder.parent.name, folder.parents[2].name
        yield (run if model == _name(config) else f"{run} ({model})"), folder
    if part == "test":
        yield "model promoted before", config.results_folder / "present_model"
        for folder in sorted(config.results_folder.glob("fold_*/test")):
            if folder.parent != config.fold_folder():
                yield folder.parent.name.replace("_", " "), folder
