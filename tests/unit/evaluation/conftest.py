"""Fixtures of the evaluation's tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from medseg.config import TaskConfig, load_config
from medseg.demo import generate_phantoms
from medseg.project import DataRoot
from tests.unit.evaluation.finished import finished_project

NAME = "Task09_SpleenPhantom"


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation") / "phantoms"
    generate_phantoms(folder, training_cases=5, test_cases=1, seed=3)
    return folder


@pytest.fixture(scope="session")
def template(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    finished_project(DataRoot.at(folder), phantoms, NAME)
    return folder


@pytest.fixture
def finished(root: DataRoot, template: Path) -> TaskConfig:
    """A finished project; moved, as when a volume is mounted on another machine."""
    shutil.copytree(template, root.path, dirs_exist_ok=True)
    return load_config(f"configs/{NAME}_config.yaml", root)
