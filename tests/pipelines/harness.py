"""Runs ``medseg`` as a user does, and kills it as a cluster does."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

TOKEN = "MEDSEG_TEST_TOKEN"
MEDSEG = str(Path(sys.executable).with_name("medseg"))


def medseg(*arguments: object, timeout: float = 1500) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    return subprocess.run(
        [MEDSEG, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "COLUMNS": "200"},
    )


def run_arguments(name: str, root: Path, **arguments: Any) -> list[str]:
    given = [f"{key}={value}" for key, value in arguments.items()]
    return ["run", name, "--data-root", str(root), *(part for g in given for part in ("-p", g))]


def run_pipeline(name: str, root: Path, options: tuple[str, ...] = (), **arguments: Any) -> str:
    """Runs a pipeline that must succeed; returns what it printed."""
    done = medseg(*run_arguments(name, root, **arguments), *options)
    assert done.returncode == 0, done.stdout + done.stderr + newest_log(root)
    return done.stdout


def newest_log(root: Path) -> str:
    logs = sorted((root / "runs").glob("*/log.txt"), key=lambda path: path.stat().st_mtime)
    return logs[-1].read_text()[-5000:] if logs else ""


def kill_during(stage: str, moment: str, name: str, root: Path, **arguments: Any) -> None:
    """Starts a pipeline and kills it, with all its processes, at a moment of a stage.

    Args:
        stage: The stage to kill in.
        moment: See :func:`running_until`.
        name: The pipeline.
        root: The data root.
        arguments: The pipeline's arguments.
    """
    with running_until(stage, moment, name, root, **arguments) as running:
        running.kill()
        assert not running.reached("end"), f"the kill came after the end of {stage}"


@contextlib.contextmanager
def running_until(
    stage: str, moment: str, name: str, root: Path, **arguments: Any
) -> Iterator[Running]:
    """Starts a pipeline, and comes back at a moment of a stage; in the end everything is killed.

    Args:
        stage: The stage.
        moment: ``progress``: it has told something; ``progress 2``: two steps are done. The stage
            goes on meanwhile. ``writing X``: a file or folder X is whole, but still has its
            temporary name. ``reading X``: a file X is about to be opened. The stage stands still
            meanwhile. X may hold wildcards; the first such file counts.
        name: The pipeline.
        root: The data root.
        arguments: The pipeline's arguments.

    Yields:
        The run.
    """
    verb, _, what = moment.partition(" ")
    before = set((root / "runs").glob("*"))
    with tempfile.TemporaryDirectory() as scratch:
        mark = Path(scratch) / "mark"
        token = str(uuid.uuid4())
        environment = {**os.environ, "COLUMNS": "200", TOKEN: token}
        if verb in ("reading", "writing"):
            environment["MEDSEG_TEST_STOP"] = f"{stage}:{verb}:{what}:{mark}"
            environment["PYTHONPATH"] = str(Path(__file__).with_name("moments"))
        process = subprocess.Popen(
            [MEDSEG, *run_arguments(name, root, **arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        running = Running(process, token, stage, root, before, mark)
        deadline = time.monotonic() + 600
        try:
            while not (running.reached(verb, what) if verb == "progress" else mark.exists()):
                assert process.poll() is None, f"{name} never came to {moment}\n{newest_log(root)}"
                assert time.monotonic() < deadline, f"{name} never came to {moment}"
                time.sleep(0.02)
            yield running
        finally:
            kill_family(token)
            process.communicate()


@dataclass
class Running:
    """A pipeline that runs.

    Attributes:
        process: ``medseg run``.
    """

    process: subprocess.Popen[str]
    _token: str
    _stage: str
    _root: Path
    _before: set[Path]
    _mark: Path

    def kill(self) -> None:
        """Kills it, with all its processes."""
        kill_family(self._token)

    def go_on(self) -> None:
        """Lets a stage go on that stands still."""
        os.kill(int(self._mark.read_text()), signal.SIGCONT)

    def reached(self, event: str, done: str = "") -> bool:
        """Whether the stage has told of an event, and of so many steps done."""
        return any(
            line["stage"] == self._stage
            and line["event"] == event
            and (not done or line.get("done") == int(done))
            for run in set((self._root / "runs").glob("*")) - self._before
            if (events := run / "events.jsonl").is_file()
            for text in events.read_text().splitlines(keepends=True)
            if text.endswith("\n")
            for line in [json.loads(text)]
        )


def kill_family(token: str) -> None:
    """Kills all processes with a token in their environment, however they are related.

    Their parents are no guide: what was started between a look at the family and its end would
    live on, and hold a stage's lock.
    """
    deadline = time.monotonic() + 10
    while family := [process for process in psutil.process_iter() if _belongs(process, token)]:
        assert time.monotonic() < deadline, f"cannot be killed: {family}"
        for process in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.01)


def _belongs(process: psutil.Process, token: str) -> bool:
    try:
        return process.environ().get(TOKEN) == token
    except psutil.Error:  # it is gone, or a zombie, which has no environment
        return False


def modified(folder: Path, pattern: str) -> dict[str, int]:
    """Files by name, with the time of their last change; without unfinished ones."""
    return {
        str(path): path.stat().st_mtime_ns
        for path in sorted(folder.rglob(pattern))
        if ".partial-" not in str(path)
    }


def partial_files(root: Path) -> list[Path]:
    return list(root.rglob(".partial-*"))
