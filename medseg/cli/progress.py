"""Showing a local run while it runs, and where its results lie."""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Iterable
from itertools import takewhile
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from medseg.kubeflow.compiled import CompiledPipeline
from medseg.kubeflow.local import LocalRun, run_local
from medseg.project import DataRoot
from medseg.project.events import Event


def run_and_show(
    pipeline: CompiledPipeline,
    root: DataRoot,
    arguments: dict[str, Any],
    *,
    runner: str = "subprocess",
    name: str = "",
) -> LocalRun:
    """Runs a pipeline, shows each stage's progress, then a summary.

    On a terminal a live display; elsewhere (a log, CI) a line for every step.

    Args:
        pipeline: The compiled pipeline.
        root: The data root.
        arguments: Values by parameter name.
        runner: As in :func:`medseg.kubeflow.local.run_local`.
        name: As there.
    """
    # bound to this stdout: during the run, kfp.local's own output goes to the log
    console = Console(file=sys.stdout, highlight=False)
    console.print(f"[bold]{pipeline.name}[/] on {root.path}", soft_wrap=True)
    if console.is_terminal:
        with LiveDisplay(console) as live:
            run = run_local(pipeline, root, arguments, live.handle, runner=runner, name=name)
    else:
        lines = LineDisplay(console)
        run = run_local(pipeline, root, arguments, lines.handle, runner=runner, name=name)
    show_summary(console, run)
    return run


Key = tuple[str, str]
"""A stage and its target: shards and folds run one stage on several targets at a time."""


class _Names:
    """What to call a stage: by its target too, from the second target on that it runs on."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._targets: dict[str, list[str]] = {}
        for key in keys:
            self.add(key)

    def add(self, key: Key) -> None:
        targets = self._targets.setdefault(key[0], [])
        if key[1] not in targets:
            targets.append(key[1])

    def __getitem__(self, key: Key) -> str:
        stage, target = key
        targets = self._targets.get(stage, [])
        if len(targets) < 2:
            return stage
        # Only what differs: of configs/a.yaml-0 and configs/a.yaml-1 the fold.
        parts = zip(*(_parts(each) for each in targets), strict=False)
        same = sum(1 for _ in takewhile(lambda each: len(set(each)) == 1, parts))
        return f"{stage} {''.join(_parts(target)[same:])}"


def _parts(target: str) -> list[str]:
    return re.split(r"(?<=[-/])", target)


class LineDisplay:
    """A line for every step: for a log, or CI."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.names = _Names()
        self.quiet_until: dict[Key, float] = {}

    def handle(self, event: Event) -> None:
        """Shows an event."""
        key, kind, message = (event.stage, event.target), event.kind, event.message
        self.names.add(key)
        if kind == "progress":
            done, total = event.done, event.total
            if done != total and time.monotonic() < self.quiet_until.get(key, 0):
                return  # a line every few seconds is enough for a log
            self.quiet_until[key] = time.monotonic() + 5
            message = f"[{done}/{total}] {message}" if total else message
        elif kind == "start":
            message = "started"
        elif kind == "end":
            message = f"done in {message}"
        elif kind == "error":
            message = f"failed: {message}"
        elif kind == "result":
            return
        self.console.print(f"  {escape(self.names[key])}: {escape(message)}", soft_wrap=True)
        self.console.file.flush()


class LiveDisplay:
    """A line for every stage, with its progress, on a terminal; a context manager."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.fields[stage]}", style="bold", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
        )
        self.names = _Names()
        self.tasks: dict[Key, TaskID] = {}

    def __enter__(self) -> LiveDisplay:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def handle(self, event: Event) -> None:
        """Shows an event."""
        key, kind = (event.stage, event.target), event.kind
        if key not in self.tasks or kind == "start":
            self.names.add(key)
            self.tasks[key] = self.progress.add_task("", total=None, stage="")
            for other, task in self.tasks.items():  # an earlier one may need its target now
                self.progress.update(task, stage=self.names[other])
        task = self.tasks[key]
        message = escape(event.message)
        if kind == "progress":
            self.progress.update(
                task,
                description=message,
                completed=event.done or 0,
                total=event.total,
            )
        elif kind == "end":
            self.progress.update(task, description="[green]done", total=1, completed=1)
        elif kind == "error":
            self.progress.update(task, description=f"[red]failed: {message}")
            self.progress.stop_task(task)


def show_summary(console: Console, run: LocalRun) -> None:
    """Shows what a run did: its stages, where its results lie, what went wrong."""
    table = Table()
    table.add_column("stage")
    table.add_column("state")
    table.add_column("seconds", justify="right")
    names = _Names((stage.name, stage.target) for stage in run.stages)
    states = {"done": "[green]done", "failed": "[red]failed", "running": "[red]stopped"}
    for stage in run.stages:
        seconds = "" if math.isnan(stage.seconds) else f"{stage.seconds:.1f}"
        name = names[stage.name, stage.target]
        table.add_row(escape(name), states[stage.state], seconds)
    console.print(table)
    places = [*run.results, ("log", str(run.log))]
    width = max(len(label) for label, _ in places) + 1
    for label, path in places:
        # by hand, since a table folds a long path, which then cannot be copied
        console.print(f"{label + ':':{width}} {escape(path)}", soft_wrap=True)
    for error in run.errors:
        console.print(f"[red]error:[/] {escape(error)}", soft_wrap=True)
    state = "[green]succeeded[/]" if run.succeeded else "[red]failed[/]"
    console.print(f"{state} after {run.seconds:.0f} s")
