"""The stages ``adopt_model`` and ``finetune``: what they ask of the cluster, what a user reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from kfp import compiler

from medseg.components import adopt_model, finetune
from medseg.kubeflow.compiled import read_pipeline, read_yaml
from medseg.kubeflow.local_docker import stage_access
from medseg.pipelines import finetune as pipeline
from medseg.project import DataRoot, write_json

CONFIG = {
    "data_dir": "NIFTI",
    "nnunet_root_dir": "nnUNet",
    "dataset_name_or_id": "1",
    "experiment_name": "Task",
    "modality_list": ["CT"],
    "labels": {"background": 0, "Spleen": 1},
    "bundle_config": {"bundle_root": "Bundle"},
    "num_epochs": 1000,
}


def write_model(root: DataRoot, **dataset: object) -> str:
    """A Lightning checkpoint with its description beside it."""
    described = {"channel_names": {"0": "CT"}, "labels": CONFIG["labels"], **dataset}
    write_json(root.path / "models/dataset.json", described)
    write_json(root.path / "models/plans.json", {"configurations": {"3d_fullres": {}}})
    torch.save({"state_dict": {"network.a": torch.zeros(1)}}, root.path / "models/last.ckpt")
    (root.path / "task.yaml").write_text(yaml.safe_dump(CONFIG))
    return "models/last.ckpt"


def test_a_pipeline_gives_it_what_it_asks_for(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    compiler.Compiler().compile(pipeline, str(file))
    documents = read_yaml(file)
    resources = documents[0]["deploymentSpec"]["executors"]["exec-finetune"]["container"]
    assert "accelerator" in resources["resources"]
    access = stage_access(documents)
    assert sorted(access["exec-finetune"].secrets) == ["mlflow", "mlflow_artifacts"]
    assert not access["exec-adopt-model"].secrets
    parameters = read_pipeline(str(file)).parameters
    assert [name for name, each in parameters.items() if each.required] == ["config_file_path"]


def test_the_config_of_the_training_is_written_and_returned(root: DataRoot) -> None:
    weights = write_model(root)
    made = adopt_model.execute(config_file_path="task.yaml", weights=weights, epochs=20)
    assert made == "task_finetune.yaml"
    content = yaml.safe_load((root.path / made).read_text())
    assert content == CONFIG | {"pretrained_weights": weights, "num_epochs": 20}
    assert adopt_model.execute(config_file_path=made) == made


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            {"channel_names": {"0": "T1", "1": "T2"}},
            "last.ckpt takes T1, T2, the task has CT: name",
        ),
        ({"labels": {"background": 0, "Liver": 1}}, "segments background (0), liver (1), the task"),
        ({"labels": {"Liver": 1}}, "last.ckpt does not say which labels it segments"),
    ],
)
def test_a_model_that_does_not_fit(
    root: DataRoot, capfd: pytest.CaptureFixture[str], dataset: dict[str, object], message: str
) -> None:
    weights = write_model(root, **dataset)
    with pytest.raises(SystemExit):
        adopt_model.execute(config_file_path="task.yaml", weights=weights)
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_nothing_to_start_from(root: DataRoot, capfd: pytest.CaptureFixture[str]) -> None:
    write_model(root)
    with pytest.raises(SystemExit):
        finetune.execute(config_file_path="task.yaml", metrics=None)
    assert "name it as weights, or as pretrained_weights in task.yaml" in capfd.readouterr().err
