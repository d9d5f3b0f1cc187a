"""The rule of find_best_configuration, against nnU-Net's own functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.postprocessing.remove_connected_components import (
    determine_postprocessing as nnunets_rule,
)

from medseg.config import TaskConfig, load_config
from medseg.evaluation.candidates import candidates_page, choice_measures
from medseg.evaluation.cross_validation import determine_postprocessing
from medseg.imaging import write_nifti
from medseg.nnunet.choice import Choice, choice_file, read_choice
from medseg.project import DataRoot, UserError, write_json

PLAIN: dict[str, Any] = {"labels": {"background": 0, "a": 1, "b": 2}}
IGNORE: dict[str, Any] = {"labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}}
ONE: dict[str, Any] = {"labels": {"background": 0, "a": 1}}
REGIONS: dict[str, Any] = {
    "labels": {"background": 0, "whole": [1, 2], "core": 2},
    "regions_class_order": [1, 2],
}

TASK = {
    "data_dir": "NIFTI",
    "dataset_name_or_id": "1",
    "experiment_name": "Task",
    "bundle_config": {"bundle_root": "bundle"},
}

Paint = Callable[[np.ndarray, np.ndarray, int], None]
"""Changes a prediction, given the reference and the number of the case."""


def write_task(root: DataRoot, **fields: Any) -> TaskConfig:
    (root.path / "task.yaml").write_text(yaml.safe_dump({**TASK, **fields}))
    return load_config("task.yaml", root)


def islands_of(*values: int, right: int = 0) -> Paint:
    """Voxels far from the structure, of these labels; of one, ``right``, it is the truth."""

    def paint(prediction: np.ndarray, reference: np.ndarray, case: int) -> None:
        for value in values:
            place = (2, 2 + 3 * value, slice(1, 3 + case % 2))
            prediction[place] = value
            if value == right:
                reference[place] = value
                reference[place[0] + 1, place[1], place[2]] = value

    return paint


def write_cases(config: TaskConfig, paint: Paint, count: int = 3) -> dict[str, Path]:
    """Cases with one block of each label, and predictions that differ; the last lacks label 2."""
    folder = config.root.path / "predictions"
    predictions = {}
    for case in range(count):
        reference = np.zeros((20, 20, 20), np.uint8)
        reference[8:14, 8:14, 8:14] = 1
        if 2 in config.label_set.values and case < count - 1:
            reference[10:12, 10:12, 10:12] = 2
        if config.label_set.ignore is not None:
            reference[2, 5, 1] = config.label_set.ignore
        prediction = np.where(reference == 3, 0, reference)
        prediction[8] = 0
        paint(prediction, reference, case)
        name = f"case_{case}"
        target = config.preprocessed_folder / "gt_segmentations" / f"{name}.nii.gz"
        write_nifti(reference, np.eye(4), target)
        predictions[name] = folder / target.name
        write_nifti(prediction, np.eye(4), predictions[name])
    return predictions


def theirs(config: TaskConfig, predictions: Mapping[str, Path], tmp_path: Path) -> list[Any]:
    """What nnU-Net's determine_postprocessing takes out, step by step, as sorted label values."""
    folder = next(iter(predictions.values())).parent
    dataset = {"labels": config.labels, "file_ending": ".nii.gz", "channel_names": {"0": "MRI"}}
    if config.regions_class_order:
        dataset["regions_class_order"] = config.regions_class_order
    plans = {
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "configurations": {},
    }
    references = str(config.preprocessed_folder / "gt_segmentations")
    labels = [
        item.values if len(item.values) > 1 else item.values[0]
        for item in config.label_set.structures.values()
    ]
    compute_metrics_on_folder(
        references,
        str(folder),
        str(folder / "summary.json"),
        SimpleITKIO(),
        ".nii.gz",
        labels,
        config.label_set.ignore,
        1,
    )
    _, keywords = nnunets_rule(str(folder), references, plans, dataset, 1, False)

    def flat(value: Any) -> list[int]:
        return [value] if isinstance(value, int) else sorted(x for v in value for x in flat(v))

    return [flat(each["labels_or_regions"]) for each in keywords]


@pytest.mark.parametrize(
    ("fields", "paint", "expected"),
    [
        (PLAIN, islands_of(1, 2), [(1, 2)]),
        (PLAIN, islands_of(1, 2, right=1), [(2,)]),
        (PLAIN, islands_of(), []),
        (IGNORE, islands_of(1), [(1, 2)]),
        (ONE, islands_of(1), [(1,)]),
        (REGIONS, islands_of(1, 2), [(1, 2)]),
    ],
    ids=["all", "one", "none", "ignored", "single", "regions"],
)
def test_components_are_taken_out_where_nnunet_takes_them(
    root: DataRoot, tmp_path: Path, fields: dict[str, Any], paint: Paint, expected: list[Any]
) -> None:
    config = write_task(root, **fields)
    predictions = write_cases(config, paint)
    steps, scores = determine_postprocessing(config, predictions)
    assert list(steps) == expected
    assert scores.keys() == config.label_set.structures.keys()
    assert all(value is None or 0 < value <= 1 for value in scores.values())


@pytest.mark.parametrize("fields", [PLAIN, REGIONS], ids=["plain", "regions"])
def test_the_rule_is_nnunets(root: DataRoot, tmp_path: Path, fields: dict[str, Any]) -> None:
    config = write_task(root, **fields)
    predictions = write_cases(config, islands_of(1, 2, right=1))
    steps, _ = determine_postprocessing(config, predictions)
    assert [list(step) for step in steps] == theirs(config, predictions, tmp_path)


CHOICE = Choice(
    configurations=("2d", "3d_fullres"),
    folds=(0, 1),
    postprocessing=((1, 2), (2,)),
    dice=0.9,
    structures={"a": 0.95, "b": None},
    candidates=[
        {"configurations": ["2d"], "dice": None, "structures": {"a": 0.8, "b": None}},
        {"configurations": ["2d", "3d_fullres"], "dice": 0.88, "structures": {"a": 0.9, "b": 0.8}},
    ],
)


def test_the_page_has_every_candidate_and_marks_the_chosen_one(root: DataRoot) -> None:
    config = write_task(root, **PLAIN)
    page = candidates_page(config, CHOICE)
    assert "<tr><td>2d</td><td>–</td><td>0.8000</td><td>–</td></tr>" in page
    assert '<tr class="chosen"><td>2d + 3d_fullres</td><td>0.8800</td>' in page
    assert "kept of all structures together; then of b." in page
    assert choice_measures(CHOICE) == {"Dice_2d_3d_fullres": 0.88, "Dice_chosen": 0.9}


def test_a_choice_is_read_as_it_was_written(root: DataRoot) -> None:
    config = write_task(root, **PLAIN)
    with pytest.raises(UserError, match="run find_best_configuration, or cross_validate, first"):
        read_choice(config)
    write_json(choice_file(config), CHOICE.to_json())
    assert read_choice(config) == CHOICE
    write_json(choice_file(config), {"folds": 3})
    with pytest.raises(UserError, match="is no record of find_best_configuration"):
        read_choice(config)
