"""Retraining and promotion, with models that are cheap to measure.

A packaged model is a small text here, and segmenting with it copies the references, a little or
much worsened. Everything else is real: the dataset, its records, the measures, the judgement.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from medseg.bundle import model_file, present_model
from medseg.config import TaskConfig, load_config
from medseg.dataset import case_hashes
from medseg.evaluation import (
    decide_retraining,
    describe_promotion,
    promote,
    promotion,
    promotion_measures,
)
from medseg.evaluation.held_back import measure_model
from medseg.evaluation.promotion import read_promotions
from medseg.imaging import is_nifti, read_nifti, stem, write_nifti
from medseg.nnunet import prepare_dataset
from medseg.project import CasesFailedError, DataRoot, Failures, UserError, write_json

TESTED = ["t1", "t2", "t3"]
Package = Callable[..., bytes]


def add_case(config: TaskConfig, case: str, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    label = np.zeros((8, 8, 8), np.uint8)
    label[2:6, 2:6, 2:6] = 1
    folder = config.data_folder / case
    image = random.normal(size=label.shape).astype(np.float32)
    write_nifti(image, np.eye(4), folder / f"{case}_image.nii.gz")
    write_nifti(label, np.eye(4), folder / f"{case}_label.nii.gz")


def measured(config: TaskConfig) -> int:
    """How many cases the candidate is measured on, as test_model does before it is judged."""
    summary, _ = measure_model(config, model_file(config), config.fold_folder() / "test")
    return len(summary["metric_per_case"])


def configure(root: DataRoot, **fields: Any) -> TaskConfig:
    content = {
        "data_dir": "NIFTI",
        "dataset_name_or_id": "9",
        "experiment_name": "Cubes",
        "labels": {"background": 0, "Cube": 1},
        "bundle_config": {"bundle_root": "bundle"},
        "num_processes": 1,
        "test_cases": TESTED,
        **fields,
    }
    (root.path / "config.yaml").write_text(yaml.safe_dump(content))
    return load_config("config.yaml", root)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset: five cases to train on, three held back."""
    folder = tmp_path_factory.mktemp("prepared")
    config = configure(DataRoot.at(folder))
    for number, case in enumerate(["a", "b", "c", "d", "e", *TESTED]):
        add_case(config, case, number)
    prepare_dataset(config)
    return folder


