"""Commands for inference images: ``medseg deploy context|build`` and ``medseg infer``."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click

_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def deploy() -> None:
    """Turn a packaged model into images that run anywhere."""


@deploy.command()
@click.argument("folder", type=_FOLDER)
@click.option("--model", required=True, type=_FILE, help="The model.ts.")
@click.option("--task-file", required=True, type=_FILE, help="The segmentation task file.")
@click.option("--task", default="", help="Task in the file; needed where it holds several.")
@click.option("--base-dicom", help="Base image for DICOM; default: the project's map-dicom.")
@click.option("--base-nifti", help="Base image for NIfTI; default: the project's map-nifti.")
def context(
    folder: Path,
    model: Path,
    task_file: Path,
    task: str,
    base_dicom: str | None,
    base_nifti: str | None,
) -> None:
    """Write the build contexts FOLDER/dicom and FOLDER/nifti."""
    from medseg.deploy import write_context
    from medseg.kubeflow.settings import load_settings

    settings = load_settings()
    write_context(
        folder,
        model,
        task_file,
        bases={
            "dicom": base_dicom or settings.image("map-dicom"),
            "nifti": base_nifti or settings.image("map-nifti"),
        },
        task_name=task,
    )


@deploy.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-t", "--tag", required=True, metavar="IMAGE", help="Name of the image.")
@click.option("--push", is_flag=True, help="Push it to its registry.")
@click.option("--overwrite", is_flag=True, help="Replace another image of this name there.")
def build(folder: Path, tag: str, push: bool, overwrite: bool) -> None:
    """Build the image of the context FOLDER with Docker."""
    from medseg.deploy import build_with_docker

    click.echo(f"{tag} {build_with_docker(folder, tag, push=push, overwrite=overwrite)}")


@click.command()
@click.argument("input", type=click.Path(path_type=Path))
@click.option("--image", required=True, help="The inference image.")
@click.option("-o", "--output", required=True, type=_FOLDER, help="Folder for the results.")
@click.option("--gpu", is_flag=True, help="Give the container this machine's GPUs.")
def infer(input: Path, image: str, output: Path, gpu: bool) -> None:  # noqa: A002
    """Segment INPUT with an inference image, in Docker.

    INPUT: a DICOM study, a folder of studies, a folder of NIfTI files, or one such file.
    """
    from medseg.deploy import infer as run_image

    # As Ctrl-C does: an exception, on whose way out the container is ended too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    raise SystemExit(run_image(image, input, output, gpu=gpu))


COMMANDS = (deploy, infer)
