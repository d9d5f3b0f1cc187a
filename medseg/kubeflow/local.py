"""Running a compiled pipeline on this machine, through ``kfp.local``."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePath
from types import FrameType
from typing import Any

import psutil
import yaml

from medseg.kubeflow.compiled import CompiledPipeline, read_yaml
from medseg.project import (
    MOUNT_PATH,
    DataRoot,
    UserError,
    explained_os_errors,
    lock,
    write_json,
)
from medseg.project.stages import EVENTS_VARIABLE, RUN_VARIABLE

Listener = Callable[[dict[str, Any]], None]


@dataclass
class StageRun:
    """A stage of a local run.

    Attributes:
        name: The stage.
        target: What it works on; shards and folds run one stage on several targets at a time.
        begun: Unix time.
        state: ``running``, ``done`` or ``failed``; where the run has ended, ``running`` is a stage
            that was killed.
        seconds: How long it took; NaN before its end.
    """

    name: str
    target: str
    begun: float
    state: str = "running"
    seconds: float = math.nan


@dataclass
class LocalRun:
    """What a local run did.

    Attributes:
        name: The run's name, also that of its folder in ``runs/``.
        log: The full log of all stages.
        succeeded: Whether every stage succeeded.
        seconds: Wall time.
        errors: Messages of failed stages, as ``stage: message``.
        results: Places that a user wants to open, as ``(label, path)``.
        stages: Stages in the order of their start.
    """

    name: str
    log: Path
    succeeded: bool = False
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)
    results: list[tuple[str, str]] = field(default_factory=list)
    stages: list[StageRun] = field(default_factory=list)


def run_local(
    pipeline: CompiledPipeline,
    root: DataRoot,
    arguments: dict[str, Any],
    listener: Listener | None = None,
    *,
    runner: str = "subprocess",
) -> LocalRun:
    """Executes a compiled pipeline on this machine, stage by stage.

    Only one run of a pipeline at a time works on a data root. The stages' own output goes to the
    run's log, their events to the listener.

    Args:
        pipeline: The pipeline.
        root: The data root.
        arguments: Values by parameter name.
        listener: Called with every event of a stage, in another thread.
        runner: ``subprocess`` runs the stages with the current environment's Python, ``docker``
            in their images, with the data root at ``/mnt/Data``.

    Returns:
        The run, also where a stage failed.

    Raises:
        UserError: The arguments do not fit, the data root cannot be written, or the pipeline is
            already running on it; or Docker cannot be reached.
    """
    checked = pipeline.arguments(arguments)
    started = time.monotonic()
    name = f"{pipeline.name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"[:-3]
    with (
        explained_os_errors(),
        lock(root, f"run-{pipeline.name}"),
        tempfile.TemporaryDirectory() as scratch,
    ):
        folder = root.path / "runs" / name
        folder.mkdir(parents=True)
        write_json(folder / "arguments.json", {"pipeline": pipeline.name, **checked})
        run = LocalRun(name=name, log=folder / "log.txt")
        places = (MOUNT_PATH if runner == "docker" else root.path, root.path)
        events = folder / "events.jsonl"
        events.touch()
        with (
            _environment(root, events),
            _follow(events, functools.partial(_note, run, listener, places)),
            _stop_with_children(),
        ):
            run.succeeded = _execute(
                _for_here(pipeline, checked, images=runner == "docker"),
                checked,
                run.log,
                Path(scratch),
                _docker(root, name, Path(scratch), pipeline)
                if runner == "docker"
                else _subprocess(),
            )
    run.seconds = time.monotonic() - started
    if not run.succeeded and not run.errors:
        run.errors.append(f"a stage ended without a message; its last words are in {run.log}")
    return run


@contextlib.contextmanager
def _subprocess() -> Iterator[Any]:
    from kfp import local

    yield local.SubprocessRunner(use_venv=False)


@contextlib.contextmanager
def _docker(root: DataRoot, name: str, scratch: Path, pipeline: CompiledPipeline) -> Iterator[Any]:
    from medseg.kubeflow.local_docker import docker_runner, stage_access

    with docker_runner(root, name, scratch, stage_access(read_yaml(pipeline.path))) as runner:
        yield runner


def _execute(
    spec: str,
    arguments: dict[str, Any],
    log: Path,
    scratch: Path,
    runner: contextlib.AbstractContextManager[Any],
) -> bool:
    with (
        log.open("w", encoding="utf-8", buffering=1) as output,
        contextlib.redirect_stdout(output),
        runner as place,
    ):
        from kfp import components, local

        local.init(
            runner=place,
            pipeline_root=str(scratch / "outputs"),
            workspace_root=str(scratch / "workspace"),
        )
        component = components.load_component_from_text(spec)
        try:
            with warnings.catch_warnings():  # of settings that matter on a cluster only
                warnings.simplefilter("ignore")
                component(**arguments)
        except RuntimeError as error:  # kfp.local's word for a failed task
            print(error)
            return False
    return True


def _for_here(pipeline: CompiledPipeline, arguments: dict[str, Any], *, images: bool) -> str:
    """The compiled YAML less its retries: here a person reads the error and decides.

    With ``images``, those that are parameters get their values.
    """
    spec, *platform = read_yaml(pipeline.path)
    if images:
        from medseg.kubeflow.local_docker import mark_stages, resolve_images

        resolve_images(spec, arguments)
        mark_stages(spec)
    else:
        for label, executor in spec["deploymentSpec"]["executors"].items():
            if "--function_to_execute" not in executor.get("container", {}).get("args", ()):
                stage = label.removeprefix("exec-")
                raise UserError(f"the stage {stage} is a container: run it with --runner docker.")
    for component in (spec["root"], *spec["components"].values()):
        for task in component.get("dag", {}).get("tasks", {}).values():
            task.pop("retryPolicy", None)
    return yaml.safe_dump_all([spec, *platform], sort_keys=False)


@contextlib.contextmanager
def _environment(root: DataRoot, events: Path) -> Iterator[None]:
    values = {
        "MEDSEG_DATA_ROOT": str(root.path),
        EVENTS_VARIABLE: str(events),
        RUN_VARIABLE: str(os.getpid()),
        "PYTHONUNBUFFERED": "1",
    }
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@contextlib.contextmanager
def _follow(events: Path, handle: Listener) -> Iterator[None]:
    """Hands every line that stages append to ``events`` to ``handle``, until the block ends."""
    done = threading.Event()

    def read() -> None:
        with events.open(encoding="utf-8") as file:
            text = ""
            while True:
                last = done.is_set()  # asked before reading, so that nothing is missed
                text += file.read()
                *lines, text = text.split("\n")
                for line in lines:
                    handle(json.loads(line))
                if last:
                    return
                done.wait(0.1)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        done.set()
        reader.join()


def _note(
    run: LocalRun,
    listener: Listener | None,
    places: tuple[PurePath, Path],
    event: dict[str, Any],
) -> None:
    """Notes an event; ``places`` are the data root as the stages see it, and as it is here."""
    stage, kind = event["stage"], event["event"]
    if kind == "start":
        run.stages.append(StageRun(stage, event["target"], event["time"]))
    elif kind in ("end", "error"):
        for each in run.stages:
            if (each.name, each.target, each.state) == (stage, event["target"], "running"):
                each.state = "done" if kind == "end" else "failed"
                each.seconds = event["time"] - each.begun
                break
        if kind == "error":
            run.errors.append(f"{stage}: {event['message']}")
    elif kind == "result":
        path, (there, here) = PurePath(event["path"]), places
        if path.is_relative_to(there):
            path = here / path.relative_to(there)
        if (event["message"], str(path)) not in run.results:
            run.results.append((event["message"], str(path)))
    if listener is not None:
        listener(event)


@contextlib.contextmanager
def _stop_with_children() -> Iterator[None]:
    """Passes SIGTERM on to the running stages, so that they end cleanly too."""

    def stop(signum: int, _frame: FrameType | None) -> None:
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.terminate()
        raise SystemExit(128 + signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def read_arguments(file: Path | None, given: tuple[str, ...]) -> dict[str, Any]:
    """Merges a run's arguments: a JSON file, over it ``key=value`` texts.

    Args:
        file: One JSON object, or None.
        given: Texts such as ``fold=2``.

    Raises:
        UserError: The file is no JSON object, or a text has no ``=``.
    """
    arguments: dict[str, Any] = {}
    if file is not None:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"the arguments {file} cannot be read as JSON: {error}.") from None
        if not isinstance(content, dict):
            raise UserError(f'the arguments {file} must be one JSON object: {{"name": value}}.')
        arguments.update(content)
    for text in given:
        name, separator, value = text.partition("=")
        if not separator:
            raise UserError(f"-p {text}: write it as -p name=value.")
        arguments[name.strip()] = value
    return arguments