@pytest.fixture
def config(root: DataRoot, prepared: Path) -> TaskConfig:
    shutil.copytree(prepared, root.path, dirs_exist_ok=True)
    return load_config("config.yaml", root)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The tags of what was registered, in place of MLflow, which takes seconds each time."""
    calls: list[dict[str, str]] = []

    def register(_config: TaskConfig, model: Path, tags: dict[str, str]) -> None:
        calls.append({"content": model.read_text(), **tags})

    monkeypatch.setattr(promotion, "register", register)
    return calls


@pytest.fixture
def package(config: TaskConfig, monkeypatch: pytest.MonkeyPatch) -> Package:
    """Packages a model that misses so many planes of each cube, and fails on some cases."""

    def segment(model: Path, images: Path, folder: Path, **_: Any) -> None:
        content = json.loads(model.read_text())
        failures = Failures()
        cases = sorted(stem(path) for path in images.iterdir() if is_nifti(path))
        for case in cases:
            with failures.case(case):
                if case in content["fails"]:
                    raise UserError("out of luck")
                label = read_nifti(config.data_folder / case / f"{case}_label.nii.gz")
                array = label.array.copy()
                array[2 : 2 + content["misses"]] = 0
                write_nifti(array, label.affine, folder / f"{case}.nii.gz")
        failures.check(len(cases))

    monkeypatch.setattr("medseg.evaluation.held_back.segment", segment)

    def write(misses: int = 0, fails: tuple[str, ...] = (), seed: int = 0) -> bytes:
        model_file(config).parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"misses": misses, "fails": fails, "seed": seed})
        model_file(config).write_text(content)
        return content.encode()

    return write


def test_the_first_model_is_promoted(
    config: TaskConfig, package: Package, registered: list[dict[str, str]]
) -> None:
    model = package(misses=1)
    judgement = promote(config)
    assert judgement["promoted"]
    assert judgement["reason"] == "there was no model before"
    assert judgement["candidate"]["Dice"] == pytest.approx(6 / 7)
    assert judgement["cases"] == case_hashes(config)
    assert set(judgement["cases"]) == set("abcde")
    assert present_model(config).read_bytes() == model
    assert read_promotions(config) == [judgement]
    (tags,) = registered
    assert tags["content"].encode() == model
    assert tags["medseg.test_Dice"] == f"{6 / 7:.4f}"
    assert tags["medseg.training_cases"] == "5"
    assert tags["medseg.labels"] == "Cube"


@pytest.mark.parametrize(("misses", "promoted"), [(0, True), (1, True), (2, False)])
def test_better_equal_worse(
    config: TaskConfig,
    package: Package,
    registered: list[dict[str, str]],
    misses: int,
    promoted: bool,
) -> None:
    first = package(misses=1)
    promote(config)
    second = package(misses=misses, seed=1)
    judgement = promote(config)
    assert judgement["promoted"] is promoted
    assert judgement["reason"].endswith("of the present model on 3 test cases")
    assert judgement["present"]["Dice"] == pytest.approx(6 / 7)
    assert present_model(config).read_bytes() == (second if promoted else first)
    assert len(read_promotions(config)) == 2
    assert ("**not promoted**" in describe_promotion(judgement)) is not promoted
    dice = {f"{name}_Dice": judgement[name]["Dice"] for name in ("candidate", "present")}
    assert promotion_measures(judgement) == {"promoted": promoted, **dice}
    assert promote(config) == judgement, "judged before"
    assert len(read_promotions(config)) == 2
    present = (second if promoted else first).decode()
    assert [tags["content"] for tags in registered] == [first.decode(), present, present]


def test_without_test_cases_the_first_model_stays(
    config: TaskConfig, package: Package, root: DataRoot
) -> None:
    config = configure(root, test_cases=[])
    first = package()
    assert promote(config)["promoted"]
    package(seed=1)
    judgement = promote(config)
    assert judgement["reason"].startswith("nothing to compare on")
    assert not judgement["promoted"]
    assert present_model(config).read_bytes() == first


def test_a_prediction_of_the_old_model_does_not_count(
    config: TaskConfig, package: Package, root: DataRoot
) -> None:
    config = configure(root, max_failed_cases=1)
    first = package(misses=1)
    assert measured(config) == 3
    promote(config)
    package(misses=0, fails=("t2",))
    assert measured(config) == 2
    assert not (config.fold_folder() / "test" / "t2.nii.gz").exists()
    judgement = promote(config)
    assert judgement["reason"] == "it fails on t2, which the present model can segment"
    assert not judgement["promoted"]
    assert present_model(config).read_bytes() == first


def test_only_what_both_can_segment_is_compared(
    config: TaskConfig, package: Package, root: DataRoot
) -> None:
    config = configure(root, max_failed_cases=1)
    package(misses=1, fails=("t2",))
    promote(config)
    better = package(misses=0)
    judgement = promote(config)
    assert judgement["reason"] == (
        "mean Dice 1.0000 against 0.8571 of the present model on 2 test cases"
    )
    assert present_model(config).read_bytes() == better


def test_a_test_image_that_has_gone(config: TaskConfig, package: Package, root: DataRoot) -> None:
    package()
    measured(config)
    (config.data_folder / "t3" / "t3_image.nii.gz").unlink()
    with pytest.raises(CasesFailedError, match="t3"):
        measured(config)
    config = configure(root, max_failed_cases=1)
    assert measured(config) == 2


def test_uncompressed_test_images(config: TaskConfig, package: Package, root: DataRoot) -> None:
    config = configure(root, modality_dict={"image": "_image.nii", "label": "_label.nii.gz"})
    for case in TESTED:
        image = read_nifti(config.data_folder / case / f"{case}_image.nii.gz")
        write_nifti(image.array, image.affine, config.data_folder / case / f"{case}_image.nii")
    package()
    assert measured(config) == 3
    for path in (config.fold_folder() / "test" / "images").iterdir():
        assert read_nifti(path).shape == (8, 8, 8)


def test_too_many_failed(config: TaskConfig, package: Package) -> None:
    package(fails=("t2",))
    with pytest.raises(CasesFailedError, match="t2: out of luck"):
        promote(config)
    assert read_promotions(config) == []
    assert not present_model(config).exists()


def test_a_changed_test_image_is_judged_anew(config: TaskConfig, package: Package) -> None:
    package()
    promote(config)
    add_case(config, "t1", seed=99)
    assert promote(config)["reason"] == "it is the present model already"
    assert len(read_promotions(config)) == 2


def test_killed_before_the_model_was_copied(
    config: TaskConfig, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(misses=1)
    promote(config)
    better = package(misses=0)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfile", lambda *_: os._exit(1))
        child = os.fork()
        if child == 0:
            promote(config)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert present_model(config).read_bytes() != better
    judgement = promote(config)
    assert judgement["present"]["Dice"] == pytest.approx(6 / 7), "not compared with itself"
    assert len(read_promotions(config)) == 2
    assert present_model(config).read_bytes() == better


def test_killed_before_it_was_recorded(
    config: TaskConfig, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = package(misses=1)
    with monkeypatch.context() as patch:
        patch.setattr(promotion, "write_json", lambda *_: os._exit(1))
        child = os.fork()
        if child == 0:
            promote(config)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert present_model(config).read_bytes() == first
    assert read_promotions(config) == []
    assert promote(config)["reason"] == "there was no model before", "not compared with itself"
    assert len(read_promotions(config)) == 1
    assert present_model(config).read_bytes() == first


def test_a_model_that_changes_while_it_is_judged(
    config: TaskConfig, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = package(misses=1)
    promote(config)
    package(misses=0)
    measure = promotion.measure_model

    def measure_and_change(*arguments: Any) -> Any:
        found = measure(*arguments)
        package(misses=4)
        return found

    monkeypatch.setattr(promotion, "measure_model", measure_and_change)
    with pytest.raises(UserError, match="packaged anew while it was judged: run promote again"):
        promote(config)
    assert present_model(config).read_bytes() == first
    assert len(read_promotions(config)) == 1


def test_no_candidate(config: TaskConfig) -> None:
    with pytest.raises(UserError, match=r"model\.ts does not exist: run convert_pt_to_ts first"):
        promote(config)


@pytest.mark.parametrize("content", ["{half", '{"a": 1}', "[1]", '[{"promoted": true}]'])
def test_a_damaged_record(config: TaskConfig, package: Package, content: str) -> None:
    package()
    record = config.bundle_folder / "models" / "promotions.json"
    record.write_text(content)
    for ask in (promote, decide_retraining):
        with pytest.raises(UserError, match=r"(?i)restore it, or remove it to judge anew"):
            ask(config)
    assert record.read_text() == content


# --- whether to train again ---


def test_decide(config: TaskConfig, package: Package, root: DataRoot) -> None:
    with pytest.raises(UserError, match="min_new_cases is -1: give 0 or more"):
        decide_retraining(config, -1)
    assert decide_retraining(config)["reason"] == "no model has been judged yet"
    package()
    promote(config)
    assert decide_retraining(config)["reason"] == "0 new cases, 1 needed"
    assert decide_retraining(config, 0)["retrain"]
    add_case(config, "f", 6)
    add_case(config, "a", 7)  # a corrected case is a new one
    decision = decide_retraining(config, 2)
    assert (decision["retrain"], decision["new_cases"], decision["known_cases"]) == (True, 2, 4)
    for irrelevant in ({"device": "cpu"}, {"num_processes": 2}, {"max_failed_cases": 1}):
        assert decide_retraining(configure(root, **irrelevant), 3)["reason"].startswith("2 new")
    changed = configure(root, num_epochs=7)
    assert decide_retraining(changed, 3)["reason"] == "the config has changed"


def test_a_case_that_comes_in_while_it_trains_is_new(config: TaskConfig, package: Package) -> None:
    add_case(config, "f", 6)  # after the dataset was prepared
    package()
    assert set(promote(config)["cases"]) == set("abcde")
    assert decide_retraining(config)["reason"] == "1 new cases, 1 needed"


def test_the_trainings_own_record_counts(config: TaskConfig, package: Package) -> None:
    trained = {case: digest for case, digest in case_hashes(config).items() if case != "e"}
    write_json(config.fold_folder() / ".medseg" / "training.json", {"cases": trained})
    package()
    assert promote(config)["cases"] == trained
    assert decide_retraining(config)["new_cases"] == 1


def test_a_refused_case_is_not_new_every_night(
    config: TaskConfig, package: Package, root: DataRoot
) -> None:
    config = configure(root, max_failed_cases=1)
    add_case(config, "f", 6)
    write_nifti(
        np.full((8, 8, 8), 5, np.uint8), np.eye(4), config.data_folder / "f" / "f_label.nii.gz"
    )
    trained = {case: digest for case, digest in case_hashes(config).items() if case != "f"}
    write_json(config.fold_folder() / ".medseg" / "training.json", {"cases": trained})
    assert list(prepare_dataset(config)["failed"]) == ["f"]
    package()
    promote(config)
    assert decide_retraining(config)["new_cases"] == 0
    add_case(config, "f", 6)
    assert decide_retraining(config)["new_cases"] == 1, "mended"
