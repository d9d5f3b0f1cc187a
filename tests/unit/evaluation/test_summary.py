"""The summaries: nnU-Net's schema, valid JSON, written once, no case lost."""

from __future__ import annotations

import json
import multiprocessing.dummy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nnunetv2.evaluation import evaluate_predictions
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from medseg.config import Labels, TaskConfig
from medseg.evaluation import evaluate, evaluate_folder, evaluate_test_cases, flat_means
from medseg.imaging import read_nifti, write_nifti
from medseg.nnunet import read_summary
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


def test_evaluate_has_nnunets_numbers_and_distances(finished: TaskConfig) -> None:
    """A fold that nnU-Net's own command has validated, on another machine."""
    path = finished.fold_folder() / "validation" / "summary.json"
    before = json.loads(path.read_text())
    summary = evaluate(finished)
    assert strict(path) == summary
    for old, new in zip(before["metric_per_case"], summary["metric_per_case"], strict=True):
        assert set(new["metrics"]["1"]) == SCHEMA
        assert old["metrics"]["1"].items() <= new["metrics"]["1"].items()
        assert Path(old["prediction_file"]).name == Path(new["prediction_file"]).name
        assert Path(new["prediction_file"]).is_file() and Path(new["reference_file"]).is_file()
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
    assert read_summary(path)["metric_per_case"][0]["metrics"]["1"]["Dice"] is None
    first = sorted(path.parent.glob("*.nii.gz"))[0]
    for empty in (first, finished.preprocessed_folder / "gt_segmentations" / first.name):
        label = read_nifti(empty)
        write_nifti(np.zeros_like(label.array), label.affine, empty)
    assert evaluate(finished)["metric_per_case"][0]["metrics"]["1"]["Dice"] is None
    strict(path)


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        ({"background": 0, "a": 1, "b": 2, "c": 3}, None),
        ({"background": 0, "b": 2, "a": 1, "ignore": 3}, None),
        ({"background": 0, "whole": [1, 2, 3], "part": [2, 3], "core": [3]}, [1, 2, 3]),
        ({"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, [1, 2]),
    ],
    ids=["plain", "ignore", "regions", "regions with ignore"],
)
def test_the_summary_is_nnunets(
    labels: dict[str, Any],
    order: list[int] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random = np.random.default_rng(5)
    for part in ("reference", "prediction"):
        (tmp_path / part).mkdir()
        for case, most in (("a", 4), ("b", 4), ("c", 2)):  # "c" lacks what "a" and "b" have
            array = random.integers(0, most, (9, 10, 11), dtype=np.uint8)
            write_nifti(array, np.eye(4), tmp_path / part / f"{case}.nii.gz")
    manager = LabelManager(labels, order)
    # its spawned processes are threads here, which begin at once
    context = SimpleNamespace(get_context=lambda _method: multiprocessing.dummy)
    monkeypatch.setattr(evaluate_predictions, "multiprocessing", context)
    evaluate_predictions.compute_metrics_on_folder(
        str(tmp_path / "reference"),
        str(tmp_path / "prediction"),
        str(tmp_path / "theirs.json"),
        SimpleITKIO(),
        ".nii.gz",
        manager.foreground_regions if manager.has_regions else manager.foreground_labels,
        manager.ignore_label,
        1,
    )
    theirs = read_summary(tmp_path / "theirs.json")
    ours = evaluate_folder(
        tmp_path / "prediction", tmp_path / "reference", Labels.of(labels, order)
    )
    assert set(ours) == {*theirs, "labels"}
    for own, entry in zip(ours["metric_per_case"], theirs["metric_per_case"], strict=True):
        assert {name: own[name] for name in entry if name != "metrics"} == {
            name: value for name, value in entry.items() if name != "metrics"
        }
        assert without_additions(own["metrics"]) == numbers(entry["metrics"])
    assert without_additions(ours["mean"]) == numbers(theirs["mean"])
    assert {name: ours["foreground_mean"][name] for name in theirs["foreground_mean"]} == (
        pytest.approx(theirs["foreground_mean"])
    )


def numbers(metrics: dict[str, Any]) -> dict[str, Any]:
    return {key: pytest.approx(values) for key, values in metrics.items()}


def without_additions(metrics: dict[str, Any]) -> dict[str, Any]:
    added = {"ASD", "HD95", "undefined_distances"}
    return {
        key: {name: value for name, value in values.items() if name not in added}
        for key, values in metrics.items()
    }


def test_one_bad_case_is_named_and_the_others_are_kept(finished: TaskConfig) -> None:
    folder = finished.fold_folder() / "validation"
    bad = sorted(folder.glob("*.nii.gz"))[1]
    label = read_nifti(bad)
    write_nifti(label.array, label.affine @ np.diag([1, 1, 1.2, 1]), bad)
    with pytest.raises(CasesFailedError, match="1 of 3 cases failed") as caught:
        evaluate(finished)
    message = str(caught.value)
    assert str(bad) in message and "different geometry" in message and "gt_segmentations" in message
    entries = strict(folder / "summary.json")["metric_per_case"]
    kept = [path for path in sorted(folder.glob("*.nii.gz")) if path != bad]
    assert [entry["prediction_file"] for entry in entries] == [str(path) for path in kept]
    assert None not in [entry["metrics"]["1"]["ASD"] for entry in entries]


def test_no_validation_yet(finished: TaskConfig) -> None:
    path = finished.fold_folder() / "validation" / "summary.json"
    for content in ("[]", "{", '{"metric_per_case": 1, "mean": {}, "foreground_mean": {}}'):
        path.write_text(content)
        with pytest.raises(UserError, match=r"summary\.json is not a summary of nnU-Net"):
            read_summary(path)
    path.unlink()
    with pytest.raises(UserError, match=r"summary\.json does not exist: run .* validate first"):
        read_summary(path)
    for prediction in path.parent.glob("*.nii.gz"):
        prediction.unlink()
    before = contents(finished.root.path)
    with pytest.raises(UserError, match=r"holds no \.nii\.gz file: run the stage validate first"):
        evaluate(finished)
    assert contents(finished.root.path) == before


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


def test_flat_means_are_flat_and_finite() -> None:
    assert flat_means({}) == {}
    summary = {
        "mean": {
            "1": {"Dice": 0.9, "IoU": 0.8, "ASD": 1.0, "HD95": 3.0, "TP": 5},
            "2": {"Dice": None, "IoU": None, "ASD": None, "HD95": None},
        },
        "foreground_mean": {"Dice": None, "IoU": 0.8},
        "labels": {"1": "spleen+", "2": "cyst"},
    }
    assert flat_means(summary) == {  # in names that MLflow takes
        "Dice_spleen_": 0.9,
        "mean_IoU": 0.8,
        "IoU_spleen_": 0.8,
        "ASD_spleen__mm": 1.0,
        "HD95_spleen__mm": 3.0,
    }


def test_testing_needs_a_packaged_model(finished: TaskConfig) -> None:
    before = contents(finished.root.path)
    with pytest.raises(UserError, match=r"model\.ts does not exist: run convert_pt_to_ts first"):
        evaluate_test_cases(finished)
    assert contents(finished.root.path) == before


def test_testing_without_test_cases(finished: TaskConfig) -> None:
    assert evaluate_test_cases(finished.model_copy(update={"test_cases": []})) == {}
