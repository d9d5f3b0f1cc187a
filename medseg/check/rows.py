"""Rows: what was looked at, how it is, and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from medseg.project import UserError, type_and_place

State = Literal["ok", "warning", "failed", "not asked"]


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: What was looked at, in a word or two.
        state: ``ok``, ``warning`` (it works, but not well, or could not be seen), ``failed``, or
            ``not asked``.
        found: What was found, in few words.
        remedy: What to do; empty of what is ok.
    """

    name: str
    state: State
    found: str
    remedy: str = ""

    def to_json(self) -> dict[str, str]:
        """The row as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> Row | None:
        """The row that JSON holds; None where it is none."""
        try:
            row = cls(**{key: str(value) for key, value in content.items()})  # type: ignore[arg-type]
        except (TypeError, AttributeError):
            return None
        return row if row.state in get_args(State) else None


Look = Callable[[], Iterable[Row]]


def looked(name: str, look: Look) -> Iterator[Row]:
    """The rows of a look, and of the error that ended it, if one did.

    Args:
        name: What to call the row of an error.
        look: What yields the rows.

    Yields:
        Rows. Of an error that nobody foresaw type and place only: it may quote a header.
    """
    try:
        yield from look()
    except UserError as error:
        yield refused(name, error)
    except Exception as error:  # noqa: BLE001 - whatever a look does, the others go on
        yield Row(
            name,
            "failed",
            f"the check itself failed ({type_and_place(error)})",
            "tell the makers of kfp-medseg, with this row",
        )


_BREAK = r"[;:] (?![^()]*\))"  # not inside brackets


def refused(name: str, error: UserError, state: State = "failed") -> Row:
    """The row of an error: what its sentence says is wrong, and what it says to do.

    The second is another sentence, or what stands behind the last colon or semicolon.

    Args:
        name: What was looked at.
        error: The error.
        state: How bad it is.
    """
    text = str(error).rstrip(".")
    parts = re.split(r"\. (?=[A-Z])", text, maxsplit=1)
    if len(parts) == 1:
        parts = re.split(rf"{_BREAK}(?!.*{_BREAK})", text, maxsplit=1)
    return Row(name, state, parts[0], *parts[1:])


def worst(rows: Iterable[Row]) -> State:
    """The worst state of all; ``ok`` of none."""
    order: tuple[State, ...] = ("not asked", "ok", "warning", "failed")
    return max((row.state for row in rows), key=order.index, default="ok")
