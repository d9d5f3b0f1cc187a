"""The tracker against MLflow's own stores: sqlite, and a real server that comes and goes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from medseg.config import TaskConfig, load_config
from medseg.project import DataRoot, UserError
from medseg.project.variables import RUN_ID, TASK_RUN, TRACKING_URI
from medseg.tracking import is_behind, masked, open_run, run_id, runs, store
from tests.services.mlflow_server import free_port, start_server


def task(root: DataRoot, **bundle: Any) -> TaskConfig:
    content = {
        "data_dir": "NIFTI",
        "dataset_name_or_id": "4",
        "experiment_name": "Task",
        "labels": {"background": 0, "A": 1},
        "bundle_config": {"bundle_root": "bundle", **bundle},
    }
    (root.path / "config.yaml").write_text(yaml.safe_dump(content))
    return load_config("config.yaml", root)


def client(root: DataRoot) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{root.path / 'mlflow.db'}")


@pytest.fixture(autouse=True)
def no_server_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (TRACKING_URI, TASK_RUN, RUN_ID):
        monkeypatch.delenv(variable.name, raising=False)


def test_stages_continue_one_run(root: DataRoot, tmp_path: Path) -> None:
    config = task(root, mlflow_run_name="nnUNet")
    note = tmp_path / "note.txt"
    note.write_text("n")
    assert run_id(config) == ""
    with open_run(config) as tracker:
        tracker.params({"lr": 0.01, "plans": {"patch_size": [1, 2]}})
        tracker.metrics({"loss": 1.0, "Dice_left/right?": 0.5, "Dice_absent": float("nan")}, step=0)
        tracker.artifact(note, "notes")
        first = tracker.run_id
    with open_run(config) as tracker:
        assert tracker.run_id == first == run_id(config)
        tracker.params({"lr": 0.01, "num_epochs": 5})
        tracker.params({"num_epochs": 9})
        tracker.metrics({"loss": 7.0}, step=0)  # the run has this step already
        tracker.metrics({"loss": 0.5}, step=1)
        tracker.metrics({"Dice": 0.8})
        tracker.metrics({"Dice": 0.8})
        tracker.metrics({"Dice": 0.9})
    with open_run(load_config(config.path, root, fold=1)) as tracker:
        assert tracker.run_id != first

    store = client(root)
    run = store.get_run(first)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "nnUNet fold 0"
    assert run.data.params == {"lr": "0.01", "plans.patch_size": "[1, 2]", "num_epochs": "5"}
    assert run.data.tags["changed.num_epochs"] == "9"
    assert run.data.metrics["Dice"] == 0.9
    assert "Dice_left/right_" in run.data.metrics
    assert "Dice_absent" not in run.data.metrics
    history = store.get_metric_history(first, "loss")
    assert [(item.step, item.value) for item in history] == [(0, 1.0), (1, 0.5)]
    assert len(store.get_metric_history(first, "Dice")) == 2
    assert (root.path / "mlartifacts").is_dir()
    assert [item.path for item in store.list_artifacts(first, "notes")] == ["notes/note.txt"]
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_how_a_run_ends(root: DataRoot) -> None:
    config = task(root)
    for error, status in ((SystemExit(143), "KILLED"), (ValueError(), "FAILED")):
        with pytest.raises(type(error)), open_run(config) as tracker:
            raise error
        assert client(root).get_run(tracker.run_id).info.status == status


def test_a_run_that_was_deleted_is_made_again(root: DataRoot) -> None:
    config = task(root)
    with open_run(config) as tracker:
        first = tracker.run_id
    client(root).delete_run(first)
    with open_run(config) as tracker:
        assert tracker.run_id not in ("", first)


def test_passwords_are_masked(
    root: DataRoot, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert masked("see https://ann:secret@host/x") == "see https://***@host/x"
    assert masked("sqlite:////data/mlflow.db") == "sqlite:////data/mlflow.db"
    config = task(root, tracking_uri=f"http://ann:secret@127.0.0.1:{free_port()}")
    with open_run(config) as tracker:
        tracker.metrics({"loss": 1.0}, step=0)
    output = capsys.readouterr().out
    assert "cannot be reached" in output
    assert "1 values and 0 files were not sent" in output
    assert "secret" not in output
    assert not (config.fold_folder() / ".medseg" / "mlflow.json").exists()


def test_a_server_that_is_away_for_a_while(
    root: DataRoot,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runs, "RETRY_AFTER", 0.0)
    port = free_port()
    config = task(root, tracking_uri=f"http://127.0.0.1:{port}")
    with open_run(config) as tracker:
        tracker.params({"lr": 0.1})
        tracker.metrics({"loss": 3.0}, step=0)
        assert tracker.run_id == ""
        server = start_server(tmp_path, port)
        try:
            tracker.metrics({"loss": 2.0}, step=1)
            sent = tracker.run_id
            assert sent
            from mlflow import MlflowClient

            store = MlflowClient(f"http://127.0.0.1:{port}")
            history = store.get_metric_history(sent, "loss")
            assert [(item.step, item.value) for item in history] == [(0, 3.0), (1, 2.0)]
            assert store.get_run(sent).data.params == {"lr": "0.1"}
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        tracker.metrics({"loss": 1.0}, step=2)  # away again: no error
    told = capsys.readouterr().out
    assert "MLflow is back" in told
    assert f"MLflow: http://127.0.0.1:{port}/#/experiments/" in told
    assert f"/runs/{sent}\n" in told
    assert "View run" not in told  # MLflow's own line
    assert is_behind(config)
    record = json.loads((config.fold_folder() / ".medseg" / "mlflow.json").read_text())
    assert record == {f"http://127.0.0.1:{port}": sent}


# --- Kubeflow's own link ---


def test_kubeflows_run_of_the_task_leads_to_ours(
    root: DataRoot,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'kubeflow.db'}"
    kubeflow = MlflowClient(uri)
    task_run = kubeflow.create_run(kubeflow.create_experiment("kfp-native")).info.run_id
    config = task(root, tracking_uri=f"sqlite:///{root.path / 'mlflow.db'}")

    monkeypatch.setenv(TASK_RUN.name, task_run)  # KFP keeps its server to itself
    with open_run(config, trains=True) as tracker:
        tracker.metrics({"loss": 1.0}, step=0)
    ours = client(root).get_run(tracker.run_id)
    assert not [tag for tag in ours.data.tags if "kfp" in tag]

    monkeypatch.setenv(TRACKING_URI.name, uri)
    monkeypatch.setenv(RUN_ID.name, "5f1d")
    with open_run(config, trains=True) as tracker:
        tracker.metrics({"loss": 0.5}, step=1)
    monkeypatch.setenv(RUN_ID.name, "of another stage")
    with open_run(config):
        pass
    linked, ours = kubeflow.get_run(task_run), client(root).get_run(tracker.run_id)
    assert ours.data.tags["kfp.pipeline_run_id"] == "5f1d"
    assert ours.data.tags["kfp.mlflow_run_id"] == task_run
    assert linked.data.tags["medseg.run_id"] == ours.info.run_id
    assert linked.data.tags["medseg.run_url"].endswith(f"/runs/{ours.info.run_id}")
    assert linked.data.metrics == linked.data.params == {}  # KFP's launcher logs them
    assert linked.info.status == "RUNNING"  # it is KFP's to end

    monkeypatch.setenv(TASK_RUN.name, "0" * 32)
    with open_run(config, trains=True) as tracker:
        tracker.metrics({"loss": 0.2}, step=2)
    assert f"run {'0' * 32} of this task got no link" in capsys.readouterr().out
    assert len(client(root).get_metric_history(tracker.run_id, "loss")) == 3


def test_a_recorded_pod_has_the_variables_that_are_read(real_data: Path) -> None:
    pods = json.loads((real_data / "kfp" / "train_mlflow" / "pods.json").read_text())
    names = {
        variable["name"]
        for pod in pods
        for container in pod["spec"]["containers"]
        for variable in container.get("env", [])
    }
    assert {TASK_RUN.name, TRACKING_URI.name, RUN_ID.name} <= names


# --- the embedded store on a cluster ---


def test_the_embedded_store_needs_locks_that_all_nodes_see(
    root: DataRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "unshared_locks", lambda _: "nfs4, mounted with nolock")
    with open_run(task(root)):  # on one machine nobody else is there
        pass
    monkeypatch.setenv(RUN_ID.name, "5f1d")
    with pytest.raises(UserError, match=r"\(nfs4, mounted with nolock\) whose locks"):
        open_run(task(root)).__enter__()
    with open_run(task(root, tracking_uri=f"http://127.0.0.1:{free_port()}")):
        pass
    monkeypatch.undo()
    monkeypatch.setenv(RUN_ID.name, "5f1d")
    with open_run(task(root)) as tracker:
        assert tracker.run_id
