"""``medseg convert``: a trained model in the layout of another tool."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "layout",
    required=True,
    type=click.Choice(["bundle", "nnunet"]),
    help="A MONAI bundle, or a folder of nnU-Net's models.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The bundle's folder, or the one that holds nnU-Net's models.",
)
@click.option("--fold", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--configuration", default="", help="Where SOURCE does not say it.")
def convert(
    source: Path, layout: Literal["bundle", "nnunet"], output: Path, fold: int, configuration: str
) -> None:
    """Convert SOURCE: a Lightning .ckpt, a bundle's .pt, nnU-Net's .pth or a model.ts."""
    from medseg.bundle.converting import convert_model

    click.echo(convert_model(source, output, layout, fold=fold, configuration=configuration))
