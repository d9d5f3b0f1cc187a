"""``lifecycle`` as a recurring run: retraining on enough new cases, promoting what is not worse.

The tests build on each other, like the nights of one project.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pipelines.harness import run_pipeline

CONFIG = "configs/Task04_config.yaml"
RUN = {
    "studies": "file:///mnt/Data/DICOM/Task04",
    "config_file_path": CONFIG,
    "min_new_cases": 2,
}
MODELS = "MONet_Bundle/Task04/models"


@pytest.fixture(scope="module")
def project(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine cases as DICOM, of which seven have come in: five to train on, two held back."""
    root = tmp_path_factory.mktemp("recurring")
    source = shared_data / "Task04_Hippocampus"
    names = sorted(path.name for path in (source / "imagesTr").glob("*.nii.gz"))[:9]
    for part in ("imagesTr", "labelsTr"):
        (root / "decathlon" / part).mkdir(parents=True)
        for name in names:
            shutil.copyfile(source / part / name, root / "decathlon" / part / name)
    shutil.copyfile(source / "dataset.json", root / "decathlon" / "dataset.json")
    (root / "configs").mkdir()
    (root / CONFIG).write_text(
        yaml.safe_dump(
            {
                "data_dir": "NIFTI/Task04",
                "dataset_name_or_id": "4",
                "experiment_name": "Task04",
                "modality_list": ["MR"],
                "labels": {"background": 0, "Anterior": 1, "Posterior": 2},
                "test_cases": [name.removesuffix(".nii.gz") for name in names[5:7]],
                "bundle_config": {"bundle_root": "MONet_Bundle/Task04"},
                "num_epochs": 1,
                "iterations_per_epoch": 2,
                "val_iterations_per_epoch": 1,
            }
        )
    )
    run_pipeline(
        "nifti_to_dicom", root, input_folder="decathlon", output="all", config_file_path=CONFIG
    )
    (root / "DICOM/Task04").mkdir(parents=True)
    for name in names[:7]:
        arrive(root, name.removesuffix(".nii.gz"))
    return root


def arrive(root: Path, case: str) -> None:
    """A study comes in."""
    shutil.move(root / "all" / case, root / "DICOM/Task04" / case)


def waiting(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "all").iterdir() if path.name[0] != ".")


def promotions(root: Path) -> list[dict[str, Any]]:
    return list(json.loads((root / MODELS / "promotions.json").read_text()))


def checkpoint(root: Path) -> int:
    (path,) = root.glob("nnUNet/nnUNet_trained_models/*/*/fold_0/checkpoint_final.pth")
    return path.stat().st_mtime_ns


def test_the_first_run_trains_and_promotes(project: Path) -> None:
    output = run_pipeline("lifecycle", project, **RUN)
    assert "training: no model has been judged yet" in output
    (first,) = promotions(project)
    assert first["promoted"]
    assert first["reason"] == "there was no model before"
    assert len(first["cases"]) == 5
    assert (project / MODELS / "model.ts").read_bytes() == (
        project / MODELS / "fold_0/model.ts"
    ).read_bytes()


def test_too_few_new_cases_train_nothing(project: Path) -> None:
    before = checkpoint(project)
    output = run_pipeline("lifecycle", project, **RUN)
    assert "nothing to train: 0 new cases, 2 needed" in output
    arrive(project, waiting(project)[0])
    output = run_pipeline("lifecycle", project, **RUN)
    assert "nothing to train: 1 new cases, 2 needed" in output
    assert "report: done" in output
    assert "train: started" not in output
    assert checkpoint(project) == before
    assert len(promotions(project)) == 1


def test_a_worse_model_is_not_promoted(project: Path) -> None:
    present = (project / MODELS / "model.ts").read_bytes()
    better_present(project)
    arrive(project, waiting(project)[0])
    output = run_pipeline("lifecycle", project, **RUN)
    assert "training: 2 new cases, 2 needed" in output
    second = promotions(project)[1]
    assert len(second["cases"]) == 7
    assert second["candidate"]["Dice"] < second["present"]["Dice"]
    assert not second["promoted"]
    assert (project / MODELS / "model.ts").read_bytes() != present  # the better one, still there
    assert second["present"]["sha256"] != promotions(project)[0]["candidate"]["sha256"]


def test_a_judged_night_is_not_judged_again(project: Path) -> None:
    output = run_pipeline("lifecycle", project, **RUN)
    assert "nothing to train: 0 new cases, 2 needed" in output
    assert len(promotions(project)) == 2


def better_present(root: Path) -> None:
    """Trains a model that is better than two steps can make one, and makes it the present one."""
    config = yaml.safe_load((root / CONFIG).read_text())
    config |= {
        "dataset_name_or_id": "5",
        "experiment_name": "Better",
        "bundle_config": {"bundle_root": "MONet_Bundle/Better"},
        "num_epochs": 2,
        "iterations_per_epoch": 30,
    }
    (root / "configs/better.yaml").write_text(yaml.safe_dump(config))
    for name in ("plan_and_preprocess", "train", "convert_pt_to_ts"):
        run_pipeline(name, root, config_file_path="configs/better.yaml")
    shutil.copyfile(root / "MONet_Bundle/Better/models/fold_0/model.ts", root / MODELS / "model.ts")
