"""Fixtures of the evaluation's tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from medseg.config import TaskConfig, load_config
from medseg.demo import generate_phantoms
from medseg.evaluation import evaluate
from medseg.project import DataRoot
from tests.unit.evaluation.finished import (
    finished_project,
    write_quality_table,
    write_test_results,
)

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


@pytest.fixture(scope="session")
def complete_template(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("complete") / "root"
    shutil.copytree(template, folder)
    config = load_config(f"configs/{NAME}_config.yaml", DataRoot.at(folder))
    evaluate(config)
    write_test_results(config)
    write_quality_table(config)
    return folder


@pytest.fixture
def complete(root: DataRoot, complete_template: Path) -> TaskConfig:
    """A finished project with all that a report shows."""
    shutil.copytree(complete_template, root.path, dirs_exist_ok=True)
    return load_config(f"configs/{NAME}_config.yaml", root)


@pytest.fixture
def finished(root: DataRoot, template: Path) -> TaskConfig:
    """A finished project; moved, as when a volume is mounted on another machine."""
    shutil.copytree(template, root.path, dirs_exist_ok=True)
    return load_config(f"configs/{NAME}_config.yaml", root)
