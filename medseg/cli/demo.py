"""``medseg demo``: runs the walkthrough and shows what came out."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from medseg.cli.progress import run_and_show
from medseg.config import TaskConfig
from medseg.demo.walkthrough import prepare_demo, read_summaries
from medseg.kubeflow.compiled import read_pipeline
from medseg.project import DataRoot


def run_demo(data_root: Path, dataset: Path | None) -> bool:
    """Runs the demo's pipelines, then prints the metrics and where the report lies.

    Args:
        data_root: Folder for the demo's data; made if needed.
        dataset: A Decathlon-format folder, or None for phantoms.

    Returns:
        Whether every stage succeeded.
    """
    data_root.mkdir(parents=True, exist_ok=True)
    root = DataRoot.at(data_root)
    demo = prepare_demo(root, dataset)
    for name, arguments in demo.runs:
        run = run_and_show(read_pipeline(name), root, arguments)
        if not run.succeeded:
            return False
    show_metrics(demo.config)
    for label, path in run.results:
        if label == "report":
            Console().print(f"{label}: {path}", soft_wrap=True, highlight=False)
    return True


def show_metrics(config: TaskConfig) -> None:
    """Prints the means of the validation and the test summary, a row for each structure.

    Args:
        config: The task's config.
    """
    table = Table(title="Metrics (mean over cases)", title_justify="left")
    for column in ("cases", "structure", "Dice", "IoU", "ASD / mm", "HD95 / mm"):
        table.add_column(column)
    for part, summary in read_summaries(config).items():
        count = len(summary["metric_per_case"])
        for key, metrics in summary["mean"].items():
            values = (metrics.get(key) for key in ("Dice", "IoU", "ASD", "HD95"))
            cells = ("–" if value is None else f"{value:.3f}" for value in values)
            table.add_row(f"{part} ({count})", summary["labels"].get(key, key), *cells)
    Console().print(table)
