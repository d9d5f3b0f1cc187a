"""nnU-Net's prints and progress bars: kept off the console, or shown as the stage's own."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from medseg.project import progress


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps nnU-Net's prints and progress bars off the console."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


@contextmanager
def bar_as_progress(module: Any, what: str) -> Iterator[None]:
    """Shows the progress bar of a module of nnU-Net as the stage's own progress.

    Args:
        module: The module, which calls ``tqdm`` by that name.
        what: What each step has done, in few words.
    """
    console, original = sys.stdout, module.tqdm

    def update(bar: Any, steps: int = 1) -> None:
        original.update(bar, steps)
        with redirect_stdout(console):
            progress(what, bar.n, bar.total)

    module.tqdm = type("Bar", (original,), {"update": update})
    try:
        yield
    finally:
        module.tqdm = original
