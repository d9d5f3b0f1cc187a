"""``medseg run cross_validate``: five folds, a choice, one packaged file that votes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from medseg.bundle import convert_pt_to_ts, ensemble_file, model_file, present_model
from medseg.bundle.torchscript import load_packaged
from medseg.config import TaskConfig, load_config
from medseg.evaluation.held_back import measure_model
from medseg.nnunet import plan_and_preprocess, prepare_dataset
from medseg.nnunet.choice import read_choice
from medseg.project import DataRoot
from tests.hippocampus import CONFIG, add_tiny_configuration, copy_cases, write_project
from tests.pipelines.harness import run_pipeline

FOLDS = range(5)


def project(
    shared_data: Path, root: Path, cases: int, held_back: int, features: int, **fields: object
) -> None:
    """A data root with real cases in the Decathlon's format, planned with a smaller network.

    Args:
        shared_data: The real cases.
        root: The data root.
        cases: How many to train and validate on.
        held_back: How many to hold back as the test set.
        features: Of the network's first stage.
        fields: Of the config.
    """
    root.mkdir()
    names = copy_cases(shared_data, root / "NIFTI/Task04", cases + held_back)
    held = {"dataset_format": "decathlon", "device": "cpu", "num_processes": 1, **fields}
    write_project(root, names[cases:], **held)
    config = load_config(CONFIG, DataRoot.at(root))
    prepare_dataset(config)
    plan_and_preprocess(config)
    add_tiny_configuration(config, batch_size=4, patch_size=[24, 32, 32])
    path = config.preprocessed_folder / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    network = plans["configurations"]["tiny"]["architecture"]["arch_kwargs"]
    stages = network["n_stages"]
    network["features_per_stage"] = [features * min(2**stage, 4) for stage in range(stages)]
    path.write_text(json.dumps(plans))
    content = yaml.safe_load((root / CONFIG).read_text()) | {"configuration": "tiny"}
    (root / CONFIG).write_text(yaml.safe_dump(content))


def dice_of(config: TaskConfig, model: Path, folder: Path) -> float:
    """Mean Dice of a packaged model on the held-back cases."""
    summary, _ = measure_model(config, model, folder)
    return float(summary["foreground_mean"]["Dice"])


def check_model(root: Path, tmp_path: Path) -> tuple[float, list[float]]:
    """Dice on the held-back cases of the model that votes, and of each of its folds."""
    config = load_config(CONFIG, DataRoot.at(root))
    choice = read_choice(config)
    assert (choice.configurations, choice.folds) == (("tiny",), tuple(FOLDS))
    packaged = load_packaged(ensemble_file(config))
    assert packaged.members is not None
    assert [member.fold for member in packaged.members.networks] == list(FOLDS)
    assert packaged.metadata["eval_metrics"]["mean_dice"] == pytest.approx(choice.dice, abs=1e-4)
    assert present_model(config).read_bytes() == ensemble_file(config).read_bytes()
    single = []
    for fold in FOLDS:
        each = config.of(fold=fold)
        convert_pt_to_ts(each)
        single.append(dice_of(each, model_file(each), tmp_path / f"fold_{fold}"))
    return dice_of(config, ensemble_file(config), tmp_path / "ensemble"), single


@pytest.mark.slow
def test_an_ensemble_is_at_least_as_good_as_its_mean_fold(real_data: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    schedule = {"num_epochs": 4, "iterations_per_epoch": 60, "initial_lr": 0.02}
    fast = {"trainer_class_name": "nnUNetTrainerNoDA"}  # augmentation pays in long trainings
    project(real_data, root, 20, 5, 8, **schedule, **fast)
    run_pipeline("cross_validate", root, config_file_path=CONFIG)
    voting, single = check_model(root, tmp_path)
    print(f"ensemble {voting:.4f}, folds {', '.join(f'{dice:.4f}' for dice in single)}")
    assert voting >= sum(single) / len(single)
    assert voting > 0.3  # they have learnt something


def test_two_folds_from_nothing_to_a_report(shared_data: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    fast = {"trainer_class_name": "nnUNetTrainerNoDA", "iterations_per_epoch": 1}
    project(shared_data, root, 5, 1, 4, num_epochs=1, **fast)
    run_pipeline("cross_validate", root, config_file_path=CONFIG, folds="[0, 1]")
    config = load_config(CONFIG, DataRoot.at(root))
    packaged = load_packaged(ensemble_file(config))
    assert packaged.members is not None
    assert [member.fold for member in packaged.members.networks] == [0, 1]
    assert present_model(config).read_bytes() == ensemble_file(config).read_bytes()
    assert list(root.glob("reports/*/report.html"))
