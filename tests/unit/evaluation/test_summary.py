"""The summaries: nnU-Net's schema, valid JSON, written once, no case lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medseg.config import TaskConfig
from medseg.evaluation import evaluate, evaluate_folder, kfp_metrics
from medseg.evaluation import test_model as run_test_model
from medseg.imaging import read_nifti, write_nifti
from medseg.project import CasesFailedError, UserError
from medseg.tracking import open_run
from medseg.tracking.store import connect
from tests.volumes import contents

SCHEMA = {"Dice", "IoU", "FN", "FP", "TN", "TP", "n_pred", "n_ref", "ASD", "HD95"}


def strict(path: Path) -> dict:
    """Parses JSON as the standard has it, without NaN."""

    def refuse(token: str) -> None:
        raise AssertionError(f"{token} in {path}")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_evaluate_adds_distances_and_keeps_nnunets_numbers(finished: TaskConfig) -> None:
    path = finished.fold_folder() / "validation" / "summary.json"
    before = json.loads(path.read_text())
    summary = evaluate(finished)
    assert strict(path) == summary
    for old, new in zip(before["metric_per_case"], summary["metric_per_case"], strict=True):
        assert set(new["metrics"]["1"]) == SCHEMA
        assert old["metrics"]["1"].items() <= new["metrics"]["1"].items()
        assert old["prediction_file"] == new["prediction_file"]
    assert before["mean"]["1"].items() <= summary["mean"]["1"].items()
    assert before["foreground_mean"].items() <= summary["foreground_mean"].items()
    each = [entry["metrics"]["1"]["HD95"] for entry in summary["metric_per_case"]]
    assert each[0] == 0 and each[-1] > 0
    assert summary["mean"]["1"]["HD95"] == pytest.approx(np.mean(each))
    assert summary["labels"] == {"1": "spleen"}


def test_evaluate_twice_writes_once(finished: TaskConfig) -> None:
    path = finished.fold_folder() / "validation" / "summary.json"
    first = evaluate(finished)
    written = path.stat().st_mtime_ns
    assert evaluate(finished) == first
    assert path.stat().st_mtime_ns == written
    case = next(path.parent.glob("*.nii.gz"))
    label = read_nifti(case)
    write_nifti(np.roll(label.array, 3, axis=0), label.affine, case)
    again = evaluate(finished)
    assert again["mean"]["1"]["HD95"] > first["mean"]["1"]["HD95"]


def test_evaluate_reports_to_the_folds_run(finished: TaskConfig) -> None:
    with open_run(finished) as tracker:
        run_id = tracker.run_id
    summary = evaluate(finished)
    client, _ = connect(finished)
    metrics = client.get_run(run_id).data.metrics
    assert metrics["validation/Dice_spleen"] == pytest.approx(summary["mean"]["1"]["Dice"])
    assert metrics["validation/HD95_spleen_mm"] == pytest.approx(summary["mean"]["1"]["HD95"])
    assert [item.path for item in client.list_artifacts(run_id, "validation")] == [
        "validation/summary.json"
    ]


def test_a_case_without_the_structure_is_counted(finished: TaskConfig) -> None:
    folder = finished.fold_folder() / "validation"
    first = sorted(folder.glob("*.nii.gz"))[0]
    label = read_nifti(first)
    write_nifti(np.zeros_like(label.array), label.affine, first)
    summary = evaluate(finished)
    assert summary["metric_per_case"][0]["metrics"]["1"]["HD95"] is None
    assert summary["mean"]["1"]["undefined_distances"] == 1
    assert summary["mean"]["1"]["HD95"] > 0  # of the other cases
    strict(folder / "summary.json")


def test_nnunets_nan_becomes_null(finished: TaskConfig) -> None:
    path = finished.fold_folder() / "validation" / "summary.json"
    content = json.loads(path.read_text())
    content["metric_per_case"][0]["metrics"]["1"]["Dice"] = float("nan")
    path.write_text(json.dumps(content))
    assert evaluate(finished)["metric_per_case"][0]["metrics"]["1"]["Dice"] is None
    strict(path)


def test_one_bad_case_is_named_and_the_others_are_kept(finished: TaskConfig) -> None:
    folder = finished.fold_folder() / "validation"
    bad = sorted(folder.glob("*.nii.gz"))[1]
    label = read_nifti(bad)
    write_nifti(label.array, label.affine @ np.diag([1, 1, 1.2, 1]), bad)
    with pytest.raises(CasesFailedError, match="1 of 3 cases failed") as caught:
        evaluate(finished)
    message = str(caught.value)
    assert str(bad) in message and "different geometry" in message and "gt_segmentations" in message
    values = [
        entry["metrics"]["1"]["ASD"] for entry in strict(folder / "summary.json")["metric_per_case"]
    ]
    assert values[1] is None and values[0] is not None and values[2] is not None


def test_no_validation_yet(finished: TaskConfig) -> None:
    path = finished.fold_folder() / "validation" / "summary.json"
    path.write_text("[]")
    for message in (
        r"summary\.json is not a summary of nnU-Net",
        r"summary\.json does not exist: run .* validate first",
    ):
        before = contents(finished.root.path)
        with pytest.raises(UserError, match=message):
            evaluate(finished)
        assert contents(finished.root.path) == before
        path.unlink(missing_ok=True)


def test_evaluate_folder_has_the_same_schema(finished: TaskConfig) -> None:
    folder = finished.fold_folder() / "validation"
    references = finished.preprocessed_folder / "gt_segmentations"
    validated = evaluate(finished)
    summary = evaluate_folder(folder, references, finished.label_set)
    assert summary.keys() == validated.keys()
    for ours, theirs in zip(summary["metric_per_case"], validated["metric_per_case"], strict=True):
        assert ours["metrics"]["1"] == pytest.approx(theirs["metrics"]["1"])
        assert Path(ours["prediction_file"]).name == Path(theirs["prediction_file"]).name
    assert summary["mean"]["1"] == pytest.approx(validated["mean"]["1"])
    assert summary["foreground_mean"] == pytest.approx(validated["foreground_mean"])
    with pytest.raises(UserError, match=r"holds no \.nii\.gz file"):
        evaluate_folder(folder / "none", references, finished.label_set)


def test_kfp_metrics_are_flat_and_finite() -> None:
    assert kfp_metrics({}) == {}
    summary = {
        "mean": {
            "1": {"Dice": 0.9, "IoU": 0.8, "ASD": 1.0, "HD95": 3.0, "TP": 5},
            "2": {"Dice": None, "IoU": None, "ASD": None, "HD95": None},
        },
        "foreground_mean": {"Dice": None, "IoU": 0.8},
        "labels": {"1": "spleen", "2": "cyst"},
    }
    assert kfp_metrics(summary) == {
        "Dice_spleen": 0.9,
        "mean_IoU": 0.8,
        "IoU_spleen": 0.8,
        "ASD_spleen_mm": 1.0,
        "HD95_spleen_mm": 3.0,
    }


def test_testing_needs_a_packaged_model(finished: TaskConfig) -> None:
    before = contents(finished.root.path)
    with pytest.raises(UserError, match=r"model\.ts does not exist: run convert_pt_to_ts first"):
        run_test_model(finished)
    assert contents(finished.root.path) == before


def test_testing_without_test_cases(finished: TaskConfig) -> None:
    assert run_test_model(finished.model_copy(update={"test_cases": []})) == {}
