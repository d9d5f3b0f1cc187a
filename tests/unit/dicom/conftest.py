"""Fixtures of the DICOM room: real cases inside a data root, and a config for them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from medseg.config import TaskConfig, load_config
from medseg.project import DataRoot


def copy_tree(source: Path, target: Path) -> Path:
    """Copies without the source's permissions: the shared data are read-only."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)
    return target


@pytest.fixture
def patient(root: DataRoot, shared_data: Path) -> Path:
    """The folder ``DICOM`` of the data root with the study of PGBM-002: T1post and FLAIR_reg."""
    for series in ("T1post", "FLAIRreg"):
        copy_tree(shared_data / "PGBM-002" / series, root.path / "DICOM" / series)
    return root.path / "DICOM"


@pytest.fixture
def make_config(root: DataRoot) -> Callable[..., TaskConfig]:
    """Writes a config with the given settings and loads it."""

    def make(**settings: Any) -> TaskConfig:
        content = {
            "data_dir": "NIFTI/Task",
            "dataset_name_or_id": "09",
            "experiment_name": "Task",
            "labels": {"background": 0, "Tumor": 1},
            "bundle_config": {"bundle_root": "MONet_Bundle/Task/MONetBundle"},
            **settings,
        }
        path = root.path / "config.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return load_config(path, root)

    return make
