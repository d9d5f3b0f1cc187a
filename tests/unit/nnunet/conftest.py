"""Small real datasets, and one trained fold that the tests of this folder share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from medseg.config import TaskConfig
from medseg.nnunet import (
    Preprocessed,
    TrainingResult,
    plan_and_preprocess,
    predict_validation,
    prepare_dataset,
    train,
)
from tests.hippocampus import add_tiny_configuration, copy_cases, write_config
from tests.volumes import Volume


def run_stage(config: TaskConfig, function: str) -> subprocess.Popen[str]:
    """A stage in a process of its own, its output to be read line by line."""
    code = (
        "from medseg.project import stage\n"
        "from medseg.config import load_config\n"
        f"from medseg.nnunet import {function}\n"
        "if __name__ == '__main__':\n"
        f"    with stage('{function}'):\n"
        f"        {function}(load_config('{config.path.name}'))\n"
    )
    script = config.root.path / f"run_{function}.py"
    script.write_text(code)
    return subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "MEDSEG_DATA_ROOT": str(config.root.path)},
        stdout=subprocess.PIPE,
        text=True,
    )


def read_until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return
    pytest.fail(f"the stage ended before {text!r}: {''.join(lines)}")


@dataclass(frozen=True)
class Trained:
    config: TaskConfig
    prepared: dict[str, Any]
    preprocessed: Preprocessed
    result: TrainingResult
    output: str


@pytest.fixture(scope="session")
def preprocessed_root(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root whose dataset is prepared and preprocessed; do not change it, copy it."""
    root = tmp_path_factory.mktemp("hippocampus")
    copy_cases(shared_data, root / "NIFTI")
    config = write_config(root)
    prepare_dataset(config)
    plan_and_preprocess(config)
    add_tiny_configuration(config)
    cases = config.preprocessed_folder / "nnUNetPlans_3d_fullres"
    before = {path: path.stat().st_mtime_ns for path in cases.glob("*.b2nd")}
    plan_and_preprocess(write_config(root, configuration="tiny"))
    # The new configuration inherits the cases: none is preprocessed again.
    assert {path: path.stat().st_mtime_ns for path in cases.glob("*.b2nd")} == before
    # MLflow takes seconds to make its tables: once, for all data roots of these tests.
    from mlflow import MlflowClient

    MlflowClient(f"sqlite:///{root / 'mlflow.db'}").search_experiments()
    shutil.copy(root / "mlflow.db", root / "empty.db")
    return root


@pytest.fixture(scope="session")
def trained(preprocessed_root: Path) -> Trained:
    import contextlib
    import io

    config = write_config(preprocessed_root, configuration="tiny")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        result = train(config)
    predict_validation(config)
    return Trained(
        config,
        prepare_dataset(config),
        plan_and_preprocess(config),
        result,
        output.getvalue(),
    )


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """These nets are tiny; where cores are busy, several threads only wait for each other."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def own_root(preprocessed_root: Path, tmp_path: Path) -> Path:
    """A copy of the preprocessed data root, for a test that trains in it."""
    return copy_root(preprocessed_root, tmp_path / "root", "nnUNet_trained_models")


@pytest.fixture
def trained_volume(trained: Trained, volume: Volume) -> Volume:
    """A copy of the data root with the trained fold, on a volume that can be filled."""
    copy_root(trained.config.root.path, volume.folder)
    return volume


def copy_root(source: Path, target: Path, *without: str) -> Path:
    """Copies a data root, with an empty MLflow store."""
    shutil.copytree(
        source,
        target,
        ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts", *without),
        dirs_exist_ok=True,
    )
    (target / "empty.db").rename(target / "mlflow.db")
    return target
