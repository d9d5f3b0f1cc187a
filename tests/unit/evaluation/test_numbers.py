"""The table of numbers, its intervals, and the comparison of two models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap, wilcoxon
from statsmodels.stats.multitest import multipletests

from medseg.config import TaskConfig, load_config
from medseg.evaluation import compare_models, evaluate, export_metrics, metrics_table
from medseg.evaluation.statistics import ALL_FOLDS, holm, mean_interval, means_table, paired_test
from medseg.evaluation.table import FACTS, KEYS, read_table
from medseg.imaging import read_nifti, write_nifti
from medseg.nnunet import SUMMARY, read_summary
from medseg.project import DataRoot, UserError, file_hash
from tests.unit.evaluation.conftest import NAME
from tests.unit.evaluation.test_report import Links
from tests.volumes import Volume

CONFIG = f"configs/{NAME}_config.yaml"


def rows(table: pd.DataFrame, **wanted: str) -> pd.DataFrame:
    for column, value in wanted.items():
        table = table[table[column] == value]
    return table


def with_second_fold(config: TaskConfig) -> TaskConfig:
    """Another fold, whose predictions are a little larger."""
    other = config.model_copy(update={"fold": 1})
    shutil.copytree(config.fold_folder(), other.fold_folder())
    for path in other.fold_folder().rglob("*.nii.gz"):
        label = read_nifti(path)
        write_nifti(np.maximum(label.array, np.roll(label.array, 1, 0)), label.affine, path)
    evaluate(other)
    summary = other.fold_folder() / "test" / SUMMARY
    content = read_summary(summary)
    for entry in content["metric_per_case"]:
        entry["metrics"]["1"]["Dice"] -= 0.1
    summary.write_text(json.dumps(content))
    return other


# --- the table ---


def test_every_number_of_the_summaries_is_in_it(complete: TaskConfig) -> None:
    table = metrics_table(complete)
    assert list(table.columns) == [*KEYS, *FACTS]
    for split in ("validation", "test"):
        for entry in read_summary(complete.fold_folder() / split / SUMMARY)["metric_per_case"]:
            case = Path(entry["prediction_file"]).name.removesuffix(".nii.gz")
            own = rows(table, split=split, case=case).set_index("metric")["value"]
            for metric, value in entry["metrics"]["1"].items():
                assert own[metric] == value
    assert set(table["label"]) == {"spleen"} and set(table["label_value"]) == {"1"}
    assert not table.duplicated(["case", "label", "metric", "fold", "split"]).any()
    units = table.drop_duplicates("metric").set_index("metric")["unit"]
    assert units[["Dice", "HD95", "volume_ref", "TP"]].tolist() == ["", "mm", "ml", "voxels"]


def test_volumes_and_facts_are_those_of_the_images(complete: TaskConfig) -> None:
    table = metrics_table(complete)
    prediction = complete.fold_folder() / "validation" / "phantom_001.nii.gz"
    reference = complete.preprocessed_folder / "gt_segmentations" / prediction.name
    own = rows(table, split="validation", case="phantom_001")
    values = own.set_index("metric")["value"]
    sizes = {}
    for name, path in (("pred", prediction), ("ref", reference)):
        volume = read_nifti(path)
        sizes[name] = (volume.array == 1).sum() * np.prod(volume.spacing) / 1000
        assert values[f"volume_{name}"] == pytest.approx(sizes[name])
        assert own[["size_i", "size_j", "size_k"]].iloc[0].tolist() == list(volume.shape)
        spacing = own[["spacing_i", "spacing_j", "spacing_k"]].iloc[0]
        assert spacing.tolist() == pytest.approx(volume.spacing)
    assert values["volume_error"] == pytest.approx(sizes["pred"] - sizes["ref"])
    assert values["volume_error_abs"] == pytest.approx(abs(sizes["pred"] - sizes["ref"]))
    assert values["volume_error_rel"] == pytest.approx(sizes["pred"] / sizes["ref"] - 1)
    assert set(own["warnings"]) == {"slices <b>overlap</b> & differ"}
    assert set(own["orientation"]) == {"LPS"} and own["intensity_max"].iloc[0] > 0


def test_it_says_where_numbers_come_from(complete: TaskConfig) -> None:
    checkpoint = complete.fold_folder() / "checkpoint_final.pth"
    record = complete.fold_folder() / ".medseg" / "mlflow.json"
    record.parent.mkdir(exist_ok=True)
    record.write_text(json.dumps({"sqlite:///mlflow.db": "abc"}))
    row = rows(metrics_table(complete), split="validation").iloc[0]
    assert row["dataset_hash"] == "ab" * 32 and row["config"] == CONFIG
    assert row["run_id"] == "abc" and row["fold"] == "0"
    assert row["model_sha256"] == file_hash(checkpoint)


def test_a_newer_model_is_not_named(complete: TaskConfig, capsys: pytest.CaptureFixture) -> None:
    (complete.fold_folder() / "checkpoint_final.pth").touch()
    assert set(rows(metrics_table(complete), split="validation")["model_sha256"]) == {""}
    assert "newer than the validation results of fold 0" in capsys.readouterr().out


def test_what_is_undefined_says_why(finished: TaskConfig) -> None:
    folder = finished.fold_folder() / "validation"
    references = finished.preprocessed_folder / "gt_segmentations"
    first, second, third = sorted(folder.glob("*.nii.gz"))
    for path in (first, references / second.name, third, references / third.name):
        label = read_nifti(path)
        write_nifti(np.zeros_like(label.array), label.affine, path)
    evaluate(finished)
    table = metrics_table(finished)
    reasons = {
        path.name.removesuffix(".nii.gz"): "absent in " + what
        for path, what in (
            (first, "prediction"),
            (second, "reference"),
            (third, "reference and prediction"),
        )
    }
    for case, reason in reasons.items():
        own = rows(table, case=case).set_index("metric")
        undefined = own[own["value"].isna()]
        expected = {"HD95", "ASD"} | ({"volume_error_rel"} if "reference" in reason else set())
        expected |= {"Dice", "IoU"} if "and" in reason else set()
        assert set(undefined.index) == expected
        relative = undefined["reason"].drop("volume_error_rel", errors="ignore")
        assert set(relative) == {reason}
        assert own["reason"].get("volume_error_rel") in ("", "absent in reference")
        assert (own.loc[own["value"].notna(), "reason"] == "").all()
    means = rows(means_table(table), metric="Dice").iloc[0]
    assert (means["cases"], means["undefined"], means["mean"]) == (2, 1, 0)


def test_both_files_hold_the_same_table(complete: TaskConfig, tmp_path: Path) -> None:
    config = complete.model_copy(update={"labels": {"background": 0, 'NA, "x"': 1}})
    paths = export_metrics(config, tmp_path)
    table = metrics_table(config)
    for ending in (".parquet", ".csv"):
        read = read_table(paths["table"].with_suffix(ending))
        pd.testing.assert_frame_equal(read, table, check_exact=False, rtol=1e-15)
    assert set(table["label"]) == {'NA, "x"'}
    before = {path.name: path.read_bytes() for path in tmp_path.glob("m*.[cp]*")}
    export_metrics(config, tmp_path)
    assert before == {path.name: path.read_bytes() for path in tmp_path.glob("m*.[cp]*")}


def test_folds(complete: TaskConfig) -> None:
    with_second_fold(complete)
    table = metrics_table(complete)
    assert set(table["fold"]) == {"0", "1"}
    assert set(metrics_table(complete, [1])["fold"]) == {"1"}
    assert set(metrics_table(complete, [-1])["fold"]) == {"0"}
    with pytest.raises(UserError, match=r"fold 3, 4 has no results in .*run validate or test_mo"):
        metrics_table(complete, [0, 3, 4])
    shutil.rmtree(complete.results_folder)
    with pytest.raises(UserError, match="no fold has results"):
        metrics_table(complete)


def test_nnunets_own_summary_lacks_distances(finished: TaskConfig) -> None:
    table = metrics_table(finished)
    assert set(rows(table, metric="HD95")["reason"]) == {"not measured"}
    assert rows(table, metric="Dice")["value"].notna().all()


def test_damaged_summaries(complete: TaskConfig) -> None:
    path = complete.fold_folder() / "validation" / SUMMARY
    for entry in ({}, {"prediction_file": "x", "metrics": {"1": {}}}, []):
        content = {"metric_per_case": [entry], "mean": {}, "foreground_mean": {}}
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match="is not a summary of nnU-Net: remove it"):
            metrics_table(complete)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_full_disk(
    ending: str,
    volume: Volume,
    complete_template: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(complete_template, volume.folder, dirs_exist_ok=True)
    config = load_config(CONFIG, DataRoot.at(volume.folder))
    if ending == "parquet":  # so that the other file takes no space
        monkeypatch.setattr(pd.DataFrame, "to_csv", lambda *_, **__: None)
    with volume.full("export_metrics", capsys, file=f"metrics.{ending}"):
        export_metrics(config, volume.folder)
    export_metrics(config, volume.folder)
    assert (volume.folder / f"metrics.{ending}").stat().st_size > 1000


# --- means and intervals ---


def test_the_interval_is_scipys() -> None:
    values = np.random.default_rng(4).beta(9, 1, 40)
    expected = bootstrap(
        (values,), np.mean, n_resamples=9999, rng=np.random.default_rng(0), batch=1000
    ).confidence_interval
    assert mean_interval(values) == (expected.low, expected.high)
    assert mean_interval(values) == mean_interval(list(values))  # the same each time
    assert mean_interval([]) is None and mean_interval([0.5]) is None
    assert mean_interval([0.7] * 5) == (0.7, 0.7)
    assert mean_interval([0.0, 0.0]) == (0.0, 0.0)
    low, high = mean_interval([0.1, 0.1 + 1e-16]) or (0, 0)
    assert low == pytest.approx(0.1) and high == pytest.approx(0.1)


def test_a_case_counts_once_over_all_folds(complete: TaskConfig) -> None:
    with_second_fold(complete)
    table = metrics_table(complete)
    means = means_table(table)
    whole = rows(means, split="test", fold=ALL_FOLDS, metric="Dice").iloc[0]
    each = rows(table, split="test", metric="Dice")["value"]
    assert (len(each), whole["cases"]) == (2, 1) and whole["mean"] == pytest.approx(each.mean())
    assert np.isnan(whole["low"]) and np.isnan(whole["deviation"])  # of one case
    alone = rows(means, split="validation", fold="0", metric="HD95").iloc[0]
    values = rows(table, split="validation", fold="0", metric="HD95")["value"]
    assert alone["mean"] == pytest.approx(values.mean())
    assert (alone["low"], alone["high"]) == pytest.approx(mean_interval(values.to_numpy()))
    assert alone["deviation"] == pytest.approx(values.std())
    assert "TP" not in set(means["metric"])


# --- the comparison ---


@pytest.mark.parametrize("count", [1, 2, 7, 60])
def test_the_test_is_scipys(count: int) -> None:
    rng = np.random.default_rng(count)
    first, second = rng.beta(9, 1, count), rng.beta(8, 1, count).round(1)
    first[: count // 3] = second[: count // 3]  # pairs without a difference
    expected = wilcoxon(first, second)
    test = paired_test(first, second)
    assert (test.statistic, test.p) == (expected.statistic, expected.pvalue)
    assert test.difference == pytest.approx((first - second).mean())
    assert test.interval == mean_interval(first - second)
    same = paired_test(first, first)
    assert (same.difference, same.p) == (0, 1)


def test_holm_is_statsmodels() -> None:
    rng = np.random.default_rng(0)
    for values in ([0.04], [0.01, 0.04, 0.03, 0.005], rng.random(30) ** 3, [0.5, 1, 1, 0.0]):
        expected = multipletests(values, method="holm")[1]
        assert holm(values) == pytest.approx(expected)
    assert holm([]) == []


def numbers(
    path: Path, values: dict[str, dict[str, Any]], *, metric: str = "Dice", n_ref: int = 100
) -> str:
    """A table with one metric: structure to case to value."""
    content = [
        dict.fromkeys(KEYS, "")
        | {"case": case, "label": label, "split": "test", "fold": "0", "metric": name, "value": v}
        for label, cases in values.items()
        for case, value in cases.items()
        for name, v in ((metric, value), ("n_ref", n_ref))
    ]
    table = pd.DataFrame(content, columns=[*KEYS, *FACTS])
    path.parent.mkdir(exist_ok=True)
    table.to_csv(path, index=False)
    return str(path)


def test_a_comparison_equals_scipy(root: DataRoot) -> None:
    rng = np.random.default_rng(3)
    cases = [f"case_{number:02d}" for number in range(30)]
    labels = ("liver", "spleen", "kidney")
    values = {
        name: {label: dict(zip(cases, rng.beta(shape, 1, 30), strict=True)) for label in labels}
        for name, shape in (("model", 12), ("baseline", 3))
    }
    values["baseline"]["kidney"] = values["model"]["kidney"] | {"case_03": None}
    shuffled = {label: dict(reversed(own.items())) for label, own in values["baseline"].items()}
    folder = root.path / "reports"
    paths = compare_models(
        root,
        numbers(folder / "model.csv", values["model"]),
        numbers(folder / "baseline.csv", shuffled),
        folder / "r",
        metrics=["Dice"],
    )
    tests = pd.read_parquet(paths["table"]).set_index("label")
    p = []
    for label in labels:
        pairs = [
            (values["model"][label][case], values["baseline"][label][case])
            for case in cases
            if values["baseline"][label][case] is not None
        ]
        first, second = np.array(pairs).T
        expected = wilcoxon(first, second) if label != "kidney" else None
        p.append(expected.pvalue if expected else 1.0)
        own = tests.loc[label]
        assert own["p"] == pytest.approx(p[-1], rel=1e-12)
        assert own["difference"] == pytest.approx((first - second).mean())
        assert own["mean_baseline"] == pytest.approx(second.mean())
        assert (own["pairs"], own["undefined"]) == ((29, 1) if label == "kidney" else (30, 0))
        assert own["better"] == (first > second).sum() and own["worse"] == (first < second).sum()
        low, high = mean_interval(first - second) or (0, 0)
        assert (own["low"], own["high"]) == pytest.approx((low, high))
    assert tests["p_holm"].tolist() == pytest.approx(multipletests(p, method="holm")[1])
    page = paths["page"].read_text()
    assert "<td>better</td>" in page and "<td>no difference shown</td>" in page
    assert len(pd.read_csv(paths["pairs"].with_suffix(".csv"))) == 90


def test_a_smaller_distance_is_better(root: DataRoot) -> None:
    cases = [f"c{number}" for number in range(8)]
    near = {"spleen": {case: 1 + number / 10 for number, case in enumerate(cases)}}
    far = {"spleen": {case: 3 + number / 5 for number, case in enumerate(cases)}}
    folder = root.path / "reports"
    model = numbers(folder / "a.csv", near, metric="HD95")
    baseline = numbers(folder / "b.csv", far, metric="HD95")
    for first, second, wins in ((model, baseline, 8), (baseline, model, 0)):
        paths = compare_models(root, first, second, folder / "r", metrics=["HD95"])
        row = pd.read_parquet(paths["table"]).iloc[0]
        assert (row["better"], row["worse"]) == (wins, 8 - wins)
        assert f"<td>{'better' if wins else 'worse'}</td>" in paths["page"].read_text()


def test_what_cannot_be_paired_is_listed(root: DataRoot) -> None:
    folder = root.path / "reports"
    model = numbers(
        folder / "a.csv", {"spleen": {"x": 0.5, "y": 0.6, "<i>z": 0.7}, "liver": {"x": 1}}
    )
    baseline = numbers(folder / "b.csv", {"spleen": {"x": 0.5, "y": 0.5, "w": 0.5}})
    paths = compare_models(root, model, baseline, folder / "r", metrics=["Dice"])
    page = " ".join(paths["page"].read_text().split())
    assert "<strong>Cases that only the model has (1):</strong> &lt;i&gt;z" in page
    assert "<strong>Cases that only the baseline has (1):</strong> w" in page
    assert "<strong>Structures that only the model has (1):</strong> liver" in page
    assert "With fewer than six pairs p cannot fall below 0.05" in page
    changed = numbers(folder / "c.csv", {"spleen": {"x": 0.5, "y": 0.5}}, n_ref=99)
    with pytest.raises(UserError, match="references of all 2 common cases differ"):
        compare_models(root, model, changed, folder / "r")
    other = numbers(folder / "d.csv", {"spleen": {"p": 0.5}})
    with pytest.raises(UserError, match=r"no cases are in both: the model has <i>z, x, y; the bas"):
        compare_models(root, model, other, folder / "r")


def test_folds_summaries_and_tables_compare(complete: TaskConfig) -> None:
    other = with_second_fold(complete)
    root, folder = complete.root, complete.root.path / "reports" / "r"
    exported = export_metrics(complete, complete.root.path / "reports" / "e")
    summaries = [
        root.relative(config.fold_folder() / "validation" / SUMMARY) for config in (complete, other)
    ]
    ways: list[tuple[str, str, dict[str, Any]]] = [
        (CONFIG, CONFIG, {"split": "validation", "model_fold": 0, "baseline_fold": 1}),
        (summaries[0], summaries[1], {}),
        (root.relative(exported["table"]), summaries[1], {"split": "validation", "model_fold": 0}),
    ]
    found = []
    for model, baseline, options in ways:
        paths = compare_models(root, model, baseline, folder, **options)
        found.append(pd.read_parquet(paths["table"]))
        assert found[-1]["pairs"].tolist() == [3, 3, 3, 3]
        pd.testing.assert_frame_equal(found[-1], found[0])
    links = Links()
    links.feed(paths["page"].read_text())
    assert "script" not in links.tags and all(t.startswith("data:image/") for t in links.targets)
    assert paths["page"].read_text().count("<figure>") == 4
    assert paths["page"].stat().st_size < 500_000


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("x.txt", {}, r"model is x\.txt: give a config \(\.yaml\), a table"),
        ("x.csv", {}, r"x\.csv does not exist: run export_metrics first"),
        ("bad.csv", {}, r"bad\.csv is no table of export_metrics"),
        ("bad.parquet", {}, r"bad\.parquet is no table of export_metrics"),
        (CONFIG, {"split": "train"}, r"split is 'train': give validation or test"),
        (CONFIG, {"model_fold": 4}, r"fold 4 has no results"),
        (CONFIG, {"metrics": ["dice"]}, r"metrics names dice: give some of Dice, IoU"),
        (CONFIG, {"metrics": []}, r"metrics names nothing"),
        ("../x.csv", {}, r"outside|leaves"),
    ],
)
def test_bad_input(complete: TaskConfig, model: str, options: dict[str, Any], message: str) -> None:
    for ending in ("csv", "parquet"):
        (complete.root.path / f"bad.{ending}").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=message):
        compare_models(complete.root, model, CONFIG, complete.root.path / "r", **options)
    assert not (complete.root.path / "r").exists()


def test_a_split_without_results(finished: TaskConfig) -> None:
    with pytest.raises(UserError, match=r"no test results .validation of fold 0 is there"):
        compare_models(finished.root, CONFIG, CONFIG, finished.root.path / "r")
