"""Tables of the command line."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from medseg.kubeflow.compiled import Parameter, pipeline_names, read_pipeline


def show_pipelines() -> None:
    """Prints every pipeline: name, what it does, parameters."""
    table = Table(title="Pipelines", title_justify="left", show_lines=True)
    table.add_column("name", style="bold cyan", no_wrap=True)
    table.add_column("what it does")
    table.add_column("parameters")
    for name in pipeline_names():
        pipeline = read_pipeline(name)
        shown = [p for p in pipeline.parameters.values() if not p.for_platform]
        table.add_row(name, pipeline.description, "\n".join(map(_brief, shown)))
    console = Console()
    console.print(table)
    console.print(
        "Each also takes the cluster's parameters: 'medseg pipelines NAME' lists all of them."
    )


def show_parameters(name: str) -> None:
    """Prints all parameters of one pipeline.

    Args:
        name: The pipeline's name.
    """
    pipeline = read_pipeline(name)
    table = Table(title=f"{name}: {pipeline.description}", title_justify="left")
    for column in ("parameter", "default", "meaning"):
        table.add_column(column)
    for parameter in pipeline.parameters.values():
        default = "[red]required" if parameter.required else _text(parameter.default)
        table.add_row(parameter.name, default, parameter.description)
    Console().print(table)


def _brief(parameter: Parameter) -> str:
    if parameter.required:
        return f"[bold]{parameter.name}[/]"
    return f"{parameter.name}={_text(parameter.default)}"


def _text(value: Any) -> str:
    return json.dumps(value) if value != "" else '""'
