"""Showing a local run while it runs, and where its results lie."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from medseg.kubeflow.compiled import CompiledPipeline
from medseg.kubeflow.local import LocalRun, run_local
from medseg.project import DataRoot


def show_run(
    pipeline: CompiledPipeline,
    root: DataRoot,
    arguments: dict[str, Any],
    *,
    runner: str = "subprocess",
) -> LocalRun:
    """Runs a pipeline, shows each stage's progress, then a summary.

    On a terminal a live display; elsewhere (a log, CI) a line for every step.

    Args:
        pipeline: The compiled pipeline.
        root: The data root.
        arguments: Values by parameter name.
        runner: As in :func:`medseg.kubeflow.local.run_local`.
    """
    # bound to this stdout: during the run, kfp.local's own output goes to the log
    console = Console(file=sys.stdout, highlight=False)
    console.print(f"[bold]{pipeline.name}[/] on {root.path}", soft_wrap=True)
    if console.is_terminal:
        with _Live(console) as live:
            run = run_local(pipeline, root, arguments, live.handle, runner=runner)
    else:
        run = run_local(pipeline, root, arguments, _Lines(console).handle, runner=runner)
    _summary(console, run)
    return run


class _Lines:
    def __init__(self, console: Console) -> None:
        self.console = console
        self.quiet_until: dict[str, float] = {}

    def handle(self, event: dict[str, Any]) -> None:
        stage, kind, message = event["stage"], event["event"], event["message"]
        if kind == "progress":
            done, total = event.get("done"), event.get("total")
            if done != total and time.monotonic() < self.quiet_until.get(stage, 0):
                return  # a line every few seconds is enough for a log
            self.quiet_until[stage] = time.monotonic() + 5
            message = f"[{done}/{total}] {message}" if total else message
        elif kind == "start":
            message = "started"
        elif kind == "end":
            message = f"done in {message}"
        elif kind == "error":
            message = f"failed: {message}"
        elif kind == "result":
            return
        self.console.print(f"  {stage}: {escape(message)}", soft_wrap=True)
        self.console.file.flush()


class _Live:
    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.fields[stage]}", style="bold"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
        )
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _Live:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def handle(self, event: dict[str, Any]) -> None:
        stage, kind = event["stage"], event["event"]
        if kind == "start":
            self.tasks[stage] = self.progress.add_task("", total=None, stage=stage)
            return
        task = self.tasks[stage]
        message = escape(event["message"])
        if kind == "progress":
            self.progress.update(
                task,
                description=message,
                completed=event.get("done") or 0,
                total=event.get("total"),
            )
        elif kind == "end":
            self.progress.update(task, description="[green]done", total=1, completed=1)
        elif kind == "error":
            self.progress.update(task, description=f"[red]failed: {message}")
            self.progress.stop_task(task)


def _summary(console: Console, run: LocalRun) -> None:
    table = Table(title=f"Run {run.name}", title_justify="left")
    table.add_column("stage")
    table.add_column("state")
    table.add_column("seconds", justify="right")
    colours = {"done": "green", "failed": "red", "running": "yellow"}
    for stage, state, seconds in run.stages:
        if state == "running":
            state, seconds = "stopped", float("nan")
        table.add_row(stage, f"[{colours.get(state, 'red')}]{state}", f"{seconds:.1f}")
    console.print(table)
    for label, path in run.results:
        console.print(f"{label}: {path}", soft_wrap=True)
    console.print(f"log: {run.log}", soft_wrap=True)
    for error in run.errors:
        console.print(f"[red]error:[/] {escape(error)}", soft_wrap=True)
    state = "[green]succeeded[/]" if run.succeeded else "[red]failed[/]"
    console.print(f"{state} after {run.seconds:.0f} s")
