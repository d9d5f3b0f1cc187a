"""train and predict_validation on real cases, and what kills and changed settings do to them."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from medseg.config import TaskConfig, load_config
from medseg.evaluation import evaluate, evaluate_folder
from medseg.nnunet import (
    TrainedFold,
    TrainingSession,
    devices,
    environment,
    load_checkpoint,
    predict_validation,
    train,
)
from medseg.nnunet.fold_network import FoldNetwork
from medseg.project import Manifest, UserError
from medseg.project.variables import RUN_ID, TASK_RUN, TRACKING_URI
from tests.hippocampus import write_config
from tests.services.mlflow_server import free_port, start_server
from tests.volumes import Volume, contents

from .conftest import Trained, read_until, run_stage


def curve(config: TaskConfig, run_id: str, key: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{config.root.path / 'mlflow.db'}")
    return sorted((item.step, item.value) for item in client.get_metric_history(run_id, key))


def losses(config: TaskConfig, name: str = "checkpoint_final.pth") -> list[float]:
    logged = load_checkpoint(config.fold_folder() / name)["logging"]
    assert {len(values) for values in logged.values()} == {len(logged["train_losses"])}
    return [float(value) for value in logged["train_losses"]]


# --- a training that nobody disturbs ---


def test_result_and_mlflow(trained: Trained) -> None:
    from mlflow import MlflowClient

    config, result = trained.config, trained.result
    assert result.epochs == 3
    assert list(result.Dice) == ["Anterior", "Posterior"]
    assert result.checkpoint == config.root.relative(config.fold_folder() / "checkpoint_final.pth")
    logged = load_checkpoint(config.fold_folder() / "checkpoint_final.pth")["logging"]
    steps = curve(config, result.run_id, "train_loss")
    assert [step for step, _ in steps] == [0, 1, 2]
    assert [value for _, value in steps] == pytest.approx(logged["train_losses"])
    assert curve(config, result.run_id, "Dice_Posterior")[-1][1] == pytest.approx(
        logged["dice_per_class_or_region"][-1][1]
    )
    for key in ("val_loss", "mean_Dice", "ema_Dice", "lr", "epoch_seconds", "Dice_Anterior"):
        assert len(curve(config, result.run_id, key)) == 3, key

    client = MlflowClient(f"sqlite:///{config.root.path / 'mlflow.db'}")
    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["num_epochs"] == "3"
    assert run.data.params["plans.patch_size"] == "[40, 56, 40]"
    assert run.data.params["version.nnunetv2"] == "2.6.4"
    assert run.data.params["hash.dataset"] == trained.prepared["dataset_hash"]
    assert run.data.params["hash.plans"] == trained.preprocessed.plans_hash
    names = {Path(item.path).name for item in client.list_artifacts(result.run_id, "fold_0")}
    assert {"progress.png", "plans.json", "config.yaml"} < names
    assert any(name.startswith("training_log") for name in names)


def test_a_finished_training_catches_up_when_the_store_is_back(
    own_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    address = f"http://127.0.0.1:{(port := free_port())}"
    monkeypatch.setenv(TRACKING_URI.name, address)
    config = write_config(own_root, configuration="tiny", num_epochs=2)
    assert train(config).run_id == ""
    server = start_server(tmp_path, port)
    try:
        client = MlflowClient(address)
        # as Kubeflow's own link to MLflow does for the task
        task_run = client.create_run(client.create_experiment("kfp-native")).info.run_id
        monkeypatch.setenv(TASK_RUN.name, task_run)
        monkeypatch.setenv(RUN_ID.name, "65dfadfe")
        result = train(config)
        (run,) = client.search_runs([client.get_experiment_by_name("Hippocampus").experiment_id])
        history = client.get_metric_history(run.info.run_id, "train_loss")
        assert [item.value for item in history] == pytest.approx(losses(config))
        names = {Path(item.path).name for item in client.list_artifacts(run.info.run_id, "fold_0")}
        assert any(name.startswith("training_log") for name in names)

        assert run.data.tags["kfp.pipeline_run_id"] == "65dfadfe"
        assert run.data.tags["kfp.mlflow_run_id"] == task_run
        page = f"{address}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        assert client.get_run(task_run).data.tags["medseg.run_url"] == page
        # when the stage has ended, KFP's launcher logs the component's Metrics: once, as we do not
        metrics = [Metric(name, value, 0, 0) for name, value in result.measures.items()]
        client.log_batch(task_run, metrics=metrics)
        for name, value in result.measures.items():
            held = client.get_metric_history(task_run, name)
            assert [item.value for item in held] == [pytest.approx(value)]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_the_console_gets_one_line_an_epoch(trained: Trained) -> None:
    lines = trained.output.splitlines()
    assert len(lines) == 4, lines
    assert "epochs 1 to 3 on cpu" in lines[0]
    assert "[2/3] epoch 2: train loss" in lines[2]
    assert "Anterior" in lines[2]
    assert lines[2].endswith("left")
    log = next(trained.config.fold_folder().glob("training_log*.txt")).read_text()
    assert "Please cite" in log
    assert "Epoch 2" in log


def test_the_folder_is_nnunets(trained: Trained) -> None:
    folder = trained.config.fold_folder()
    assert folder.parent.name == "nnUNetTrainer__nnUNetPlans__tiny"
    content = load_checkpoint(folder / "checkpoint_final.pth")
    assert content["trainer_name"] == "nnUNetTrainer"
    assert content["current_epoch"] == 3
    assert not (folder / "checkpoint_latest.pth").exists()
    for path in ("checkpoint_best.pth", "progress.png", "../plans.json", "../dataset.json"):
        assert (folder / path).is_file()


def test_a_second_run_repeats_nothing(trained: Trained) -> None:
    folder = trained.config.fold_folder()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert train(trained.config) == trained.result
    predict_validation(trained.config)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("same", "lower"), [(0.5, True), (1.1, False)])
def test_validation_measures_whether_bfloat16_does(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, same: float, lower: bool
) -> None:
    monkeypatch.setattr(devices, "cpu_flags", lambda: {"avx512_bf16"})
    monkeypatch.setattr(devices, "SAME", same)
    config = trained.config.model_copy(update={"precision": "auto"})
    with environment(config):
        predictor = FoldNetwork.open(config).predictor
    (network,) = predictor._networks
    assert (network.forward.__name__ == "mixed") is lower  # what use_bfloat16 makes of it


def test_validation(trained: Trained) -> None:
    config = trained.config
    folder = config.fold_folder() / "validation"
    cases = json.loads((config.preprocessed_folder / "splits_final.json").read_text())[0]["val"]
    references = config.preprocessed_folder / "gt_segmentations"
    summary = evaluate_folder(folder, references, config.label_set)
    assert [Path(case["prediction_file"]).name for case in summary["metric_per_case"]] == [
        f"{case}.nii.gz" for case in cases
    ]
    for case in summary["metric_per_case"]:
        assert set(case["metrics"]) == {"1", "2"}
        prediction = sitk.ReadImage(case["prediction_file"])
        reference = sitk.ReadImage(case["reference_file"])
        assert prediction.GetSize() == reference.GetSize()
        mask, truth = (sitk.GetArrayFromImage(image) == 1 for image in (prediction, reference))
        dice = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
        assert case["metrics"]["1"]["Dice"] == pytest.approx(dice)

    # one prediction is lost: only that one is made again; what is of no case of the fold goes
    lost, kept = (folder / f"{case}.nii.gz" for case in cases)
    content, before = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    for stale in ("summary.json", "another.nii.gz", ".medseg/another.json"):
        (folder / stale).write_text("stale")
    predict_validation(config)
    assert lost.read_bytes() == content
    assert kept.stat().st_mtime_ns == before
    assert {path.name for path in folder.iterdir()} == {lost.name, kept.name, ".medseg"}
    assert {path.stem for path in (folder / ".medseg").iterdir()} == set(cases)


def test_nnunets_own_command_predicts_with_the_folder(trained: Trained, tmp_path: Path) -> None:
    config = trained.config
    case = json.loads((config.preprocessed_folder / "splits_final.json").read_text())[0]["val"][0]
    (tmp_path / "in").mkdir()
    shutil.copy(config.raw_folder / "imagesTr" / f"{case}_0000.nii.gz", tmp_path / "in")
    command = Path(sys.executable).with_name("nnUNetv2_predict")
    options = f"-i {tmp_path}/in -o {tmp_path}/out -d 4 -c tiny -f 0 -device cpu -npp 1 -nps 1"
    base = config.nnunet_folder
    subprocess.run(
        [str(command), *options.split()],
        check=True,
        capture_output=True,
        env={
            **os.environ,
            "nnUNet_raw": str(base / "nnUNet_raw_data_base"),
            "nnUNet_preprocessed": str(base / "nnUNet_preprocessed"),
            "nnUNet_results": str(base / "nnUNet_trained_models"),
        },
    )
    theirs, ours = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{case}.nii.gz")))
        for folder in (tmp_path / "out", config.fold_folder() / "validation")
    )
    assert np.mean(theirs == ours) > 0.999


# --- kills ---


def finished(config: TaskConfig) -> int:
    """Epochs of the newest state on the disk; those that are there are whole."""
    files = config.fold_folder().glob("checkpoint_*.pth")
    return max(int(load_checkpoint(path)["current_epoch"]) for path in files)


def test_kills_then_the_same_command(own_root: Path) -> None:
    config = write_config(own_root, configuration="tiny", num_epochs=6, checkpoint_minutes=1e-6)
    process = run_stage(config, "train")
    read_until(process, "epoch 3:")  # while it was trained, the second was written
    process.send_signal(signal.SIGTERM)  # as a pod ends
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert finished(config) >= 2
    before = json.loads((config.fold_folder() / ".medseg" / "mlflow.json").read_text())

    process = run_stage(config, "train")
    read_until(process, "epoch 5:")
    time.sleep(random.random())
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert finished(config) >= 4

    result = train(config)
    assert list(before.values()) == [result.run_id]
    assert result.epochs == 6
    assert len(losses(config)) == 6
    for key in ("train_loss", "Dice_Anterior", "lr"):
        steps = [step for step, _ in curve(config, result.run_id, key)]
        assert steps == [0, 1, 2, 3, 4, 5], key
    assert not list(config.fold_folder().glob(".partial-*"))  # what the kills cut off


def test_sigterm_keeps_the_finished_epochs(own_root: Path, trained: Trained) -> None:
    config = write_config(own_root, configuration="tiny")
    process = run_stage(config, "train")
    read_until(process, "epoch 1:")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    reported = 1 + output.count("train loss")
    saved = [
        load_checkpoint(path)["current_epoch"]
        for name in ("checkpoint_latest.pth", "checkpoint_best.pth")
        if (path := config.fold_folder() / name).is_file()
    ]
    assert max(saved) == reported < 3

    assert train(config).run_id != trained.result.run_id
    # seeded by epoch: the training is the one that nobody disturbed
    assert losses(config) == pytest.approx(losses(trained.config), abs=2e-3)


# --- changed settings ---


def test_what_changed_settings_do(own_root: Path) -> None:
    def config(**fields: Any) -> TaskConfig:
        return write_config(own_root, configuration="tiny", **{"num_epochs": 1, **fields})

    first = train(config())
    assert first.epochs == 1
    longer = train(config(num_epochs=2))  # continue_training is true
    assert (longer.epochs, longer.run_id) == (2, first.run_id)
    kept = train(config(num_epochs=2, initial_lr=0.005))
    assert kept == longer

    anew = train(config(num_epochs=1, initial_lr=0.005, continue_training=False))
    assert anew.epochs == 1
    assert anew.run_id != first.run_id
    (old,) = (config().results_folder / "superseded").iterdir()
    assert load_checkpoint(old / "checkpoint_final.pth")["current_epoch"] == 2  # nothing is lost
    # without continue_training, the same settings are still not trained twice
    assert train(config(num_epochs=1, initial_lr=0.005, continue_training=False)) == anew

    splits = config().preprocessed_folder / "splits_final.json"
    splits.write_text(json.dumps(json.loads(splits.read_text())[::-1]))
    train(config(num_epochs=1, initial_lr=0.005))
    assert len(list((config().results_folder / "superseded").iterdir())) == 2


def test_extra_configs_reach_the_trainer(own_root: Path) -> None:
    from medseg.nnunet import environment
    from medseg.nnunet.trainer import make_trainer

    config = write_config(
        own_root,
        trainer_class_name="nnUNetTrainer_5epochs",
        train_extra_configs={"weight_decay": 1, "probabilistic_oversampling": True},
    )
    with environment(config):
        trainer = make_trainer(config)
    assert trainer.weight_decay == 1.0
    assert trainer.probabilistic_oversampling is True
    assert trainer.num_epochs == 3  # the config sets it
    assert trainer.save_every == 50  # the config does not
    assert type(trainer).__name__ == "nnUNetTrainer_5epochs"
    assert not list(Path(trainer.output_folder).glob("training_log*"))


# --- bad input ---


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train_extra_configs": {"weight_decai": 1e-4}}, "did you mean 'weight_decay'"),
        ({"train_extra_configs": {"weight_decay": "much"}}, "must be of type float, not 'much'"),
        ({"trainer_class_name": "nnUNetTrainr"}, "no trainer 'nnUNetTrainr' .did you mean"),
        ({"fold": 7}, "there is no fold 7; splits_final.json has the folds 0 to 4"),
        ({"fold": 3, "run_validation_only": True}, "fold 3 has no checkpoint_final.pth"),
        ({"configuration": "2d"}, "run plan_and_preprocess first"),
    ],
)
def test_bad_settings(trained: Trained, fields: dict[str, Any], message: str) -> None:
    config = write_config(trained.config.root.path, **{"configuration": "tiny", **fields})
    before = contents(config.root.path)
    with pytest.raises(UserError, match=message):
        train(config)
    assert contents(config.root.path) == before
    assert Manifest(trained.config.fold_folder(), "train").read()["result"] == asdict(
        trained.result
    )


def test_a_loss_that_is_no_number_stops_it(own_root: Path) -> None:
    short = write_config(own_root, configuration="tiny", num_epochs=4)
    with TrainingSession.open(short) as session:
        session.train(epochs=2)
    newest = TrainedFold(short).newest
    good = newest.read_bytes()
    assert load_checkpoint(newest)["current_epoch"] == 2
    wild = write_config(own_root, configuration="tiny", num_epochs=4, initial_lr=1e30)
    with pytest.raises(
        UserError, match=r"loss of epoch 3 is not a number; the state after epoch 2"
    ):
        train(wild)
    assert TrainedFold(short).newest == newest
    assert newest.read_bytes() == good
    assert not (short.fold_folder() / "checkpoint_final.pth").exists()
    assert train(short).epochs == 4


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_memory_that_does_not_suffice(
    own_root: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def step(_trainer: Any, _batch: Any) -> None:
        raise error

    monkeypatch.setattr(nnUNetTrainer, "train_step", step)
    with pytest.raises(UserError, match=r"a batch of \d+ patches of \d+ × \d+ × \d+ voxels: give"):
        train(write_config(own_root, configuration="tiny", num_epochs=1))


def test_run_validation_only_trains_nothing(trained: Trained) -> None:
    config = write_config(
        trained.config.root.path, configuration="tiny", run_validation_only=True, num_epochs=99
    )
    assert train(config) == trained.result


def test_validation_of_an_unfinished_training(trained: Trained) -> None:
    before = contents(trained.config.root.path)
    with pytest.raises(UserError, match=r"fold 2 has no checkpoint_final\.pth"):
        predict_validation(load_config(trained.config.path, trained.config.root, fold=2))
    assert contents(trained.config.root.path) == before


def test_checkpoints_are_read_without_unpickling(trained: Trained, tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return (os.system, (f"touch {tmp_path}/harm",))

    harmful = tmp_path / "harmful.pth"
    torch.save({"network_weights": {}, "x": Harmful()}, harmful)
    with pytest.raises(UserError, match=r"harmful\.pth cannot be read"):
        load_checkpoint(harmful)
    assert not (tmp_path / "harm").exists()

    whole = (trained.config.fold_folder() / "checkpoint_final.pth").read_bytes()
    truncated = tmp_path / "truncated.pth"
    truncated.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"truncated\.pth cannot be read .*truncated"):
        load_checkpoint(truncated)
    with pytest.raises(UserError, match=r"missing\.pth does not exist: train the fold first"):
        load_checkpoint(tmp_path / "missing.pth")


def test_a_full_disk_while_it_trains(
    trained_volume: Volume, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(trained_volume.folder, configuration="tiny", fold=1, num_epochs=2)
    file = "checkpoint_best.pth"  # torch writes it
    with trained_volume.full("train", capsys, free=200 << 10, file=file):
        train(config)
    assert not list(config.fold_folder().glob("checkpoint_*"))
    assert train(config).epochs == 2
    assert len(losses(config)) == 2


def test_a_full_disk_while_it_validates(
    trained_volume: Volume, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(trained_volume.folder, configuration="tiny")
    folder = config.fold_folder() / "validation"
    kept, lost = sorted(folder.glob("*.nii.gz"))
    content, before = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    with trained_volume.full("validate", capsys, file=lost.name):
        predict_validation(config)
    assert not lost.exists()
    predict_validation(config)
    assert lost.read_bytes() == content
    assert kept.stat().st_mtime_ns == before
    with trained_volume.full("validate", capsys):
        evaluate(config)
    assert len(evaluate(config)["metric_per_case"]) == 2


def test_a_full_disk_is_reported_as_such(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import resource

    from medseg.nnunet import environment
    from medseg.nnunet.trainer import make_trainer

    config = write_config(trained.config.root.path, configuration="tiny", fold=4)
    with environment(config):
        trainer = make_trainer(config)
        trainer.initialize()
        target = tmp_path / "checkpoint_latest.pth"
        trainer.save_checkpoint(str(target))
        whole = target.read_bytes()
        # A limit on the size of files stands for the disk: the write fails half-way.
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, hard))
        try:
            with pytest.raises(OSError) as error:
                trainer.save_checkpoint(str(target))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, previous)
    assert error.value.errno == errno.EFBIG
    assert target.read_bytes() == whole  # the checkpoint before is whole
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_latest.pth"]
