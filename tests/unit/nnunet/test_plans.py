"""nnU-Net's plans and ``dataset.json``: what they say, and what is said where none can be read."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from medseg.nnunet import channel_names, intensity_range, plan_facts, read_plans
from medseg.nnunet.plans import check_same_plans, settings_of
from medseg.project import UserError
from tests.hippocampus import write_config

PLANS: dict[str, Any] = {
    "configurations": {
        "3d_fullres": {
            "patch_size": [40, 56, 40],
            "spacing": [1, 1.5, 1.0],
            "batch_size": 2,
            "normalization_schemes": ["ZScoreNormalization"],
        },
        "small": {"inherits_from": "3d_fullres", "patch_size": [8, 16, 8]},
    },
    "foreground_intensity_properties_per_channel": {
        "0": {"percentile_00_5": -20.0, "percentile_99_5": 180.0},
        "1": {"percentile_00_5": 3.0, "percentile_99_5": 900.0},
    },
}


def test_what_they_say() -> None:
    facts = plan_facts(PLANS, "small")
    assert (facts.patch_size, facts.spacing, facts.batch_size) == ((8, 16, 8), (1.0, 1.5, 1.0), 2)
    assert facts.normalization == ("ZScoreNormalization",)
    assert settings_of(PLANS, "small")["batch_size"] == 2
    assert intensity_range(PLANS) == (-20.0, 900.0)
    with pytest.raises(UserError, match="'2d' is not in nnU-Net's plans, which hold 3d_fullres, s"):
        plan_facts(PLANS, "2d")


def test_folds_of_different_plans_are_named() -> None:
    other = copy.deepcopy(PLANS)
    other["configurations"]["3d_fullres"]["batch_size"] = 4  # which no prediction depends on
    check_same_plans({"fold_0": PLANS, "fold_1": other}, "small")
    check_same_plans({"fold_0": PLANS}, "small")
    other["configurations"]["3d_fullres"]["spacing"] = [2, 2, 2]
    with pytest.raises(
        UserError, match=r"fold_1 was .* than fold_0: spacing is \[2, 2, 2\], not \[1, 1.5, 1.0\]"
    ):
        check_same_plans({"fold_0": PLANS, "fold_1": other}, "small")
    with pytest.raises(UserError, match="'small' is not in nnU-Net's plans"):
        check_same_plans({"a": PLANS, "b": {"configurations": {"2d": {}}}}, "small")


def test_channels_are_in_the_order_of_their_numbers() -> None:
    names = {str(number): f"c{number}" for number in (10, 2, 0)}
    assert channel_names({"channel_names": names}) == ["c0", "c2", "c10"]
    assert channel_names({"modality": names}) == ["c0", "c2", "c10"]  # an older dataset.json


def test_plans_that_cannot_be_read(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    with pytest.raises(UserError, match=r"nnUNetPlans\.json does not exist: run plan_and_prepro"):
        read_plans(config)
    config.preprocessed_folder.mkdir(parents=True)
    path = config.preprocessed_folder / "nnUNetPlans.json"
    path.write_text(json.dumps(PLANS))
    with pytest.raises(UserError, match=r"dataset\.json does not exist: run plan_and_preprocess"):
        read_plans(config)
    (path.parent / "dataset.json").write_text("{}")
    assert read_plans(config) == (PLANS, {})
    path.write_text(json.dumps(PLANS)[:-9])
    with pytest.raises(
        UserError, match=r"nnUNetPlans\.json is damaged .* or remove it and run pla"
    ):
        read_plans(config)
