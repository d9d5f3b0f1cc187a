"""The stage ``download_decathlon``: its arguments, and what a user reads."""

import json
from pathlib import Path

import pytest
from kfp import compiler

from medseg.components import download_decathlon as component
from medseg.kubeflow.compiled import read_pipeline, read_yaml
from medseg.kubeflow.local import read_arguments
from medseg.kubeflow.local_docker import stage_access
from medseg.pipelines import download_decathlon as pipeline
from medseg.project import DataRoot


def test_a_pipeline_gives_it_what_it_asks_for(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    compiler.Compiler().compile(pipeline, str(file))
    assert not stage_access(read_yaml(file))["exec-download-decathlon"].secrets


def test_maias_argument_file_is_enough(tmp_path: Path) -> None:
    (tmp_path / "arguments.json").write_text(json.dumps({"decathlon_task": "Task09_Spleen"}))
    given = read_arguments(tmp_path / "arguments.json", ())
    assert read_pipeline("download_decathlon").arguments(given) == given


def test_a_misspelt_task(root: DataRoot, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        component.execute(decathlon_task="Task01_BrainTumor", dataset=None)
    error = capfd.readouterr().err
    assert "no task 'Task01_BrainTumor' (did you mean 'Task01_BrainTumour'?)" in error
