"""Running a compiled pipeline on this machine, through ``kfp.local``."""

from __future__ import annotations

import contextlib
import json
import math
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
    environment,
    explained_os_errors,
    lock,
    safe_name,
    write_json,
)
from medseg.project.events import Event, follow_events
from medseg.project.stages import this_run
from medseg.project.variables import DATA_ROOT, EVENTS, RUN_PID

Listener = Callable[[Event], None]


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
        root: The data root.
        stage_root: The data root as the stages see it; another place in a container.
        succeeded: Whether every stage succeeded.
        seconds: Wall time.
        errors: Messages of failed stages, as ``stage: message``.
        results: Places that a user wants to open, as ``(label, path)``.
        stages: Stages in the order of their start.
    """

    name: str
    log: Path
    root: Path
    stage_root: PurePath
    succeeded: bool = False
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)
    results: list[tuple[str, str]] = field(default_factory=list)
    stages: list[StageRun] = field(default_factory=list)

    def add(self, event: Event) -> None:
        """Takes note of what a stage tells."""
        if event.kind == "start":
            self.stages.append(StageRun(event.stage, event.target, event.time))
        elif event.kind in ("end", "error"):
            running = (event.stage, event.target, "running")
            for stage in self.stages:
                if (stage.name, stage.target, stage.state) == running:
                    stage.state = "done" if event.kind == "end" else "failed"
                    stage.seconds = event.time - stage.begun
                    break
        if event.kind == "error":
            self.errors.append(f"{event.stage}: {event.message.removeprefix(f'{event.stage}: ')}")
        elif event.kind == "result":
            path = PurePath(event.path)
            if path.is_relative_to(self.stage_root):
                path = self.root / path.relative_to(self.stage_root)
            if (event.message, str(path)) not in self.results:
                self.results.append((event.message, str(path)))


def run_local(
    pipeline: CompiledPipeline,
    root: DataRoot,
    arguments: dict[str, Any],
    listener: Listener | None = None,
    *,
    runner: str = "subprocess",
    name: str = "",
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
        name: The run's name, for whoever starts it and looks for its folder; default: that of the
            pipeline and the time.

    Returns:
        The run, also where a stage failed.

    Raises:
        UserError: The arguments do not fit, the data root cannot be written, or the pipeline is
            already running on it; the name is none for a folder, or taken; or Docker cannot be
            reached.
    """
    checked = pipeline.arguments(arguments)
    started = time.monotonic()
    name = name or f"{pipeline.name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"[:-3]
    with (
        explained_os_errors(),
        lock(root, f"run-{pipeline.name}"),
        tempfile.TemporaryDirectory() as scratch,
    ):
        folder = _new_folder(root, name)
        write_json(folder / "arguments.json", {"pipeline": pipeline.name, **checked})
        stage_root = MOUNT_PATH if runner == "docker" else root.path
        run = LocalRun(name, folder / "log.txt", root.path, stage_root)
        events = folder / "events.jsonl"
        events.touch()
        variables = {
            DATA_ROOT.name: str(root.path),
            EVENTS.name: str(events),
            RUN_PID.name: this_run(),
            "PYTHONUNBUFFERED": "1",
        }

        def handle(event: Event) -> None:
            run.add(event)
            if listener is not None:
                listener(event)

        with environment(**variables), follow_events(events, handle), _stop_with_children():
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


def _new_folder(root: DataRoot, name: str) -> Path:
    if name != safe_name(name, ascii_only=True):
        raise UserError(
            f"the run's name {name!r} is none for a folder: write letters, digits, '.', '_' and "
            "'-', a letter or digit first and last."
        )
    folder = root.path / "runs" / name
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"{root.path} has a run {name} already: give another name.") from None
    return folder


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
