"""The report's interactive part: its data, the library and our script, ready for the template."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from medseg.config import TaskConfig
from medseg.evaluation.parts import METRICS, Part, case_files
from medseg.evaluation.runs import other_runs, run_of, same_reference
from medseg.evaluation.slices import case_slices
from medseg.nnunet.devices import available_cpus
from medseg.project import Failures, progress

LIBRARY = ("tabulator.min.js", "viewer.js")
STYLE = "tabulator_simple.min.css"
"""Tabulator 6.5.3 (MIT, ``LICENSE.tabulator``), unchanged. To renew: ``npm pack tabulator-tables``,
its ``dist/js`` and ``dist/css`` and licence to ``assets``, then test_report_browser.py."""

ROOM = 24_000_000
"""Characters for the slices of all cases; the whole report stays below 30 MB."""

CASE_ROOM = 200_000
"""Characters for the slices of one case, where there are few."""

THIS = "this report"


@dataclass(frozen=True)
class Study:
    """Table and viewer, as JSON values for the report's script.

    Attributes:
        table: ``metrics`` (name and unit), ``structures`` (name and values in label maps), ``runs``
            (names; the first is the report's own), and ``cases``: ``part``, ``case``, ``missing``
            (why there are no slices), and ``values``: number of the run to a list of each
            structure's metrics.
        slices: What :func:`~medseg.evaluation.slices.case_slices` gives for each case, in the same
            order; None where there are none.
    """

    table: dict[str, Any]
    slices: list[dict[str, Any] | None]


@dataclass(frozen=True)
class Viewer:
    """What the template puts into the page.

    Attributes:
        data: Identifiers of JSON blocks to their text; no markup can come out of it.
        scripts: In their order.
        style: The library's style sheet.
        policy: The only scripts that the page's security policy lets run, by their hashes.
    """

    data: dict[str, str]
    scripts: tuple[str, ...]
    style: str
    policy: str


def build_viewer(config: TaskConfig, parts: Sequence[Part], report: Path) -> Viewer:
    """Reads slices of every case, and gathers what the page needs to show them.

    Args:
        config: The task's config.
        parts: The report's parts, as far as they were measured.
        report: The report's folder.
    """
    study = build_study(config, parts, report)
    # a block a case: the page reads it when the case is opened
    data = {"study": _as_block(study.table)} | {
        f"slices-{number}": _as_block(slices)
        for number, slices in enumerate(study.slices)
        if slices is not None
    }
    assets = files("medseg.evaluation").joinpath("assets")
    texts = {
        name: re.sub(r"(//|/\*)# sourceMappingURL=.*", "", assets.joinpath(name).read_text("utf-8"))
        for name in (*LIBRARY, STYLE)
    }
    scripts = tuple(texts[name] for name in LIBRARY)
    return Viewer(data, scripts, texts[STYLE], " ".join(map(_allowed, scripts)))


def build_study(config: TaskConfig, parts: Sequence[Part], report: Path) -> Study:
    """Collects the values of every case and run, and the slices of every case.

    Args:
        config: The task's config.
        parts: The report's parts.
        report: The report's folder.

    Returns:
        The study. A case whose files cannot be read is in the table alone, with the reason.
    """
    names = [THIS]
    rows: list[dict[str, Any]] = []
    predictions: list[dict[str, Path]] = []
    keys = config.label_set.names
    for part in parts:
        own = run_of(part)
        runs = {0: own}
        for run in other_runs(config, part.name, own, report):
            if run.name not in names:  # a run may have predicted both parts
                names.append(run.name)
            runs[names.index(run.name)] = run
        entries = {number: run.entries for number, run in runs.items()}
        for case, reference in own.entries.items():
            comparable = [n for n in runs if same_reference(reference, entries[n].get(case))]
            values = {
                str(number): [
                    [_rounded(entries[number][case].get(key, {}).get(name)) for name in METRICS]
                    for key in keys
                ]
                for number in comparable
            }
            rows.append({"part": part.name, "case": case, "missing": "", "values": values})
            predictions.append(
                {
                    str(number): runs[number].prediction(case)
                    for number in comparable
                    if number == 0 or runs[number].prediction(case).is_file()
                }
            )
    table = {
        "metrics": [{"name": name, "unit": unit} for name, unit in METRICS.items()],
        "structures": [structure._asdict() for structure in config.label_set.structures.values()],
        "runs": names,
        "cases": rows,
    }
    return Study(table, _slices(config, rows, predictions))


def _slices(
    config: TaskConfig, rows: list[dict[str, Any]], predictions: Sequence[Mapping[str, Path]]
) -> list[dict[str, Any] | None]:
    channel = (config.modality_list or list(config.channels))[0]
    room = min(CASE_ROOM, ROOM // max(len(rows), 1))

    def of(row: dict[str, Any], files: Mapping[str, Path]) -> dict[str, Any] | None:
        failures, case = Failures(), row["case"]
        with failures.case(case):
            own = case_files(config, row["part"], files["0"].parent, case)
            return case_slices(
                own.image, own.reference, files, config.label_set, channel=channel, room=room
            )
        row["missing"] = failures.reasons[case]
        return None

    slices = []
    with ThreadPoolExecutor(available_cpus()) as pool:  # unpacking frees the lock
        for number, found in enumerate(pool.map(of, rows, predictions), 1):
            slices.append(found)
            progress(f"slices of {rows[number - 1]['case']}", number, len(rows))
    return slices


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 6)


def _as_block(content: Any) -> str:
    """JSON that can stand inside a script element: nothing in it can end that."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _allowed(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
