"""Where a dataset lies."""

from __future__ import annotations

from pathlib import Path

from medseg.config import TaskConfig
from medseg.project import DataRoot


def dataset_folder(root: DataRoot, output_folder: str, config: TaskConfig | None) -> Path:
    """The folder of a dataset that is being converted.

    Args:
        root: The data root.
        output_folder: The folder, inside the data root; empty for the config's ``data_dir``.
        config: The task, where there is one.

    Raises:
        UserError: The folder leaves the data root, or neither names one.
    """
    folder = output_folder or (config.data_dir if config else "")
    return root.resolve(folder, field="output_folder")
