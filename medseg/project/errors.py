"""Errors for the person at the other end."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Something that the user can mend.

    The message is one sentence or two: what is wrong, in which file or field, what to do.
    It is shown without a traceback (see :func:`medseg.project.stage`).
    """


class CasesFailedError(UserError):
    """Some cases of a stage failed; the others are finished and kept.

    Attributes:
        reasons: Case identifier to the reason for its failure.
    """

    def __init__(self, stage: str, reasons: dict[str, str], total: int, allowed: int) -> None:
        self.reasons = dict(reasons)
        listed = "; ".join(f"{case}: {reason}" for case, reason in reasons.items())
        super().__init__(
            f"{stage}: {len(reasons)} of {total} cases failed ({allowed} allowed); "
            f"the others are finished and kept. {listed}"
        )


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
