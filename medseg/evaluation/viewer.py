"""The report's interactive part: its data, the library and our script, ready for the template."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

from medseg.config import TaskConfig
from medseg.evaluation.parts import METRICS, Part, case_files
from medseg.evaluation.runs import EarlierRun
from medseg.evaluation.slices import CaseFiles, Slices, all_slices
from medseg.project import progress

LIBRARY = ("tabulator.min.js", "viewer.js")
STYLE = "tabulator_simple.min.css"
"""Tabulator 6.5.3 (MIT, ``LICENSE.tabulator``), unchanged: ``npm pack tabulator-tables``, then
``dist/js`` and ``dist/css``."""


@dataclass(frozen=True)
class Viewer:
    """What the template puts into the page.

    Attributes:
        data: The JSON block; no markup can come out of it.
        scripts: In their order.
        style: The library's style sheet.
        policy: The only scripts that the page's security policy lets run, by their hashes.
    """

    data: str
    scripts: tuple[str, ...]
    style: str
    policy: str


def build_viewer(config: TaskConfig, parts: Sequence[Part], runs: Sequence[EarlierRun]) -> Viewer:
    """Reads slices of every case, and gathers what the page needs to show them.

    Args:
        config: The task's config.
        parts: The report's parts.
        runs: Runs to compare with.
    """
    rows = [{"part": part.name, **row} for part in parts for row in part.cases]
    content = {
        "metrics": [{"name": name, "unit": unit} for name, unit in METRICS.items()],
        "rows": [{"id": number, **row} for number, row in enumerate(rows)],
        "slices": _slices(config, parts),
        "runs": [{"name": run.name, "dice": run.dice} for run in runs],
    }
    assets = files("medseg.evaluation").joinpath("assets")
    texts = {
        name: re.sub(r"(//|/\*)# sourceMappingURL=.*", "", assets.joinpath(name).read_text("utf-8"))
        for name in (*LIBRARY, STYLE)
    }
    scripts = tuple(texts[name] for name in LIBRARY)
    return Viewer(_as_block(content), scripts, texts[STYLE], " ".join(map(_allowed, scripts)))


def _slices(config: TaskConfig, parts: Sequence[Part]) -> dict[str, Any]:
    cases: dict[str, CaseFiles] = {
        f"{part.name}/{case}": case_files(config, part.name, part.folder, case)
        for part in parts
        for case in dict.fromkeys(row["case"] for row in part.cases)
    }
    structures = config.label_set.structures.values()
    values = sorted({value for structure in structures for value in structure.values})
    channel = (config.modality_list or list(config.channels))[0]
    found: dict[str, Any] = {}
    for number, (key, slices) in enumerate(
        zip(cases, all_slices(list(cases.values()), values, channel), strict=True), start=1
    ):
        found[key] = asdict(slices) if isinstance(slices, Slices) else slices
        if number % 25 == 0 or number == len(cases):
            progress("pictures of the cases", number, len(cases))
    return found


def _as_block(content: Any) -> str:
    """JSON that can stand inside a script element: nothing in it can end that."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _allowed(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
