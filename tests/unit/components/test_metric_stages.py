"""The stages ``export_metrics`` and ``compare_models``: what they ask of the cluster, and do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from kfp import compiler
from kfp.dsl import HTML, Dataset

from medseg import pipelines
from medseg.components import compare_models, export_metrics
from medseg.evaluation.table import read_table
from medseg.kubeflow.compiled import read_pipeline, read_yaml
from medseg.kubeflow.local_docker import stage_access
from medseg.project import DataRoot

CONFIG = {
    "data_dir": "NIFTI",
    "nnunet_root_dir": "nnUNet",
    "dataset_name_or_id": "1",
    "experiment_name": "Task",
    "labels": {"background": 0, "structure": 1},
    "bundle_config": {"bundle_root": "Bundle"},
}


@pytest.mark.parametrize("name", ["export_metrics", "compare_models"])
def test_a_pipeline_gives_it_what_it_asks_for(name: str, tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    compiler.Compiler().compile(getattr(pipelines, name), str(file))
    documents = read_yaml(file)
    label = f"exec-{name.replace('_', '-')}"
    resources = documents[0]["deploymentSpec"]["executors"][label]["container"]["resources"]
    assert "accelerator" not in resources
    assert not stage_access(documents)[label].secrets


def test_what_has_to_be_given() -> None:
    exported, compared = (read_pipeline(name) for name in ("export_metrics", "compare_models"))
    assert [n for n, p in exported.parameters.items() if p.required] == ["config_file_path"]
    assert [n for n, p in compared.parameters.items() if p.required] == ["baseline", "model"]


def results(root: DataRoot, fold: int) -> None:
    """Five validated cases, as nnU-Net's own command leaves them."""
    folder = root.path / "nnUNet/nnUNet_trained_models/Dataset001_Task"
    folder = folder / f"nnUNetTrainer__nnUNetPlans__3d_fullres/fold_{fold}/validation"
    folder.mkdir(parents=True)
    entries: list[dict[str, Any]] = []
    for number in range(5):
        both, missed = 100 - 5 * number, 5 * number + 10 * fold
        entries.append(
            {
                "prediction_file": f"/elsewhere/case_{number}.nii.gz",
                "reference_file": f"/elsewhere/labels/case_{number}.nii.gz",
                "metrics": {
                    "1": {
                        "Dice": 2 * both / (2 * both + missed), "IoU": both / (both + missed),
                        "TP": both, "FP": 0, "FN": missed, "TN": 1000,
                        "n_pred": both, "n_ref": 110,
                    }
                },
            }
        )  # fmt: skip
    content = {"metric_per_case": entries, "mean": {}, "foreground_mean": {}}
    (folder / "summary.json").write_text(json.dumps(content))


def artifacts(folder: Path) -> tuple[Dataset, HTML]:
    return Dataset(name="table"), HTML(name="page", uri=str(folder / "page.html"))


def test_they_run(root: DataRoot, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root.path / "task.yaml").write_text(yaml.safe_dump(CONFIG))
    for fold in (0, 1):
        results(root, fold)
    for _ in range(2):  # the second time in place of the first
        table, page = artifacts(tmp_path)
        export_metrics.execute(
            config_file_path="task.yaml", run="a", table=table, summary=page, folds=[]
        )
        written = root.path / "reports" / "a" / "metrics.parquet"
        assert table.uri == "file:///mnt/Data/reports/a/metrics.parquet"
        assert table.metadata == {"path": "reports/a/metrics.parquet"}
        assert len(pd.read_parquet(written)) == 2 * 5 * 15
        assert "Validation, all folds" in Path(page.path).read_text()
    table, page = artifacts(tmp_path)
    export_metrics.execute(  # as KFP gives whole numbers
        config_file_path="task.yaml", run="c", table=table, summary=page, folds=[1.0]
    )
    assert set(read_table(root.path / "reports" / "c" / "metrics.csv")["fold"]) == {"1"}
    table, page = artifacts(tmp_path)
    compare_models.execute(
        model="task.yaml", baseline="reports/a/metrics.csv", run="b", table=table, html=page,
        split="validation", model_fold=0, baseline_fold=1, metrics=["Dice"],
    )  # fmt: skip
    compared = pd.read_csv(root.path / "reports" / "b" / "comparison.csv")
    assert (compared["better"].item(), compared["p"].item()) == (5, 0.0625)  # all of five pairs
    assert "Comparison of two models" in Path(page.path).read_text()
    assert "1 tests" in capsys.readouterr().out


def test_what_a_kill_left_is_removed(root: DataRoot, tmp_path: Path) -> None:
    (root.path / "task.yaml").write_text(yaml.safe_dump(CONFIG))
    results(root, 0)
    folder = root.path / "reports" / "a"
    folder.mkdir(parents=True)
    for name in ("metrics.csv", "metrics.parquet", "metrics.html", "means.csv", "means.parquet"):
        (folder / f".partial-0a1b2c3d-{name}").write_text("half")
    table, page = artifacts(tmp_path)
    export_metrics.execute(
        config_file_path="task.yaml", run="a", table=table, summary=page, folds=[]
    )
    assert not list(folder.glob(".partial-*"))


def test_a_config_that_is_not_there(root: DataRoot, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        export_metrics.execute(
            config_file_path="none.yaml", run="a", table=None, summary=None, folds=[]
        )
    assert "none.yaml does not exist" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        compare_models.execute(model="none.yaml", baseline="x", run="a", table=None, html=None)
    assert "none.yaml does not exist" in capfd.readouterr().err
