"""What the report's parts share: the sets of cases, and where the files of a case lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg.config import TaskConfig
from medseg.dataset import files_of
from medseg.imaging import ENDING
from medseg.nnunet import Summary

METRICS = {"Dice": "", "IoU": "", "ASD": "mm", "HD95": "mm"}
"""What is shown, with units. Dice decides which case is best and which is worst."""


@dataclass(frozen=True)
class CaseFiles:
    """The files of a case; label maps lie on the image's grid.

    Attributes:
        case: Identifier.
        image: NIfTI; of four dimensions, the first channel is shown.
        reference: Label map.
        prediction: Label map.
    """

    case: str
    image: Path
    reference: Path
    prediction: Path


@dataclass(frozen=True)
class Part:
    """The results on one set of cases.

    Attributes:
        name: ``validation`` or ``test``.
        summary: Its summary; empty where there is none.
        missing: Why there is none.
        means: Rows of the table of means: structure, number of cases, then for each metric mean,
            standard deviation, median and number of cases where it is undefined (or None).
        cases: Rows of the table of cases: case, structure, then the value of each metric.
        overlays: Best, median and worst case.
        folder: Where the predictions lie.
    """

    name: str
    summary: Summary
    missing: str = ""
    means: list[dict[str, Any]] = field(default_factory=list)
    cases: list[dict[str, Any]] = field(default_factory=list)
    overlays: list[Any] = field(default_factory=list)
    folder: Path = Path()


def case_files(config: TaskConfig, part: str, folder: Path, case: str) -> CaseFiles:
    """Image, reference and prediction of a case.

    Args:
        config: The task's config.
        part: ``validation`` or ``test``.
        folder: Where the predictions lie.
        case: Identifier.
    """
    prediction = folder / f"{case}{ENDING}"
    if part == "test":
        own = files_of(config, case)
        return CaseFiles(case, own.images[0], own.label, prediction)
    image = config.raw_folder / "imagesTr" / f"{case}_0000{ENDING}"
    reference = config.preprocessed_folder / "gt_segmentations" / f"{case}{ENDING}"
    return CaseFiles(case, image, reference, prediction)
