"""Errors for the person at the other end."""

from __future__ import annotations

import difflib
import errno
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError


class UserError(Exception):
    """Something that the user can mend.

    The message is one sentence or two: what is wrong, in which file or field, what to do.
    It is shown without a traceback (see :func:`medseg.project.stage`).
    """


class CasesFailedError(UserError):
    """Some cases of a stage failed; the others are finished and kept.

    Args:
        stage: The stage, to begin the message with; may be empty.
        reasons: Case identifier to the reason for its failure.
        total: How many cases there are in all; of a lone one the message is its reason.
        allowed: How many might have failed.

    Attributes:
        reasons: As given.
    """

    def __init__(self, stage: str, reasons: dict[str, str], total: int, allowed: int) -> None:
        self.reasons = dict(reasons)
        listed = "; ".join(_of_case(case, reason) for case, reason in reasons.items())
        if total > 1:
            listed = (
                f"{len(reasons)} of {total} cases failed ({allowed} allowed); "
                f"the others are finished and kept. {listed}"
            )
        super().__init__(": ".join(filter(None, (stage, f"{listed}."))))


def _of_case(case: str, reason: str) -> str:
    reason = reason.removesuffix(".")
    return reason if reason.startswith((f"{case}:", f"{case} ")) else f"{case}: {reason}"


def explain_os_error(error: OSError) -> UserError | None:
    """Turns a full disk or a read-only volume into a sentence; other errors stay what they are.

    Args:
        error: The error that the operating system raised.

    Returns:
        The error to show, or None where this one is not about the volume.
    """
    where = error.filename or error.filename2 or "the data root"
    if isinstance(where, Path | str):
        where = str(where)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"the disk is full: writing {where} failed. Free some space or enlarge the volume, "
            "then run the same command again; finished work is kept."
        )
    if error.errno == errno.EACCES and error.filename and os.access(error.filename, os.F_OK):
        return UserError(
            f"{where} cannot be opened: it belongs to another user. Change its owner or mode (or "
            "run as its owner), then run the same command again."
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return UserError(
            f"{where} cannot be written: its volume is read-only or belongs to another user. "
            "Mount it writable (or run as its owner), then run the same command again."
        )
    return None


@contextmanager
def explained_os_errors() -> Iterator[None]:
    """Makes a sentence of an error of the volume: a full disk, no right to write.

    Raises:
        UserError: As :func:`explain_os_error` words it; other errors stay what they are.
    """
    try:
        yield
    except OSError as error:
        explained = explain_os_error(error)
        if explained is None:
            raise
        raise explained from error


def type_and_place(error: BaseException) -> str:
    """An error without its text, which may quote what stands in a DICOM header.

    Returns:
        Its type, and the file and line that raised it.
    """
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} in {Path(last.filename).name}, line {last.lineno}"


def print_unquoted(error: BaseException) -> None:
    """Prints where an error comes from and what type it has, on stderr, without its text."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    print(f"{frames}error: {type_and_place(error)}", file=sys.stderr, flush=True)


@contextmanager
def unquoted_errors() -> Iterator[None]:
    """Ends a program that reads DICOM without the text of an unforeseen error.

    Raises:
        UserError: As it was raised, or of an error of the volume.
        SystemExit: With status 1, after any other error, which is told by type and place.
    """
    try:
        with explained_os_errors():
            yield
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it may quote a header
        print_unquoted(error)
        raise SystemExit(1) from None


def hint(word: str, words: Iterable[str]) -> str:
    """Names the one of ``words`` that ``word`` is a misspelling of, for the end of a message.

    Args:
        word: What was given.
        words: What is known.

    Returns:
        ``" (did you mean 'train'?)"``; empty where nothing is like it.
    """
    folded = {each.casefold(): each for each in words}
    near = difflib.get_close_matches(word.casefold(), list(folded), n=1, cutoff=0.7)
    return f" (did you mean {folded[near[0]]!r}?)" if near else ""


def findings(error: ValidationError, model: type[BaseModel]) -> str:
    """What pydantic found wrong, in words.

    Args:
        error: What it raised.
        model: The model that was validated; its fields are suggested in place of unknown keys.

    Returns:
        Every mistake with its key, such as ``'fold': input should be a valid integer, not 'x'``,
        separated by semicolons.
    """
    return "; ".join(_finding(item, model) for item in error.errors())


def _finding(item: Any, model: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        near = hint(str(item["loc"][-1]), _keys(model, item["loc"][:-1]))
        return f"unknown key {key!r}{near}"
    if item["type"] == "missing":
        return f"{key!r} is missing"
    message = str(item["msg"])
    if item["type"] == "value_error":  # a validator's own words
        message = message.removeprefix("Value error, ")
    else:
        message = message[:1].lower() + message[1:]
    if not key:
        return message
    value = repr(item["input"])
    shown = f", not {value}" if len(value) <= _LONGEST_VALUE else ""
    return f"{key!r}: {message}{shown}"


_LONGEST_VALUE = 60


def _keys(model: type[BaseModel], path: Iterable[int | str]) -> list[str]:
    """The keys that a model, or one within it, has."""
    for part in path:
        field = next(
            (field for name, field in model.model_fields.items() if part in (name, field.alias)),
            None,
        )
        if field is None:  # the key of a mapping, the place in a list
            continue
        models = [kind for kind in _within(field.annotation) if hasattr(kind, "model_fields")]
        if not models:
            return []
        model = models[0]
    return [field.alias or name for name, field in model.model_fields.items()]


def _within(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        yield from _within(part)
