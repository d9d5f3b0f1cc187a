"""The frame of a stage: its lock, its progress, and one sentence for an error."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from medseg.project.errors import (
    CasesFailedError,
    UserError,
    explain_os_error,
    explained_os_errors,
)
from medseg.project.locks import lock
from medseg.project.roots import DataRoot

EVENTS_VARIABLE = "MEDSEG_EVENTS"
"""Names a file to which stages append their progress, one JSON object a line."""

RUN_VARIABLE = "MEDSEG_RUN_PID"
"""The process of ``medseg run``: when it is gone, its stages end too."""

RUN_ID_VARIABLE = "MEDSEG_RUN_ID"
"""The run's identifier on a cluster: each stage then writes its events to the run's folder."""

_current = "medseg"
_target = ""


@contextmanager
def stage(name: str, *, target: str = "") -> Iterator[DataRoot]:
    """Frames the body of a component.

    Holds the stage's lock, announces start and end, ends cleanly on SIGTERM, and turns an error
    that the user can mend into one line and exit status 1.

    Args:
        name: The component.
        target: What it works on (a config, a folder, a fold), so that different targets may
            run at once.

    Yields:
        The data root.

    Raises:
        SystemExit: With status 1, after a :class:`UserError` or an error of the volume;
            with status 143 after SIGTERM.
    """
    global _current, _target
    _current, _target = name, target
    started = time.monotonic()
    previous = signal.signal(signal.SIGTERM, _terminate)
    _end_with_run()
    _announce("start", target)
    try:
        with explained_os_errors():
            root = DataRoot.from_environment()
            given = _same_place(root, target)
            key = "-".join(filter(None, (name, re.sub(r"[^\w.=-]+", "_", given).strip("_"))))
            with lock(root, f"stage-{key}"):
                yield root
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        _announce("error", str(error), error=type(error).__name__)
        raise SystemExit(1) from None
    except BaseException as error:
        _announce("error", f"{type(error).__name__}: {error}", error=type(error).__name__)
        raise
    else:
        _announce("end", f"{time.monotonic() - started:.1f} s")
    finally:
        signal.signal(signal.SIGTERM, previous)


def _same_place(root: DataRoot, target: str) -> str:
    """``target`` in one spelling, where it is a path of the data root in one of several."""
    try:
        return root.relative(root.resolve(target))
    except UserError:  # no path, or one that the stage itself will refuse
        return target


def progress(message: str, done: int | None = None, total: int | None = None) -> None:
    """Tells how far the current stage is: on the log, and to ``medseg run``.

    Args:
        message: What was just done, in few words; case identifiers only, no patient data.
        done: Steps finished.
        total: Steps in all.
    """
    count = f"[{done}/{total}] " if done is not None and total is not None else ""
    print(f"{_current}: {count}{message}", flush=True)
    _announce("progress", message, done=done, total=total)


def result(label: str, path: Path) -> None:
    """Tells where a stage left something that the user wants to open.

    Args:
        label: What it is, in one or two words.
        path: The file or folder.
    """
    print(f"{_current}: {label}: {path}", flush=True)
    _announce("result", label, path=str(path))


class Failures:
    """Collects failed cases, so that one of them never loses the others.

    Args:
        stage: The stage's name, for the message.
        private: Whether the messages of unforeseen errors are left out, as they may quote what
            stands in a DICOM header; the place in the code is named instead.
    """

    def __init__(self, stage: str, *, private: bool = False) -> None:
        self.stage = stage
        self.private = private
        self.reasons: dict[str, str] = {}

    @contextmanager
    def case(self, case: str) -> Iterator[None]:
        """Records the error of one case and goes on; errors of the volume still stop the stage."""
        try:
            yield
        except OSError as error:
            if explain_os_error(error) is not None:
                raise
            self._record(case, error)
        except Exception as error:  # noqa: BLE001 - whatever a case does, the others go on
            self._record(case, error)

    def _record(self, case: str, error: Exception) -> None:
        if isinstance(error, UserError):
            text = str(error)
        elif self.private:
            last = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__} in {Path(last.filename).name}, line {last.lineno}"
        else:
            text = f"{type(error).__name__}: {error}"
        self.reasons[case] = text
        progress(f"{case} failed: {text}")

    def check(self, total: int, allowed: int = 0) -> None:
        """Fails the stage where more cases failed than are allowed.

        Raises:
            CasesFailedError: With every failed case and its reason.
        """
        if len(self.reasons) > allowed:
            raise CasesFailedError(self.stage, self.reasons, total, allowed)


def _terminate(signum: int, _frame: FrameType | None) -> None:
    # the clean end has begun: being told once more must not cut it short
    signal.signal(signum, signal.SIG_IGN)
    raise SystemExit(128 + signum)


def _in_forked_child() -> None:
    """A forked worker dies of SIGTERM at once; the stage's clean end is not its business."""
    if signal.getsignal(signal.SIGTERM) is _terminate:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_in_forked_child)


def _end_with_run() -> None:
    run = os.environ.get(RUN_VARIABLE)
    if not run:
        return

    def watch() -> None:  # a killed run cannot tell its stages, so they look
        while Path(f"/proc/{run}").exists():
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def run_folder(root: DataRoot) -> Path | None:
    """The folder of the run that this stage belongs to, where it is known."""
    if os.environ.get(EVENTS_VARIABLE):
        return Path(os.environ[EVENTS_VARIABLE]).parent
    run = re.sub(r"[^\w-]+", "_", os.environ.get(RUN_ID_VARIABLE, ""))
    return root.path / "runs" / run if run else None


def _events_file() -> Path | None:
    if os.environ.get(EVENTS_VARIABLE):
        return Path(os.environ[EVENTS_VARIABLE])
    try:
        folder = run_folder(DataRoot.from_environment())
        if folder is None:
            return None
        folder.mkdir(parents=True, exist_ok=True)
    except (UserError, OSError):  # the stage itself will say so
        return None
    # a file for each pod: appending from several nodes is not safe on a network volume
    return folder / f"events-{socket.gethostname()}.jsonl"


def _announce(event: str, message: str, **values: Any) -> None:
    path = _events_file()
    if path is None:
        return
    line = json.dumps(
        {
            "time": time.time(),
            "stage": _current,
            "target": _target,
            "event": event,
            "message": message,
            **values,
        }
    )
    with suppress(OSError), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")  # a full disk must not hide what the stage has to say
