"""The demo: a dataset, its DICOM files, and the lifecycle from there to a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.config import TaskConfig, load_config
from medseg.dataset import DESCRIPTION, check_decathlon, copy_decathlon
from medseg.demo.config import write_demo_config
from medseg.demo.phantoms import generate_phantoms
from medseg.project import DataRoot, Manifest, read_json


@dataclass(frozen=True)
class Walkthrough:
    """What the demo runs.

    Attributes:
        config: The task's config.
        runs: Pipelines with their arguments, in order.
    """

    config: TaskConfig
    runs: list[tuple[str, dict[str, Any]]]


def prepare_demo(root: DataRoot, dataset: Path | None = None) -> Walkthrough:
    """Lays the demo's data and config into a data root; what is there already stays.

    Args:
        root: The data root.
        dataset: A folder in the Decathlon format; without one, phantoms are made.

    Raises:
        UserError: ``dataset`` is not in the Decathlon format.
    """
    if dataset is not None:
        check_decathlon(dataset)
    name = dataset.resolve().name if dataset else "Task09_SpleenPhantom"
    source = root.path / "decathlon" / name
    made = Manifest(source, "demo")
    if not made.is_done(name):
        if dataset is None:
            generate_phantoms(source)
        else:
            copy_decathlon(dataset, source)
        made.record(name, [source / DESCRIPTION])
    config_path = root.path / "configs" / f"{name}_config.yaml"
    if not config_path.is_file():
        write_demo_config(config_path, source, name)
    config = load_config(config_path, root)
    config_file_path = root.relative(config_path)
    return Walkthrough(
        config=config,
        runs=[
            (
                "nifti_to_dicom",
                {
                    "input_folder": root.relative(source),
                    "output": f"DICOM/{name}",
                    "config_file_path": config_file_path,
                },
            ),
            (
                "lifecycle",
                {
                    "studies": f"file:///mnt/Data/DICOM/{name}",
                    "config_file_path": config_file_path,
                },
            ),
        ],
    )


def read_summaries(config: TaskConfig) -> dict[str, dict[str, Any]]:
    """The validation and test summaries that a lifecycle left, those that are there.

    Args:
        config: The task's config.

    Returns:
        ``validation`` and ``test`` to the content of their ``summary.json``.
    """
    return {
        part: read_json(path)
        for part in ("validation", "test")
        if (path := config.fold_folder() / part / "summary.json").is_file()
    }
