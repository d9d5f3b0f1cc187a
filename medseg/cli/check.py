"""Showing what a check has found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medseg.check import Row, read_rows, verdict, worst
from medseg.kubeflow.local import LocalRun

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red", "not asked": "bright_black"}


def show_rows(rows: Sequence[Row]) -> None:
    """Prints the table."""
    table = Table("what", "state", "found", box=None, pad_edge=False)
    for row in rows:
        # not a column of its own: the sentences need the room
        remedy = f"\n[bold]->[/] {escape(row.remedy)}" if row.remedy else ""
        state = f"[{_COLOURS[row.state]}]{row.state}[/]"
        table.add_row(escape(row.name), state, escape(row.found) + remedy)
    console = Console(highlight=False)
    console.print(table)
    console.print(verdict(rows))


def show_local(run: LocalRun) -> bool:
    """Prints the table of a local run of ``check``.

    Args:
        run: The run.

    Returns:
        Whether nothing failed.
    """
    for label, path in run.results:
        if label == "check":
            rows = read_rows(Path(path).parent)
            show_rows(rows)
            return worst(rows) != "failed"
    return False
