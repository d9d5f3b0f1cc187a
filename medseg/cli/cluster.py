"""Commands for pipelines on a cluster."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medseg.project import variables

if TYPE_CHECKING:
    from medseg.kubeflow.client import Cluster


_NAMESPACE = click.option(
    "-n",
    "--namespace",
    default="",
    envvar=variables.NAMESPACE.name,
    help=f"Your namespace (or {variables.NAMESPACE.name}).",
)


def pipeline_arguments(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command ``--args`` and ``-p``, which it gets as ``file`` and ``given``."""
    for option in (
        click.option(
            "-p",
            "--param",
            "given",
            multiple=True,
            metavar="KEY=VALUE",
            help="One argument; repeatable.",
        ),
        click.option(
            "--args",
            "file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="JSON file with the pipeline's arguments.",
        ),
    ):
        command = option(command)
    return command


def _cluster(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command ``--host`` and ``--namespace``, and the cluster in their place."""

    @click.option(
        "--host", default="", help=f"URL of Kubeflow Pipelines (or {variables.HOST.name})."
    )
    @_NAMESPACE
    @functools.wraps(command)
    def connected(host: str, namespace: str, **values: Any) -> Any:
        from medseg.kubeflow.client import Cluster

        return command(functools.partial(Cluster, host, namespace), **values)

    return connected


def _run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the pipeline's arguments and ``--experiment``, ``--name`` and the account."""
    for option in (
        click.option("--service-account", default="", help="Service account of the pods."),
        click.option("--name", default="", help="Name in the UI."),
        click.option("--experiment", default="medseg", show_default=True),
        pipeline_arguments,
    ):
        command = option(command)
    return command


def _note(text: str) -> None:
    click.echo(f"note: {text}", err=True)


Connect = Callable[[], "Cluster"]


@click.command()
@click.argument("names", metavar="[PIPELINE]...", nargs=-1)
@_cluster
def upload(connect: Connect, names: tuple[str, ...]) -> None:
    """Upload pipelines: names, files of your own, or all. A changed one becomes a new version."""
    from medseg.kubeflow.compiled import pipeline_names, read_pipeline

    pipelines = [read_pipeline(name) for name in names or pipeline_names()]
    cluster = connect()
    for pipeline in pipelines:
        version = cluster.upload(pipeline)
        state = "uploaded" if version.created else "unchanged"
        click.echo(f"{pipeline.kfp_name} {version.name}: {state}, {version.url}")
    _note(cluster.left_out)


@click.command()
@click.argument("pipeline")
@_run_options
@click.option(
    "--mlflow-experiment",
    default="",
    metavar="NAME",
    help="MLflow experiment for the runs that Kubeflow itself opens there (KFP 2.17 or newer).",
)
@click.option("--wait", is_flag=True, help="Show the tasks until the run ends.")
@_cluster
def submit(
    connect: Connect,
    pipeline: str,
    file: Path | None,
    given: tuple[str, ...],
    wait: bool,
    **options: Any,
) -> None:
    """Start a run of PIPELINE (a name, or a YAML file of your own)."""
    from medseg.cli.watch import show_wait
    from medseg.kubeflow.compiled import read_pipeline
    from medseg.kubeflow.local import read_arguments

    compiled = read_pipeline(pipeline)
    arguments = compiled.arguments(read_arguments(file, given))
    cluster = connect()
    run = cluster.submit(compiled, arguments, note=_note, **options)
    click.echo(f"{run.id} {run.name}\n{run.url}")
    if wait:
        raise SystemExit(0 if show_wait(cluster, run).state == "SUCCEEDED" else 1)


@click.command()
@click.argument("pipeline", default="check")
@_run_options
@_cluster
def check(
    connect: Connect, pipeline: str, file: Path | None, given: tuple[str, ...], **options: Any
) -> None:
    """Is this site ready? Look from here, then from pods; one table of what to do.

    PIPELINE is site/check.yaml where your site compiles its own.
    """
    from medseg.cli.check import check_cluster
    from medseg.kubeflow.compiled import read_pipeline
    from medseg.kubeflow.local import read_arguments

    compiled = read_pipeline(pipeline)
    arguments = compiled.arguments(read_arguments(file, given))
    raise SystemExit(0 if check_cluster(connect, compiled, arguments, **options) else 1)


@click.command()
@click.argument("pipeline")
@_run_options
@click.option("--cron", default="", help="When: '0 2 * * *' is every night at two.")
@click.option("--every", default="", help="Or how often: 30m, 12h, 1d.")
@click.option("--catch-up", is_flag=True, help="Make up for runs that were missed.")
@click.option("--concurrency", default=1, show_default=True, help="Its runs at the same time.")
@_cluster
def schedule(
    connect: Connect, pipeline: str, file: Path | None, given: tuple[str, ...], **options: Any
) -> None:
    """Start runs of PIPELINE again and again."""
    from medseg.kubeflow.compiled import read_pipeline
    from medseg.kubeflow.local import read_arguments
    from medseg.kubeflow.schedules import check_schedule

    compiled = read_pipeline(pipeline)
    arguments = compiled.arguments(read_arguments(file, given))
    check_schedule(options["cron"], options["every"], options["concurrency"])
    recurring = connect().schedule(compiled, arguments, note=_note, **options)
    click.echo(f"{recurring.id} {recurring.name} ({recurring.when})\n{recurring.url}")


@click.command()
@click.argument("run", required=False)
@click.option("--count", default=20, show_default=True, help="How many.")
@click.option("--experiment", default="", help="Only runs of this experiment.")
@click.option("--schedules", is_flag=True, help="List the recurring runs.")
@_cluster
def runs(connect: Connect, run: str | None, count: int, experiment: str, schedules: bool) -> None:
    """List the latest runs, or the tasks of RUN."""
    from medseg.cli import watch

    if schedules:
        watch.show_schedules(connect())
    elif run:
        watch.show_run(connect().run(run))
    else:
        watch.show_runs(connect().runs(count, experiment))


@click.command()
@click.argument("run")
@click.argument("task", required=False, default="")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run (or TASK) has ended.")
@click.option(
    "--all", "everything", is_flag=True, help="Also what Kubeflow's launcher and executor say."
)
@_cluster
def logs(connect: Connect, run: str, task: str, follow: bool, everything: bool) -> None:
    """Show what RUN's tasks say, or one TASK."""
    from medseg.cli.watch import show_logs

    show_logs(connect(), run, task, everything=everything, follow=follow)


@click.command()
@click.argument("run")
@click.option("--schedule", "recurring", is_flag=True, help="RUN is a recurring run: remove it.")
@_cluster
def cancel(connect: Connect, run: str, recurring: bool) -> None:
    """End RUN, or remove a schedule."""
    cluster = connect()
    if recurring:
        cluster.cancel_recurring_run(run)
        click.echo(f"removed the recurring run {run}; a run of it that was under way ends with it")
    else:
        cluster.cancel(run)
        click.echo(f"ending the run {run}")


@click.command()
@click.argument("kind", type=click.Choice(list(variables.SECRETS)))
@click.option(
    "--from-file",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSON or YAML with the values; for registry also Docker's config.json.",
)
@click.option("--name", default="", help="The Secret's name; default: the one pipelines look for.")
@_NAMESPACE
def secrets(kind: str, file: Path | None, name: str, namespace: str) -> None:
    """Create or update a Secret that the stages read; the values are asked for."""
    from medseg.kubeflow.secrets import read_secret_file, secret_keys, write_secret
    from medseg.kubeflow.settings import load_settings

    if file is not None:
        values = read_secret_file(kind, file)
    else:
        click.echo("Leave empty what your server does not need.", err=True)
        values = {
            key: click.prompt(
                key.replace("_", " "),
                default="",
                show_default=False,
                hide_input=hidden,
                err=True,
            )
            for key, hidden in secret_keys(kind).items()
        }
    name = name or str(getattr(load_settings(), variables.SECRETS[kind].parameter))
    state, where = write_secret(kind, values, name=name, namespace=namespace)
    click.echo(f"{state} the Secret {name} in the namespace {where}")


COMMANDS = (check, upload, submit, schedule, runs, logs, cancel, secrets)
