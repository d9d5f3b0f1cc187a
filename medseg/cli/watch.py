"""Showing runs of a cluster."""

from __future__ import annotations

from datetime import UTC, datetime

import click
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from medseg.kubeflow.client import Cluster, Run, Task

_COLOURS = {"SUCCEEDED": "green", "FAILED": "red", "CANCELED": "red", "RUNNING": "yellow"}


def show_runs(runs: list[Run]) -> None:
    """Prints a line for each run."""
    table = Table("run", "name", "state", "created", box=None, pad_edge=False)
    for run in runs:
        created = f"{run.created:%Y-%m-%d %H:%M}" if run.created else ""
        table.add_row(run.id, escape(run.name), _state(run.state), created)
    _console().print(table)


def show_run(run: Run) -> None:
    """Prints a run and its tasks."""
    console = _console()
    console.print(f"[bold]{escape(run.name)}[/] {_state(run.state)}")
    if run.tasks:
        console.print(_tasks(run))
    if run.error:
        console.print(f"[red]error:[/] {escape(run.error)}")
    console.print(run.url)


def show_schedules(cluster: Cluster) -> None:
    """Prints a line for each recurring run."""
    table = Table("recurring run", "name", "when", "state", box=None, pad_edge=False)
    for run in cluster.recurring_runs():
        table.add_row(run.id, escape(run.name), run.when, "enabled" if run.enabled else "disabled")
    _console().print(table)


def show_wait(cluster: Cluster, run: Run, poll_s: float = 5) -> Run:
    """Shows the tasks of a run until it ends: live on a terminal, else a line for each change.

    Args:
        cluster: Where it runs.
        run: The run.
        poll_s: Seconds between two looks.

    Returns:
        The run as it ended. Ctrl-C stops the watching, not the run.
    """
    console = _console()
    try:
        if console.is_terminal:
            with Live(console=console, refresh_per_second=2) as live:
                run = cluster.wait(run.id, lambda seen: live.update(_tasks(seen)), poll_s)
        else:
            known: dict[tuple[int, str], str] = {}

            def tell(seen: Run) -> None:
                for index, task in enumerate(seen.tasks):
                    if known.get((index, task.name)) != task.state:
                        known[index, task.name] = task.state
                        console.print(f"  {task.name}: {task.state.lower()}{_reason(task)}")

            run = cluster.wait(run.id, tell, poll_s)
    except KeyboardInterrupt:
        click.echo(f"\nstopped watching; the run goes on (medseg runs {run.id})", err=True)
        raise SystemExit(130) from None
    for task in run.tasks:
        if task.state == "FAILED":
            console.print(f"[red]error:[/] {task.name}{_reason(task) or ': see medseg logs'}")
    if run.error:
        console.print(f"[red]error:[/] {escape(run.error)}")
    console.print(f"{escape(run.name)} {_state(run.state)}")
    return run


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def _tasks(run: Run) -> Table:
    table = Table("task", "state", "seconds", box=None, pad_edge=False)
    for task in run.tasks:
        seconds = ""
        if task.started:
            seconds = f"{((task.finished or datetime.now(UTC)) - task.started).total_seconds():.0f}"
        table.add_row(escape(task.name), _state(task.state) + _reason(task), seconds)
    return table


def _state(state: str) -> str:
    colour = _COLOURS.get(state, "default")
    return f"[{colour}]{state.lower()}[/]"


def _reason(task: Task) -> str:
    return f": {escape(task.error)}" if task.error else ""
