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

from medseg.bundle.torchscript import load_packaged
from medseg.config import Labels
from medseg.evaluation import evaluate_folder
from tests.hippocampus import CONFIG, copy_cases, write_project
from tests.pipelines.harness import (
    kill_during,
    medseg,
    modified,
    newest_log,
    partial_files,
    run_pipeline,
)
from tests.volumes import contents

TRAINING, HELD_BACK = 6, 2


@pytest.fixture(scope="module")
def project(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data root with eight cases in the Decathlon format and a config for a short training."""
    root = tmp_path_factory.mktemp("hippocampus")
    names = copy_cases(shared_data, root / "decathlon", TRAINING + HELD_BACK)
    (root / "new").mkdir()
    for name in names[TRAINING:]:
        shutil.copy(root / f"decathlon/imagesTr/{name}.nii.gz", root / "new")
    write_project(root, names[TRAINING:], num_epochs=3, iterations_per_epoch=4, save_every=1)
    yield root
    assert partial_files(root) == []


def cases(project: Path) -> list[str]:
    names = (path.name for path in (project / "decathlon/imagesTr").glob("*.nii.gz"))
    return sorted(name.removesuffix(".nii.gz") for name in names)


def fold_folder(project: Path, plans: str = "nnUNetPlans") -> Path:
    (folder,) = project.glob(f"nnUNet/nnUNet_trained_models/*/*__{plans}__*/fold_0")
    return folder


def test_nifti_to_dicom(project: Path) -> None:
    arguments = {"input_folder": "decathlon", "output": "DICOM/Task04", "config_file_path": CONFIG}
    third = f"writing {cases(project)[2]}"
    kill_during("nifti_to_dicom", third, "nifti_to_dicom", project, **arguments)
    before = modified(project / "DICOM", "*.dcm")
    assert {Path(path).parents[1].name for path in before} == set(cases(project)[:2])
    run_pipeline("nifti_to_dicom", project, **arguments)
    after = modified(project / "DICOM", "*.dcm")
    assert before.items() < after.items()  # nothing that was done is repeated


def test_dicom_to_nifti(project: Path) -> None:
    arguments = {"studies": "file:///mnt/Data/DICOM/Task04", "config_file_path": CONFIG}
    fourth = f"writing {cases(project)[3]}_image.nii.gz"
    kill_during("list_studies", "writing shards-*.json", "dicom_to_nifti", project, **arguments)
    assert not (project / "NIFTI").exists()
    kill_during("convert_studies", fourth, "dicom_to_nifti", project, **arguments)
    before = modified(project / "NIFTI", "*.nii.gz")
    assert len(before) == 2 * 3
    kill_during("collect_dataset", "writing dataset.json", "dicom_to_nifti", project, **arguments)
    assert not (project / "NIFTI/Task04/dataset.json").exists()
    converted = modified(project / "NIFTI", "*.nii.gz")
    run_pipeline("dicom_to_nifti", project, **arguments)
    after = modified(project / "NIFTI", "*.nii.gz")
    assert len(after) == 2 * (TRAINING + HELD_BACK)
    assert before.items() < after.items()
    assert converted == after
    content = json.loads((project / "NIFTI/Task04/dataset.json").read_text())
    assert content["cases"] == cases(project)
    for original in sorted((project / "decathlon" / "labelsTr").glob("*.nii.gz")):
        case = original.name.removesuffix(".nii.gz")
        label = nibabel.load(original)
        back = nibabel.load(project / "NIFTI/Task04" / case / f"{case}_label.nii.gz")
        same = nibabel.as_closest_canonical
        assert np.array_equal(same(label).get_fdata(), same(back).get_fdata())
        assert np.allclose(same(label).affine, same(back).affine, atol=1e-3)


def test_plan_and_preprocess(project: Path) -> None:
    def kill(stage: str, moment: str) -> None:
        kill_during(stage, moment, "plan_and_preprocess", project, config_file_path=CONFIG)

    third = cases(project)[2]
    raw = project / "nnUNet/nnUNet_raw_data_base/Dataset004_Task04_Hippocampus"
    kill("prepare_dataset", f"writing case-{third}.json")
    checked = modified(raw, "case-*.json")
    assert 1 <= len(checked) < TRAINING
    kill("plan_and_preprocess", "progress")  # while it takes the fingerprint
    assert checked.items() < modified(raw, "case-*.json").items()
    checked = modified(raw, "case-*.json")
    preprocessed = project / "nnUNet/nnUNet_preprocessed/Dataset004_Task04_Hippocampus"
    assert not list(preprocessed.rglob("*.b2nd"))
    kill("plan_and_preprocess", f"writing {third}.json")
    done = modified(preprocessed / "nnUNetPlans_3d_fullres", "*.json")
    assert 1 <= len(done) < TRAINING
    kill("prepare_bundle", "writing metadata.json")
    records = modified(preprocessed / "nnUNetPlans_3d_fullres", "*.json")
    before = modified(preprocessed, "*.b2nd")
    run_pipeline("plan_and_preprocess", project, config_file_path=CONFIG)
    assert modified(raw, "case-*.json") == checked
    assert done.items() < records.items()
    assert len(before) == 2 * TRAINING
    assert modified(preprocessed / "nnUNetPlans_3d_fullres", "*.json") == records
    assert modified(preprocessed, "*.b2nd") == before
    assert (project / "MONet_Bundle/Task04/MONetBundle/configs/metadata.json").is_file()


def test_train(project: Path) -> None:
    kill_during("train", "progress 2", "train", project, config_file_path=CONFIG)
    assert not (fold_folder(project) / "checkpoint_final.pth").exists()
    kill_during("train", "writing model.pt", "train", project, config_file_path=CONFIG)
    assert re.search(r"epochs 3 to 3 on \w+ in [\w ]+, resumed from check", newest_log(project))
    before = modified(fold_folder(project), "checkpoint_final.pth")
    models = project / "MONet_Bundle/Task04/MONetBundle/models"
    assert not (models / "fold_0/model.pt").exists()
    output = run_pipeline("train", project, config_file_path=CONFIG)
    assert "fold 0 is trained already" in output
    assert (models / "fold_0/model.pt").is_file()
    assert (models / "fold_0/checkpoint_epoch=3.pt").is_file()
    assert len(list((models / "fold_0").glob("checkpoint_key_metric=*.pt"))) == 1
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
    (splits,) = project.glob("nnUNet/nnUNet_preprocessed/*/splits_final.json")
    first, second = json.loads(splits.read_text())[0]["val"]
    folder = fold_folder(project) / "validation"
    kill_during(
        "validate", f"writing {second}.nii.gz", "validate", project, config_file_path=CONFIG
    )
    before = modified(folder / ".medseg", f"{first}.json")
    kill_during("validate", "writing summary.json", "validate", project, config_file_path=CONFIG)
    assert not (folder / "summary.json").exists()
    assert before.items() <= modified(folder / ".medseg", f"{first}.json").items()
    before = modified(folder, "*.nii.gz")
    assert [Path(path).name for path in before] == [f"{first}.nii.gz", f"{second}.nii.gz"]
    output = run_pipeline("validate", project, config_file_path=CONFIG)
    assert modified(folder, "*.nii.gz") == before
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["mean"]) == {"1", "2"}
    assert len(summary["metric_per_case"]) == 2
    for case in summary["metric_per_case"]:
        assert {"Dice", "IoU", "ASD", "HD95"} <= set(case["metrics"]["1"])
    report = Path(re.search(r"report: +(/.*report\.html)", output)[1])  # type: ignore[index]
    assert "<html" in report.read_text()[:500]


def test_convert_pt_to_ts(project: Path) -> None:
    models = project / "MONet_Bundle/Task04/MONetBundle/models/fold_0"
    name = "convert_pt_to_ts"
    kill_during(name, "writing model.ts", name, project, config_file_path=CONFIG)
    assert not (models / "model.ts").exists()
    run_pipeline(name, project, config_file_path=CONFIG)
    assert (models / "model.ts").is_file()


def test_segment_and_report(project: Path) -> None:
    arguments = {
        "model": "MONet_Bundle/Task04/MONetBundle/models/fold_0/model.ts",
        "input": "new",
        "output": "SEG/Task04",
    }
    first, second = (f"{case}.nii.gz" for case in cases(project)[TRAINING:])
    kill_during("segment", f"writing {second}", "segment", project, **arguments)
    before = modified(project / "SEG/Task04", "*.nii.gz")
    assert [Path(path).name for path in before] == [first]
    run_pipeline("segment", project, **arguments)
    after = modified(project / "SEG/Task04", "*.nii.gz")
    assert [Path(path).name for path in after] == [first, second]
    assert before.items() < after.items()
    before = modified(project / "reports", "*.html")
    kill_during("report", "writing report.html", "report", project, config_file_path=CONFIG)
    assert modified(project / "reports", "*.html") == before
    run_pipeline("report", project, config_file_path=CONFIG)
    assert len(modified(project / "reports", "*.html")) == len(before) + 1


def test_lifecycle_repeats_nothing_that_is_done(project: Path) -> None:
    arguments = {"studies": "file:///mnt/Data/DICOM/Task04", "config_file_path": CONFIG}
    first, second = (f"{case}.nii.gz" for case in cases(project)[TRAINING:])
    kill_during("test_model", f"writing {second}", "lifecycle", project, **arguments)
    before = {
        pattern: modified(project, pattern)
        for pattern in ("*_label.nii.gz", "*.b2nd", "checkpoint_final.pth", "model.ts")
    }
    before[first] = modified(fold_folder(project) / "test", first)
    run_pipeline("lifecycle", project, **arguments)
    for pattern, times in before.items():
        assert times
        assert times.items() <= modified(project, pattern).items(), pattern
    summary = json.loads((fold_folder(project) / "test/summary.json").read_text())
    assert len(summary["metric_per_case"]) == HELD_BACK


def test_finetune(project: Path) -> None:
    """From the promoted model on the same cases, which leaves what was trained before alone."""
    models = project / "MONet_Bundle/Task04/MONetBundle/models"
    arguments = {
        "config_file_path": CONFIG,
        "weights": "MONet_Bundle/Task04/MONetBundle/models/model.ts",
        "epochs": 3,
    }
    before = modified(fold_folder(project), "*")
    kill_during("finetune", "progress 1", "finetune", project, **arguments)
    output = run_pipeline("finetune", project, **arguments)
    log = max((project / "runs").glob("finetune-*/log.txt")).read_text()
    assert re.search(r"epochs \d to 3 on \w+ in [\w ]+, resumed from check", log)
    assert modified(fold_folder(project), "*") == before
    folder = fold_folder(project, "PretrainedPlans")
    assert len(json.loads((folder / "validation/summary.json").read_text())["metric_per_case"]) == 2
    summary = json.loads((folder / "test/summary.json").read_text())
    assert len(summary["metric_per_case"]) == HELD_BACK
    metadata = load_packaged(models / "fold_0/model.ts").metadata
    assert len(metadata["provenance"]["pretrained_weights"]) == 64
    assert len(json.loads((models / "promotions.json").read_text())) == 2
    report = Path(re.search(r"report: +(/.*report\.html)", output)[1])  # type: ignore[index]
    assert "Started from" in report.read_text()


@pytest.mark.slow
def test_fifteen_minutes_of_training_reach_dice_075(project: Path, real_data: Path) -> None:
    """Mean validation Dice of at least 0.75 after at most 15 minutes of training on two cores.

    The packaged model then segments every case as well as that.
    """
    shutil.copytree(
        real_data / "Task04_Hippocampus",
        project / "decathlon",
        dirs_exist_ok=True,
    )
    config = yaml.safe_load((project / CONFIG).read_text())
    config |= {
        "data_dir": "decathlon",
        "dataset_format": "decathlon",
        "dataset_name_or_id": "5",
        "experiment_name": "Task04_full",
        "bundle_config": {"bundle_root": "MONet_Bundle/Task04_full"},
        "test_cases": [],
        "num_epochs": 28,
        "iterations_per_epoch": 25,
    }
    (project / "configs/full.yaml").write_text(yaml.safe_dump(config))
    for name in ("plan_and_preprocess", "train", "validate", "convert_pt_to_ts"):
        output = run_pipeline(name, project, config_file_path="configs/full.yaml")
        if name == "train":
            seconds = float(re.search(r"train: done in ([\d.]+) s", output)[1])  # type: ignore[index]
            assert seconds <= 15 * 60
    (summary,) = project.glob(
        "nnUNet/nnUNet_trained_models/Dataset005_Task04_full/*/fold_0/validation/summary.json"
    )
    assert json.loads(summary.read_text())["foreground_mean"]["Dice"] >= 0.75
    run_pipeline(
        "segment",
        project,
        model="MONet_Bundle/Task04_full/models/fold_0/model.ts",
        input="decathlon/imagesTr",
        output="SEG/Task04_full",
    )
    segmented = evaluate_folder(
        project / "SEG/Task04_full", project / "decathlon/labelsTr", Labels.of(config["labels"])
    )
    assert len(segmented["metric_per_case"]) == len(cases(project))
    assert segmented["foreground_mean"]["Dice"] >= 0.75


def test_errors_are_one_sentence_and_status_1(project: Path) -> None:
    before = contents(project)
    done = medseg("run", "train", "--data-root", project, "-p", "config_file_path=configs/x.yaml")
    assert done.returncode == 1
    assert "error: train: the config" in done.stdout
    assert "configs/x.yaml does not exist: check config_file_path." in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert contents(project) == before
