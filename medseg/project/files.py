"""Writing without halves: beside the target, then renamed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

PARTIAL = ".partial-"
"""What the name of unfinished work starts with; it may be deleted at any time."""


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Gives a temporary file name beside ``path``, which is renamed to ``path`` on success.

    The temporary name keeps the suffixes of ``path`` (writers choose the format by them).

    Args:
        path: The target. Its folder is made if needed.

    Yields:
        The name to write to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{PARTIAL}{uuid4().hex[:8]}-{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Gives a new folder beside ``path``, which takes the place of ``path`` on success.

    Args:
        path: The target. What it held before is removed once the new one is complete.

    Yields:
        The folder to fill.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f"{PARTIAL}*-{path.name}"):
        shutil.rmtree(stale, ignore_errors=True)
    temporary = path.with_name(f"{PARTIAL}{uuid4().hex[:8]}-{path.name}")
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            old = path.with_name(f"{PARTIAL}{uuid4().hex[:8]}-{path.name}")
            path.replace(old)
            temporary.replace(path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` to ``path``, all of it or nothing."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as indented JSON to ``path``, all of it or nothing."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
