"""Runs ``medseg`` as a user does, and kills it as a cluster does."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

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


def kill_during(stage: str, event: str, name: str, root: Path, **arguments: Any) -> None:
    """Starts a pipeline and kills it, with all its processes, at an event of a stage.

    Args:
        stage: The stage to kill in.
        event: ``start`` or ``progress``.
        name: The pipeline.
        root: The data root.
        arguments: The pipeline's arguments.
    """
    before = set((root / "runs").glob("*"))
    process = subprocess.Popen(
        [MEDSEG, *run_arguments(name, root, **arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    deadline = time.monotonic() + 600
    try:
        while time.monotonic() < deadline:
            new = set((root / "runs").glob("*")) - before
            lines = [
                json.loads(line)
                for run in new
                if (events := run / "events.jsonl").is_file()
                for line in events.read_text().splitlines(keepends=True)
                if line.endswith("\n")
            ]
            if any(line["stage"] == stage and line["event"] == event for line in lines):
                return
            assert process.poll() is None, f"{name} ended before {stage}\n{newest_log(root)}"
            time.sleep(0.01)
        raise AssertionError(f"{stage} never came to {event}")
    finally:
        kill_tree(process.pid)
        process.wait()


def kill_tree(pid: int) -> None:
    try:
        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(family, timeout=10)


def partial_files(root: Path) -> list[Path]:
    return list(root.rglob(".partial-*"))
