"""The main job on real cases, through ``medseg run``, with a kill in the middle of every stage.

The tests of this module build on each other, in the order they stand in: they walk one project
from NIFTI over DICOM to a report.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml

from tests.pipelines.harness import kill_during, medseg, partial_files, run_pipeline

CONFIG = "configs/Task04_config.yaml"
TRAINING, HELD_BACK = 6, 2


@pytest.fixture(scope="module")
def project(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data root with eight cases in the Decathlon format and a config for a short training."""
    root = tmp_path_factory.mktemp("hippocampus")
    source = shared_data / "Task04_Hippocampus"
    names = sorted(path.name for path in (source / "imagesTr").glob("*.nii.gz"))
    names = names[: TRAINING + HELD_BACK]
    for part in ("imagesTr", "labelsTr"):
        (root / "decathlon" / part).mkdir(parents=True)
        for name in names:
            shutil.copyfile(source / part / name, root / "decathlon" / part / name)
    shutil.copyfile(source / "dataset.json", root / "decathlon" / "dataset.json")
    (root / "new").mkdir()
    for name in names[TRAINING:]:
        shutil.copyfile(source / "imagesTr" / name, root / "new" / name)
    (root / "configs").mkdir()
    (root / CONFIG).write_text(
        yaml.safe_dump(
            {
                "data_dir": "/mnt/Data/NIFTI/Task04",
                "dataset_name_or_id": "4",
                "experiment_name": "Task04_Hippocampus",
                "modality_list": ["MR"],
                "labels": {"background": 0, "Anterior": 1, "Posterior": 2},
                "test_cases": [name.removesuffix(".nii.gz") for name in names[TRAINING:]],
                "bundle_config": {"bundle_root": "MONet_Bundle/Task04/MONetBundle"},
                "num_epochs": 3,
                "iterations_per_epoch": 4,
                "val_iterations_per_epoch": 1,
                "save_every": 1,
            }
        )
    )
    yield root
    assert partial_files(root) == []


def fold_folder(project: Path) -> Path:
    return next(project.glob("nnUNet/nnUNet_trained_models/*/*/fold_0"))


def modified(folder: Path, pattern: str) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob(pattern))}


def test_nifti_to_dicom(project: Path) -> None:
    arguments = {"input_folder": "decathlon", "output": "DICOM/Task04", "config_file_path": CONFIG}
    kill_during("nifti_to_dicom", "progress", "nifti_to_dicom", project, **arguments)
    before = modified(project / "DICOM", "*.dcm")
    run_pipeline("nifti_to_dicom", project, **arguments)
    after = modified(project / "DICOM", "*.dcm")
    assert before
    assert before.items() <= after.items()  # nothing that was done is repeated
    run_pipeline("nifti_to_dicom", project, **arguments)
    assert modified(project / "DICOM", "*.dcm") == after


def test_dicom_to_nifti(project: Path) -> None:
    arguments = {"studies": "file:///mnt/Data/DICOM/Task04", "config_file_path": CONFIG}
    for stage, event in (
        ("list_studies", "start"),
        ("convert_studies", "progress"),
        ("collect_dataset", "start"),
    ):
        kill_during(stage, event, "dicom_to_nifti", project, **arguments)
    before = modified(project / "NIFTI", "*.nii.gz")
    run_pipeline("dicom_to_nifti", project, **arguments)
    after = modified(project / "NIFTI", "*.nii.gz")
    assert len(after) == 2 * (TRAINING + HELD_BACK)
    assert before == after
    for original in sorted((project / "decathlon" / "labelsTr").glob("*.nii.gz")):
        case = original.name.removesuffix(".nii.gz")
        label = nibabel.load(original)
        back = nibabel.load(project / "NIFTI/Task04" / case / f"{case}_label.nii.gz")
        same = nibabel.as_closest_canonical
        assert np.array_equal(same(label).get_fdata(), same(back).get_fdata())
        assert np.allclose(same(label).affine, same(back).affine, atol=1e-3)


def test_plan_and_preprocess(project: Path) -> None:
    for stage, event in (
        ("prepare_dataset", "start"),
        ("plan_and_preprocess", "progress"),
        ("prepare_bundle", "start"),
    ):
        kill_during(stage, event, "plan_and_preprocess", project, config_file_path=CONFIG)
    run_pipeline("plan_and_preprocess", project, config_file_path=CONFIG)
    preprocessed = project / "nnUNet/nnUNet_preprocessed/Dataset004_Task04_Hippocampus"
    assert len(list(preprocessed.glob("*3d_fullres/*.b2nd"))) == 2 * TRAINING
    before = modified(preprocessed, "*.b2nd")
    run_pipeline("plan_and_preprocess", project, config_file_path=CONFIG)
    assert modified(preprocessed, "*.b2nd") == before


