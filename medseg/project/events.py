"""What stages tell while they run: events, one JSON object a line, in a file of the run's folder.

:func:`progress` and :func:`result` are for the body of a stage. Whoever shows a run reads its
events (:func:`read_events`, :func:`read_run`) or follows them (:func:`follow_events`); from a file
on another machine, :meth:`Event.from_line` reads each line.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from medseg.project.errors import UserError
from medseg.project.files import safe_name
from medseg.project.roots import DataRoot
from medseg.project.variables import EVENTS, RUN_ID

Kind = Literal["start", "progress", "result", "end", "error"]


@dataclass(frozen=True)
class Event:
    """What a stage tells at one moment.

    Attributes:
        stage: The stage.
        kind: ``start`` and ``end`` of the stage, ``error`` in place of its end, ``progress`` on
            the way, ``result`` for something that the user wants to open.
        target: What the stage works on; shards and folds run one stage on several at a time.
        message: In few words; of ``end`` how long it took, of ``result`` what it is, of ``error``
            the sentence for the user.
        time: Unix time.
        done: Steps finished, of ``progress``.
        total: Steps in all, of ``progress``.
        path: The file or folder, of ``result``, as the stage sees it.
        error: The exception's type, of ``error``.
    """

    stage: str
    kind: Kind
    target: str = ""
    message: str = ""
    time: float = field(default_factory=time.time)
    done: int | None = None
    total: int | None = None
    path: str = ""
    error: str = ""

    def to_line(self) -> str:
        """The event as a line of its file, without the line's end."""
        line: dict[str, Any] = {
            "time": self.time,
            "stage": self.stage,
            "target": self.target,
            "event": self.kind,
            "message": self.message,
        }
        own = {"progress": ("done", "total"), "result": ("path",), "error": ("error",)}
        line |= {name: getattr(self, name) for name in own.get(self.kind, ())}
        return json.dumps(line)

    @classmethod
    def from_line(cls, line: str) -> Event | None:
        """The event that a line holds; None where it is none, as a full disk cuts lines off."""
        try:
            content = json.loads(line)
            event = cls(
                stage=str(content["stage"]),
                kind=content["event"],
                target=str(content["target"]),
                message=str(content["message"]),
                time=float(content["time"]),
                done=content.get("done"),
                total=content.get("total"),
                path=str(content.get("path", "")),
                error=str(content.get("error", "")),
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
        return event if event.kind in get_args(Kind) else None


# --- telling ---


@dataclass(frozen=True)
class _Stage:
    name: str = ""
    target: str = ""


_current = _Stage()


@contextmanager
def telling(stage: str, target: str) -> Iterator[None]:
    """Names the stage whose events are announced within the block."""
    global _current
    before, _current = _current, _Stage(stage, target)
    try:
        yield
    finally:
        _current = before


def current_stage() -> str:
    """The stage that this process is in; empty outside of one."""
    return _current.name


def announce(kind: Kind, message: str, **values: Any) -> None:
    """Appends an event of the current stage to the run's events, where it belongs to a run.

    Args:
        kind: As :class:`Event` has it.
        message: As there.
        values: ``done``, ``total``, ``path`` or ``error``, as there.
    """
    path = _events_file()
    if path is not None:
        event = Event(_current.name or "medseg", kind, _current.target, message, **values)
        with suppress(OSError), path.open("a", encoding="utf-8") as file:
            # a full disk must not hide what the stage has to say
            file.write(event.to_line() + "\n")


def progress(message: str, done: int | None = None, total: int | None = None) -> None:
    """Tells how far the current stage is: on the log, and to ``medseg run``.

    Args:
        message: What was just done, in few words; case identifiers only, no patient data.
        done: Steps finished.
        total: Steps in all.
    """
    count = f"[{done}/{total}] " if done is not None and total is not None else ""
    print(f"{_current.name or 'medseg'}: {count}{message}", flush=True)
    announce("progress", message, done=done, total=total)


def result(label: str, path: Path) -> None:
    """Tells where a stage left something that the user wants to open.

    Args:
        label: What it is, in one or two words.
        path: The file or folder.
    """
    print(f"{_current.name or 'medseg'}: {label}: {path}", flush=True)
    announce("result", label, path=str(path))


def duration(seconds: float) -> str:
    """A time in words, such as ``3.4 s``, ``95 s``, ``20 min``, ``2 h 5 min``."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def run_folder(root: DataRoot) -> Path | None:
    """The folder of the run that this stage belongs to, where it is known."""
    if EVENTS.value:
        return Path(EVENTS.value).parent
    run = safe_name(RUN_ID.value)
    return root.path / "runs" / run if run else None


def _events_file() -> Path | None:
    if EVENTS.value:
        return Path(EVENTS.value)
    try:
        folder = run_folder(DataRoot.from_environment())
        if folder is None:
            return None
        folder.mkdir(parents=True, exist_ok=True)
    except (UserError, OSError):  # the stage itself will say so
        return None
    # a file for each pod: appending from several nodes is not safe on a network volume
    return folder / f"events-{socket.gethostname()}.jsonl"


# --- listening ---


def read_events(path: Path) -> list[Event]:
    """The events of one file, in its order; lines that are none are left out."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [event for event in map(Event.from_line, lines) if event is not None]


def read_run(folder: Path) -> list[Event]:
    """The events that all stages of a run left in its folder, in the order of time."""
    events = [event for path in sorted(folder.glob("events*.jsonl")) for event in read_events(path)]
    return sorted(events, key=lambda event: event.time)


@contextmanager
def follow_events(path: Path, handle: Callable[[Event], None]) -> Iterator[None]:
    """Hands every event that is appended to a file to ``handle``, until the block ends.

    Args:
        path: The file; it is there.
        handle: Called in another thread, one event after the other.
    """
    over = threading.Event()

    def read() -> None:
        with path.open(encoding="utf-8", errors="replace") as file:
            text = ""
            while True:
                last = over.is_set()  # asked before reading, so that nothing is missed
                text += file.read()
                *lines, text = text.split("\n")
                for event in map(Event.from_line, lines):
                    if event is not None:
                        handle(event)
                if last:
                    return
                over.wait(0.1)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        over.set()
        reader.join()
