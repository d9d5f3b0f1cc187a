"""Showing runs of a cluster."""

from __future__ import annotations

from collections.abc import Iterator

import click
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from medseg.kubeflow.client import Cluster
from medseg.kubeflow.tasks import Run, Task

_COLOURS = {"SUCCEEDED": "green", "FAILED": "red", "CANCELED": "magenta", "RUNNING": "yellow"}
_WORDS = {"CANCELED": "cancelled", "CANCELING": "cancelling"}


def show_runs(runs: list[Run]) -> None:
    """Prints a line for each run."""
    table = Table("run", "name", "state", "created", box=None, pad_edge=False)
    for run in runs:
        created = f"{run.created:%Y-%m-%d %H:%M}" if run.created else ""
        table.add_row(run.id, escape(run.name), _state(run.state), created)
    _console().print(table)


def show_run(run: Run) -> None:
    """Prints a run and its tasks, and the reasons of those that failed or wait."""
    console = _console()
    console.print(f"[bold]{escape(run.name)}[/] {_state(run.state)}")
    console.print(_tasks(run) if run.tasks else "Kubeflow names no tasks (yet).")
    for line in _reasons(run):
        console.print(line)
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
                run = cluster.wait(run.id, lambda seen: live.update(_live(seen)), poll_s)
        else:
            run = cluster.wait(run.id, _Teller(console).tell, poll_s)
            if run.error:
                console.print(f"[red]error:[/] {escape(run.error)}")
    except KeyboardInterrupt:
        click.echo(f"\nstopped watching; the run goes on (medseg runs {run.id})", err=True)
        raise SystemExit(130) from None
    console.print(f"{escape(run.name)} {_state(run.state)}")
    return run


class _Teller:
    """Prints a line for each change of a run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._known: dict[str, str] = {}

    def tell(self, run: Run) -> None:
        """Prints what is new."""
        for task in run.tasks:
            text = _progress(task) + (f": {task.reason}" if task.reason else "")
            if self._known.get(task.id) != text:
                self._known[task.id] = text
                self._console.print(f"  {escape(task.title)}: {escape(text)}")


def show_logs(cluster: Cluster, run: str, task: str, *, everything: bool, follow: bool) -> None:
    """Prints the logs of a run's tasks, each below its title.

    Args:
        cluster: Where it runs.
        run: The run.
        task: Only this task; empty: all.
        everything: Also what Kubeflow says.
        follow: Until the run or the task has ended; Ctrl-C stops the watching, not the run.
    """
    before = ""
    try:
        for title, line in cluster.logs(run, task, everything=everything, follow=follow):
            if title != before:
                click.secho(f"--- {title}", bold=True)
                before = title
            click.echo(line)
    except KeyboardInterrupt:
        click.echo(f"\nstopped watching; the run goes on (medseg runs {run})", err=True)
        raise SystemExit(130) from None


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def _live(run: Run) -> Group:
    return Group(_tasks(run), *_reasons(run))


def _tasks(run: Run) -> Table:
    table = Table("task", "state", "seconds", box=None, pad_edge=False)
    for task in run.tasks:
        seconds = ""
        if task.started:
            seconds = f"{((task.finished or run.now) - task.started).total_seconds():.0f}"
        colour = _COLOURS.get(task.state, "default")
        table.add_row(escape(task.title), f"[{colour}]{_progress(task)}[/]", seconds)
    return table


def _reasons(run: Run) -> Iterator[str]:
    """What failed and what waits, a line for each."""
    for task in run.tasks:
        if task.state == "FAILED":
            yield f"[red]error:[/] {escape(task.title)}: {escape(task.reason)}"
        elif task.reason:
            kind = "waiting" if task.waits_since else "note"
            yield f"[yellow]{kind}:[/] {escape(task.title)}: {escape(task.reason)}"
    if run.error:
        yield f"[red]error:[/] {escape(run.error)}"


def _progress(task: Task) -> str:
    attempt = f" (attempt {task.attempts})" if task.attempts > 1 else ""
    return f"{_word(task.state)}{attempt}"


def _state(state: str) -> str:
    colour = _COLOURS.get(state, "default")
    return f"[{colour}]{_word(state)}[/]"


def _word(state: str) -> str:
    return _WORDS.get(state, state.lower())
