"""``lifecycle`` as a recurring run: retraining on enough new cases, promoting what is not worse.

Its own two stages are killed in the middle; ``test_hippocampus`` does so with the others.

The tests build on each other, like the nights of one project.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from medseg.tracking import fetch_model
from tests.hippocampus import CONFIG, copy_cases, write_project
from tests.pipelines.harness import kill_during, modified, partial_files, run_pipeline

RUN = {
    "studies": "file:///mnt/Data/DICOM/Task04",
    "config_file_path": CONFIG,
    "min_new_cases": 2,
}
MODELS = "MONet_Bundle/Task04/models"


@pytest.fixture(scope="module")
def project(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nine cases as DICOM, of which seven have come in: five to train on, two held back."""
    root = tmp_path_factory.mktemp("recurring")
    names = copy_cases(shared_data, root / "decathlon", 9)
    write_project(
        root,
        names[5:7],
        experiment_name="Task04",
        bundle_config={"bundle_root": "MONet_Bundle/Task04"},
        num_epochs=1,
        iterations_per_epoch=2,
        num_processes=1,
    )
    run_pipeline(
        "nifti_to_dicom", root, input_folder="decathlon", output="all", config_file_path=CONFIG
    )
    (root / "DICOM/Task04").mkdir(parents=True)
    for name in names[:7]:
        arrive(root, name)
    yield root
    assert partial_files(root) == []


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


def converted(root: Path) -> dict[str, int]:
    """The files of the NIFTI dataset's cases, and when they were written."""
    return {str(p): p.stat().st_mtime_ns for p in (root / "NIFTI/Task04").glob("*/*.nii.gz")}


def test_the_first_run_trains_and_promotes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """... though it is killed while it decides, and while it promotes."""
    models = project / MODELS
    # the decision writes nothing: its work is to read the cases
    case = "reading hippocampus_*_label.nii.gz"
    kill_during("decide_retraining", case, "lifecycle", project, **RUN)
    converted = modified(project / "NIFTI", "*.nii.gz")
    assert len(converted) == 2 * 7
    assert not (project / "nnUNet").exists()
    kill_during("promote", "writing model.ts", "lifecycle", project, **RUN)
    assert not (models / "model.ts").exists()
    done = {
        pattern: modified(project, pattern)
        for pattern in ("*.b2nd", "checkpoint_final.pth", "model.pt", "fold_0/model.ts")
    }
    measured = modified(project / "nnUNet/nnUNet_trained_models", "test/*.nii.gz")
    assert len(measured) == 2

    output = run_pipeline("lifecycle", project, **RUN)
    assert "training: no model has been judged yet" in output
    assert modified(project / "NIFTI", "*.nii.gz") == converted
    for pattern, times in done.items():
        assert times
        assert modified(project, pattern) == times, pattern
    assert modified(project / "nnUNet/nnUNet_trained_models", "test/*.nii.gz") == measured
    (first,) = promotions(project)
    assert first["promoted"]
    assert first["reason"] == "there was no model before"
    assert len(first["cases"]) == 5
    model = (project / MODELS / "model.ts").read_bytes()
    assert model == (project / MODELS / "fold_0/model.ts").read_bytes()
    monkeypatch.setenv("MEDSEG_DATA_ROOT", str(project))
    assert fetch_model("models:/Task04@champion").read_bytes() == model


def test_too_few_new_cases_train_nothing(project: Path) -> None:
    before, old = checkpoint(project), converted(project)
    assert len(old) == 14
    arrive(project, waiting(project)[0])
    output = run_pipeline("lifecycle", project, **RUN)
    assert old.items() <= converted(project).items(), "old studies are not converted again"
    assert len(converted(project)) == 16
    assert "nothing to train: 1 new cases, 2 needed" in output
    assert "report: done" in output
    assert "train: started" not in output
    assert checkpoint(project) == before
    assert len(promotions(project)) == 1


def test_a_worse_model_is_not_promoted(project: Path) -> None:
    present = (project / MODELS / "model.ts").read_bytes()
    arrive(project, waiting(project)[0])
    run_pipeline("dicom_to_nifti", project, studies=RUN["studies"], config_file_path=CONFIG)
    for name in ("plan_and_preprocess", "train"):
        run_pipeline(name, project, config_file_path=CONFIG)
    blind(project / MODELS / "fold_0/model.pt")
    output = run_pipeline("lifecycle", project, **RUN)
    assert "training: 2 new cases, 2 needed" in output
    first, second = promotions(project)
    assert len(second["cases"]) == 7
    assert second["present"]["sha256"] == first["candidate"]["sha256"]
    assert second["present"]["Dice"] == first["candidate"]["Dice"]
    assert second["candidate"]["Dice"] < second["present"]["Dice"]
    assert not second["promoted"]
    assert (project / MODELS / "model.ts").read_bytes() == present
    assert (project / MODELS / "fold_0/model.ts").read_bytes() != present


def test_a_judged_night_is_not_judged_again(project: Path) -> None:
    old = converted(project)
    output = run_pipeline("lifecycle", project, **RUN)
    assert "nothing to train: 0 new cases, 2 needed" in output
    assert len(old) == 18
    assert converted(project) == old
    assert len(promotions(project)) == 2


def blind(checkpoint: Path) -> None:
    """Makes a trained network see background everywhere, so that it is surely the worse one."""
    content = torch.load(checkpoint, weights_only=True)
    for name, values in content["network_weights"].items():
        if "seg_layers" in name:
            values.zero_()
            if name.endswith("bias"):
                values[0] = 100
    torch.save(content, checkpoint)
