"""``medseg check``, and the table of what a check has found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medseg.check import (
    Row,
    cluster_rows,
    kubeflow_row,
    lines,
    read_lines,
    read_rows,
    refused,
    rights_rows,
    verdict,
    worst,
)
from medseg.cli import watch
from medseg.kubeflow.client import Cluster
from medseg.kubeflow.compiled import CompiledPipeline
from medseg.kubeflow.local import LocalRun
from medseg.project import UserError

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red", "not asked": "bright_black"}


def show_rows(rows: Sequence[Row]) -> None:
    """Prints the table; where there is no terminal, as lines that a log can be searched for."""
    console = Console(highlight=False)
    if not console.is_terminal:
        click.echo("\n".join([*lines(rows), verdict(rows)]))
        return
    table = Table("what", "state", "found", box=None, pad_edge=False)
    for row in rows:
        # not a column of its own: the sentences need the room
        remedy = f"\n[bold]->[/] {escape(row.remedy)}" if row.remedy else ""
        state = f"[{_COLOURS[row.state]}]{row.state}[/]"
        table.add_row(escape(row.name), state, escape(row.found) + remedy)
    console.print(table)
    console.print(verdict(rows))


def show_local(run: LocalRun) -> bool:
    """Prints the table of a local run of ``check``.

    Args:
        run: The run.

    Returns:
        Whether nothing failed.
    """
    for label, path in run.results:
        if label == "check":
            rows = read_rows(Path(path).parent)
            show_rows(rows)
            return worst(rows) != "failed"
    return False


def check_cluster(
    connect: Callable[[], Cluster],
    pipeline: CompiledPipeline,
    arguments: dict[str, Any],
    **options: Any,
) -> bool:
    """Checks a cluster from here, then from its pods, and prints one table.

    Args:
        connect: Gives the cluster.
        pipeline: ``check``, as this site compiled it.
        arguments: Its arguments.
        options: More arguments of :meth:`Cluster.submit`.

    Returns:
        Whether nothing failed.
    """
    try:
        cluster = connect()
    except UserError as error:
        show_rows([refused("Kubeflow", error)])
        return False
    rows = list(_from_here(cluster, pipeline.claim(arguments)))
    if worst(rows) == "failed":
        show_rows(rows)
        click.echo("mend what failed, then check again: only then pods are started")
        return False
    run = cluster.submit(pipeline, arguments, note=lambda _: None, **options)
    click.echo(f"{run.id} {run.name}\n{run.url}")
    run = watch.show_wait(cluster, run)
    known = {row.name for row in rows}
    told = read_lines(line for _, line in cluster.logs(run.id, "check"))
    rows += [row for row in told if row.name not in known]
    show_rows(rows)
    if not told:
        click.echo(f"error: the stage check told no table; see medseg logs {run.id}", err=True)
    return bool(told) and run.state == "SUCCEEDED" and worst(rows) != "failed"


def _from_here(cluster: Cluster, claim: str) -> Iterator[Row]:
    yield kubeflow_row(cluster.server, cluster.host)
    looks = {
        "rights": partial(rights_rows, cluster.namespace),
        "claim": partial(cluster_rows, claim, cluster.namespace, cluster.server),
    }
    for name, look in looks.items():
        try:
            yield from look()
        except UserError as error:  # no way to Kubernetes from here: the pods look too
            yield refused(name, error, "warning")
