"""The table, as a page and as lines of a log."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from html import escape

from medseg.check.rows import Row

_COLOURS = {"ok": "#2e7d32", "warning": "#b26a00", "failed": "#c62828", "not asked": "#757575"}

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 14px/1.45 system-ui, sans-serif; margin: 1.5em; }}
table {{ border-collapse: collapse; }}
td, th {{ text-align: left; vertical-align: top; padding: .35em .8em; border-bottom: 1px solid #ddd; }}
td:first-child {{ white-space: nowrap; }}
</style></head><body>
<h1>{title}</h1><p>{verdict}</p>
<table><tr><th>what</th><th>state</th><th>found</th><th>what to do</th></tr>
{rows}
</table></body></html>
"""  # noqa: E501


def verdict(rows: Sequence[Row]) -> str:
    """How many rows are how, in one line."""
    counts = {state: sum(row.state == state for row in rows) for state in _COLOURS}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count)


def page(title: str, rows: Sequence[Row]) -> str:
    """The table as an HTML page that needs nothing else.

    Args:
        title: Its title.
        rows: The rows.
    """
    return _PAGE.format(
        title=escape(title), verdict=verdict(rows), rows="\n".join(map(_html, rows))
    )


def _html(row: Row) -> str:
    colour = f"color:{_COLOURS[row.state]};font-weight:600"
    cells = (row.name, row.found, row.remedy)
    name, found, remedy = (f"<td>{escape(text)}</td>" for text in cells)
    return f'<tr>{name}<td style="{colour}">{row.state}</td>{found}{remedy}</tr>'


def lines(rows: Sequence[Row]) -> list[str]:
    """The table as text: a line for each row, and one for what to do, of rows that are not ok."""
    width = max((len(row.name) for row in rows), default=0)
    text = []
    for row in rows:
        text.append(f"{row.state:<9}  {row.name:<{width}}  {' '.join(row.found.split())}")
        if row.remedy:
            text.append(f"{'':<9}  {'':<{width}}  {_ARROW}{' '.join(row.remedy.split())}")
    return text


_ARROW = "-> "
_LINE = re.compile(rf"({'|'.join(_COLOURS)}) {{2,}}(\S.*?) {{2,}}(\S.*)")


def read_lines(text: Iterable[str]) -> list[Row]:
    """The rows that a log holds as :func:`lines` writes them.

    Args:
        text: The log's lines.
    """
    rows: list[Row] = []
    for line in text:
        if match := _LINE.fullmatch(line.rstrip()):
            rows.append(Row(match[2], match[1], match[3]))  # type: ignore[arg-type]
        elif rows and (remedy := line.strip()).startswith(_ARROW):
            rows[-1] = replace(rows[-1], remedy=remedy.removeprefix(_ARROW))
    return rows
