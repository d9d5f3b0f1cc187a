"""Values of all cases of a run, kept beside its report for the reports of later runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from medseg.config import TaskConfig
from medseg.evaluation.parts import Part
from medseg.project import UserError, read_json, write_json

CASES = "cases.json"
MOST = 12
"""Earlier runs that a report can be compared with: the newest."""


@dataclass(frozen=True)
class EarlierRun:
    """A run whose report lies in ``reports/``.

    Attributes:
        name: The folder of its report, and what was trained.
        dice: ``part/case/structure`` to Dice; None where that is undefined.
        mean: Mean of the defined ones.
    """

    name: str
    dice: dict[str, float | None]
    mean: float | None


def write_cases(config: TaskConfig, parts: Sequence[Part], output: Path) -> Path:
    """Writes the values of all cases beside a report.

    Args:
        config: The task's config.
        parts: The report's parts.
        output: The report.

    Returns:
        The file.
    """
    rows = [{"part": part.name, **row} for part in parts for row in part.cases]
    path = output.with_name(CASES)
    content = {
        "task": config.experiment_name,
        "fold": config.fold,
        "configuration": config.configuration,
        "trainer": config.trainer_class_name,
        "plans": config.nnunet_plans_name,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": rows,
    }
    write_json(path, content)
    return path


def earlier_runs(config: TaskConfig, output: Path) -> list[EarlierRun]:
    """The runs of this task with a report, the newest first; what cannot be read is left out.

    Args:
        config: The task's config.
        output: The report to be written, which is none of them.
    """
    found = []
    for path in (config.root.path / "reports").glob(f"*/{CASES}"):
        if path.parent == output.parent:
            continue
        try:
            content: Any = read_json(path)
            if content["task"] == config.experiment_name:
                found.append((str(content["written"]), _run(path.parent.name, content)))
        except (OSError, UserError, KeyError, TypeError, AttributeError):
            continue
    newest = sorted(found, key=lambda item: item[0], reverse=True)[:MOST]
    return [run for _, run in newest]


def _run(folder: str, content: dict[str, Any]) -> EarlierRun:
    dice = {
        f"{row['part']}/{row['case']}/{row['structure']}": row["Dice"] for row in content["rows"]
    }
    defined = [value for value in dice.values() if value is not None]
    name = f"{folder}: {content['configuration']}, fold {content['fold']}"
    return EarlierRun(name, dice, float(np.mean(defined)) if defined else None)