def test_train(project: Path) -> None:
    kill_during("train", "progress", "train", project, config_file_path=CONFIG)
    output = run_pipeline("train", project, config_file_path=CONFIG)
    assert re.search(r"train: .*epoch", output)
    assert (fold_folder(project) / "checkpoint_final.pth").is_file()
    models = project / "MONet_Bundle/Task04/MONetBundle/models"
    assert (models / "fold_0/checkpoint_epoch=3.pt").is_file()
    assert len(list((models / "fold_0").glob("checkpoint_key_metric=*.pt"))) == 1
    before = modified(fold_folder(project), "checkpoint_final.pth")
    run_pipeline("train", project, config_file_path=CONFIG)
    assert modified(fold_folder(project), "checkpoint_final.pth") == before


def test_tracking_has_one_run_with_every_epoch_once(project: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("Task04_Hippocampus")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    for name in ("train_loss", "val_loss", "lr", "Dice_Anterior", "Dice_Posterior"):
        history = client.get_metric_history(run.info.run_id, name)
        assert sorted({metric.step for metric in history}) == [0, 1, 2], name
        assert len(history) == 3, name
    assert run.data.params["num_epochs"] == "3"
    assert client.list_artifacts(run.info.run_id)


def test_validate(project: Path) -> None:
    kill_during("validate", "start", "validate", project, config_file_path=CONFIG)
    output = run_pipeline("validate", project, config_file_path=CONFIG)
    summary = json.loads((fold_folder(project) / "validation/summary.json").read_text())
    assert set(summary["mean"]) == {"1", "2"}
    for case in summary["metric_per_case"]:
        assert {"Dice", "IoU", "ASD", "HD95"} <= set(case["metrics"]["1"])
    report = Path(re.search(r"report: +(/.*report\.html)", output)[1])  # type: ignore[index]
    assert "<html" in report.read_text()[:500]


def test_convert_pt_to_ts(project: Path) -> None:
    kill_during("convert_pt_to_ts", "start", "convert_pt_to_ts", project, config_file_path=CONFIG)
    run_pipeline("convert_pt_to_ts", project, config_file_path=CONFIG)
    assert (project / "MONet_Bundle/Task04/MONetBundle/models/fold_0/model.ts").is_file()


def test_segment_and_report(project: Path) -> None:
    arguments = {
        "model": "MONet_Bundle/Task04/MONetBundle/models/fold_0/model.ts",
        "input": "new",
        "output": "SEG/Task04",
    }
    kill_during("segment", "progress", "segment", project, **arguments)
    run_pipeline("segment", project, **arguments)
    assert len(list((project / "SEG/Task04").glob("*.nii.gz"))) == HELD_BACK
    kill_during("report", "start", "report", project, config_file_path=CONFIG)
    run_pipeline("report", project, config_file_path=CONFIG)


def test_lifecycle_repeats_nothing_that_is_done(project: Path) -> None:
    arguments = {"studies": "file:///mnt/Data/DICOM/Task04", "config_file_path": CONFIG}
    kill_during("test_model", "start", "lifecycle", project, **arguments)
    before = {
        pattern: modified(project, pattern)
        for pattern in ("*_label.nii.gz", "*.b2nd", "checkpoint_final.pth", "model.ts")
    }
    run_pipeline("lifecycle", project, **arguments)
    for pattern, times in before.items():
        assert times
        assert times.items() <= modified(project, pattern).items(), pattern
    summary = json.loads((fold_folder(project) / "test/summary.json").read_text())
    assert len(summary["metric_per_case"]) == HELD_BACK


@pytest.mark.slow
def test_fifteen_minutes_of_training_reach_dice_075(project: Path) -> None:
    """Mean validation Dice of at least 0.75 after at most 15 minutes of training on two cores."""
    shutil.copytree(
        Path(__file__).parents[3] / "shared/data/Task04_Hippocampus",
        project / "decathlon",
        dirs_exist_ok=True,
    )
    config = yaml.safe_load((project / CONFIG).read_text())
    config |= {
        "data_dir": "decathlon",
        "dataset_format": "decathlon",
        "dataset_name_or_id": "5",
        "experiment_name": "Task04_full",
        "test_cases": [],
        "num_epochs": 28,
        "iterations_per_epoch": 25,
    }
    (project / "configs/full.yaml").write_text(yaml.safe_dump(config))
    for name in ("plan_and_preprocess", "train", "validate"):
        output = run_pipeline(name, project, config_file_path="configs/full.yaml")
        if name == "train":
            seconds = float(re.search(r"train: done in ([\d.]+) s", output)[1])  # type: ignore[index]
            assert seconds <= 15 * 60
    (summary,) = project.glob(
        "nnUNet/nnUNet_trained_models/Dataset005_Task04_full/*/fold_0/validation/summary.json"
    )
    assert json.loads(summary.read_text())["foreground_mean"]["Dice"] >= 0.75


def test_errors_are_one_sentence_and_status_1(project: Path) -> None:
    done = medseg("run", "train", "--data-root", project, "-p", "config_file_path=configs/x.yaml")
    assert done.returncode == 1
    assert "error: train: the config" in done.stdout
    assert "configs/x.yaml does not exist: check config_file_path." in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
