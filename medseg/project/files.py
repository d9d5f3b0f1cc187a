"""Writing without halves: beside the target, then renamed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any
from uuid import uuid4

PARTIAL = ".partial-"
"""What the name of unfinished work starts with; it may be deleted at any time."""


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Gives a temporary file name beside ``path``, which is renamed to ``path`` on success.

    The temporary name keeps the suffixes of ``path`` (writers choose the format by them).

    The temporary file is there already, empty. What a killed writer left of ``path`` is removed.

    Args:
        path: The target. Its folder is made if needed.

    Yields:
        The name to write to.

    Raises:
        OSError: Also where the writing library hides a full disk behind another error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path)
    temporary = path.with_name(f"{PARTIAL}{uuid4().hex[:8]}-{path.name}")
    temporary.touch()
    try:
        with _claimed(temporary), disk_errors(temporary):
            yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Makes an ``OSError`` of a ``RuntimeError`` that a full disk has caused.

    That is how torch and Blosc report one, without its number; writing on raises it.

    Args:
        path: The file that is being written, or one in the same folder.
    """
    try:
        yield
    except RuntimeError:
        existed = path.exists()
        try:
            with path.open("ab") as file:
                file.write(bytes(1 << 20))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        finally:
            if not existed:
                path.unlink(missing_ok=True)
        raise


@contextmanager
def _claimed(temporary: Path) -> Iterator[None]:
    """Marks unfinished work as somebody's; the kernel forgets the mark when its owner ends."""
    handle = os.open(temporary, os.O_RDONLY)
    try:
        with suppress(OSError):  # a volume without locks
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def remove_stale(path: Path) -> None:
    """Removes what killed writers left of ``path``; what a living one writes is left alone."""
    for stale in path.parent.glob(f"{PARTIAL}????????-{escape(path.name)}"):
        with suppress(OSError):
            if stale.is_symlink():  # it cannot be marked, and takes no time to make
                stale.unlink()
                continue
            handle = os.open(stale, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where it is somebody's
                if stale.is_dir():
                    shutil.rmtree(stale, ignore_errors=True)
                else:
                    stale.unlink()
            finally:
                os.close(handle)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Gives a new folder beside ``path`` for unfinished work; it is removed at the end.

    What a killed one left of ``path`` goes too.

    Args:
        path: What the work is about; nothing need be there.

    Yields:
        The folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path)
    temporary = path.with_name(f"{PARTIAL}{uuid4().hex[:8]}-{path.name}")
    temporary.mkdir()
    try:
        with _claimed(temporary), disk_errors(temporary / "more"):
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Gives a new folder beside ``path``, which takes the place of ``path`` on success.

    Args:
        path: The target. What it held before is removed once the new one is complete.

    Yields:
        The folder to fill.
    """
    with scratch_folder(path) as temporary:
        yield temporary
        if path.exists():
            old = path.with_name(f"{PARTIAL}{uuid4().hex[:8]}-{path.name}")
            path.replace(old)
            temporary.replace(path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` to ``path``, all of it or nothing."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as indented JSON to ``path``, all of it or nothing."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
