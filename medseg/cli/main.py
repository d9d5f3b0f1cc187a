"""Commands. Each imports what it needs inside, so that ``--help`` is quick."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from medseg import __version__
from medseg.cli import cluster, convert, deploy
from medseg.project import (
    UserError,
    explained_os_errors,
    own_authorities,
    unquoted_errors,
    variables,
)


class _Commands(click.Group):
    """Shows what the user can mend as one line, with exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with explained_os_errors(), own_authorities():
                return super().invoke(ctx)
        except UserError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="medseg")
def main() -> None:
    """The life of a medical-image segmentation model: DICOM in, a packaged model out."""


_DATA_ROOT = click.option(
    "--data-root",
    type=click.Path(file_okay=False, path_type=Path),
    envvar=variables.DATA_ROOT.name,
    required=True,
    help=f"Folder that holds the project's data (or {variables.DATA_ROOT.name}).",
)


@main.command()
@click.argument("name", required=False)
def pipelines(name: str | None) -> None:
    """List the pipelines, or all parameters of the pipeline NAME."""
    from medseg.cli import tables

    if name:
        tables.show_parameters(name)
    else:
        tables.show_pipelines()


@main.command()
@click.argument("name")
@_DATA_ROOT
@cluster.pipeline_arguments
@click.option(
    "--runner",
    type=click.Choice(["subprocess", "docker"]),
    default="subprocess",
    show_default=True,
    help="Run the stages with this Python, or in their images.",
)
@click.option("--name", "run_name", default="", help="Name of the run and its folder in runs/.")
def run(
    name: str,
    data_root: Path,
    file: Path | None,
    given: tuple[str, ...],
    runner: str,
    run_name: str,
) -> None:
    """Run the compiled pipeline NAME on this machine."""
    from medseg.cli.progress import run_and_show
    from medseg.kubeflow.compiled import read_pipeline
    from medseg.kubeflow.local import read_arguments
    from medseg.project import DataRoot

    pipeline = read_pipeline(name)
    finished = run_and_show(
        pipeline, DataRoot.at(data_root), read_arguments(file, given), runner=runner, name=run_name
    )
    succeeded = finished.succeeded
    if pipeline.name == "check":
        from medseg.cli.check import show_local

        succeeded = show_local(finished) and succeeded
    raise SystemExit(0 if succeeded else 1)


@main.command()
@click.argument("input", type=click.Path(path_type=Path))
@click.option(
    "--model",
    required=True,
    type=click.Path(path_type=Path),
    help="The model.ts, or models:/NAME@champion.",
)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="File or folder."
)
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["nifti", "dicom"]),
    help="Format of the result; default: that of the input.",
)
@click.option("--no-tta", is_flag=True, help="No mirrored copies: faster, a little less accurate.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    help="Arithmetic; auto: the fastest that gives the same result.",
)
@click.option(
    "--probabilities",
    is_flag=True,
    help="Write CASE_prob_VALUE.nii.gz too: the probability of each label.",
)
def segment(
    input: Path,  # noqa: A002 - the argument's name in the help
    model: Path,
    output: Path,
    output_format: str | None,
    no_tta: bool,
    device: str,
    precision: str,
    probabilities: bool,
) -> None:
    """Segment INPUT: a NIfTI file, a folder of them, or a DICOM series."""
    from medseg.bundle import segment as segment_images
    from medseg.tracking import fetch_model, is_registered

    with unquoted_errors():
        paths = segment_images(
            fetch_model(str(model)) if is_registered(model) else model,
            input,
            output,
            output_format=output_format or "",
            test_time_augmentation=not no_tta,
            device=device,
            precision=precision,
            probabilities=probabilities,
        )
    for path in paths:
        click.echo(path)


@main.command()
@click.argument("config")
@_DATA_ROOT
@click.option("--fold", "folds", type=int, multiple=True, help="Fold to show; default: all.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=40000, show_default=True, help="0: any."
)
def explore(config: str, data_root: Path, folds: tuple[int, ...], port: int) -> None:
    """Open all metrics of the task CONFIG in D-Tale, in a browser on this machine.

    CONFIG lies in the data root. In a Kubeflow notebook the notebook's proxy leads to it.
    """
    from medseg.config import load_config
    from medseg.evaluation import explore as serve
    from medseg.evaluation import metrics_table
    from medseg.project import DataRoot

    def opened(address: str) -> None:
        click.echo(f"Open {address} (Ctrl-C ends it)")

    table = metrics_table(load_config(config, DataRoot.at(data_root)), folds)
    with suppress(KeyboardInterrupt):
        serve(table, port, opened)


@main.command()
@click.option(
    "--data-root",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder for the demo's data; made if needed.",
)
@click.option(
    "--dataset",
    type=click.Path(file_okay=False, path_type=Path),
    help="A Decathlon-format folder to use in place of the phantoms.",
)
def demo(data_root: Path, dataset: Path | None) -> None:
    """Run everything once: phantoms, DICOM, training, packaging, report."""
    from medseg.cli.demo import run_demo

    raise SystemExit(0 if run_demo(data_root, dataset) else 1)


@main.command("compile")
@click.option(
    "--settings",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML file with the site's platform settings.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the YAML files; default: compiled, of a site's own settings site.",
)
@click.option(
    "--catalogue",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the catalogue of pipelines and components to this Markdown page.",
)
@click.option(
    "--manifests",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Also write the empty Secrets, and the role that names them, in this folder.",
)
def compile_(
    settings: Path | None, output: Path | None, catalogue: Path | None, manifests: Path | None
) -> None:
    """Compile the pipelines to YAML, ready to upload."""
    import os

    from medseg.kubeflow.settings import PREFIX

    if settings is not None:
        os.environ[variables.SETTINGS_FILE.name] = str(settings)
    if output is None:  # the committed set is that of the defaults
        output = Path("site" if any(name.startswith(PREFIX) for name in os.environ) else "compiled")
    # loads the components, whose images are those of the settings
    from medseg.cli.catalogue import write_catalogue
    from medseg.cli.compiling import compile_pipelines, write_secret_manifests

    for path in compile_pipelines(output):
        click.echo(path)
    if catalogue is not None:
        write_catalogue(catalogue, output)
        click.echo(catalogue)
    if manifests is not None:
        write_secret_manifests(manifests)
        click.echo(manifests)


for _command in (*cluster.COMMANDS, *deploy.COMMANDS, convert.convert):
    main.add_command(_command)
