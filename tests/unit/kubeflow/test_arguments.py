"""The arguments of a run, checked against the compiled pipeline."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from medseg.kubeflow.compiled import compiled_folder, read_pipeline
from medseg.project import UserError

GIVEN = {"config_file_path": "configs/Task.yaml"}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("memory", "8 GB", "parameter memory: '8 GB' is nothing that fits there: write it"),
        (
            "mlflow_secret",
            "team.mlflow",
            "'team.mlflow' is nothing that fits there: write it like m",
        ),
        (
            "mlflow_secret",
            "medseg-data",
            "pvc_name and mlflow_secret are both 'medseg-data', and KF",
        ),
        ("cpu", "two", "parameter cpu: 'two' is nothing that fits there: write it like 2."),
        ("gpu_count", "one", "parameter gpu_count: 'one'"),
        ("gpu_type", "", "parameter gpu_type: ''"),
        ("image", "a b", "write it like registry.example.org/runtime:1.0."),
        ("pvc_name", "My_Claim", "write it like medseg-data."),
        ("mlflow_secret", "", "write it like medseg-mlflow."),
        ("node_selector", {"a": 1}, 'write it like {"pool": "gpu"}.'),
        ("folds", ["x", None], "parameter folds: 'x' in the list is no whole number."),
        ("folds", [0.5], "parameter folds: 0.5 in the list"),
        ("folds", [True], "parameter folds: True in the list"),
        ("config_file_path", " ", "pipeline train needs config_file_path"),
        ("memory", "2Gi", "memory: 2Gi is less than the 4Gi that the stage train asks for"),
        ("cpu", "500m", "cpu: 500m is less than the 1 that the stage train asks for"),
    ],
)
def test_a_wrong_value(name: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        read_pipeline("train").arguments({**GIVEN, name: value})


def test_right_values() -> None:
    given = {**GIVEN, "memory": "4096Mi", "cpu": 1.5, "gpu_count": 0, "folds": "[0, 4]"}
    given["node_selector"] = '{"pool": "gpu"}'
    assert read_pipeline("train").arguments(given) == {
        **GIVEN,
        "memory": "4096Mi",
        "cpu": "1.5",
        "gpu_count": "0",
        "folds": [0, 4],
        "node_selector": {"pool": "gpu"},
    }


@pytest.mark.parametrize("key", ["root", "deploymentSpec", "pipelineInfo"])
def test_half_a_pipeline(tmp_path: Path, key: str) -> None:
    content, _ = yaml.safe_load_all((compiled_folder() / "train.yaml").read_text())
    del content[key]
    (tmp_path / "half.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"half\.yaml is no compiled pipeline"):
        read_pipeline(str(tmp_path / "half.yaml"))


def test_names_of_a_pipeline_without_the_platform_mean_what_they_mean(tmp_path: Path) -> None:
    inputs = {"image": {"parameterType": "STRING"}, "memory": {"parameterType": "STRING"}}
    content = {
        "pipelineInfo": {"name": "other"},
        "root": {"inputDefinitions": {"parameters": inputs}},
        "deploymentSpec": {"executors": {}},
    }
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(content))
    given = {"image": "my scan.nii.gz", "memory": "short"}
    assert read_pipeline(str(tmp_path / "other.yaml")).arguments(given) == given
