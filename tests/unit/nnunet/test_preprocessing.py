"""environment and plan_and_preprocess on real cases."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from medseg.config import TaskConfig
from medseg.nnunet import environment, plan_and_preprocess, prepare_dataset
from medseg.nnunet.preprocessing import preprocessed
from medseg.project import UserError
from tests.hippocampus import copy_cases, write_config
from tests.volumes import Volume, contents

from .conftest import read_until, run_stage


def test_environment_also_reaches_imported_modules(tmp_path: Path) -> None:
    from nnunetv2.utilities import dataset_name_id_conversion as imported

    first, second = tmp_path / "first", tmp_path / "second"
    for root in (first, second):
        root.mkdir()
        config = write_config(root)
        with environment(config, nnUNet_n_proc_DA="0"):
            assert str(root) in os.environ["nnUNet_results"]  # noqa: SIM112
            assert imported.nnUNet_raw == str(config.raw_folder.parent)
            assert sys.modules["nnunetv2.paths"].nnUNet_preprocessed == (
                str(config.preprocessed_folder.parent)
            )
            assert os.environ["nnUNet_n_proc_DA"] == "0"  # noqa: SIM112
    assert "nnUNet_n_proc_DA" not in os.environ
    assert imported.nnUNet_raw == os.environ.get("nnUNet_raw")  # noqa: SIM112


def test_a_second_run_repeats_nothing(preprocessed_root: Path) -> None:
    config = write_config(preprocessed_root)
    folder = config.preprocessed_folder
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    result = plan_and_preprocess(config)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    assert result.patch_size == [40, 56, 40]
    assert result.normalization == ["ZScoreNormalization"]
    assert result == preprocessed(config)
    splits = json.loads((folder / "splits_final.json").read_text())
    assert [len(fold["val"]) for fold in splits] == [2, 1, 1, 1, 1]


def test_a_configuration_of_the_users_own_shares_the_cases(preprocessed_root: Path) -> None:
    own = plan_and_preprocess(write_config(preprocessed_root, configuration="tiny"))
    full = plan_and_preprocess(write_config(preprocessed_root))
    assert own.cases == full.cases
    assert own.plans_hash != full.plans_hash


def test_a_kill_loses_no_finished_case(shared_data: Path, tmp_path: Path) -> None:
    copy_cases(shared_data, tmp_path / "NIFTI")
    config = write_config(tmp_path, num_processes=1)
    prepare_dataset(config)
    process = run_stage(config, "plan_and_preprocess")
    read_until(process, "[6/6] case read")  # nnU-Net's own progress is passed on
    read_until(process, "[2/6]")
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(UserError, match="not preprocessed: run plan_and_preprocess first"):
        preprocessed(config)
    folder = config.preprocessed_folder / "nnUNetPlans_3d_fullres"
    records = {path: path.stat().st_mtime_ns for path in (folder / ".medseg").glob("*.json")}
    assert 2 <= len(records) < 6

    result = plan_and_preprocess(config)
    assert len(result.cases) == 6
    assert {path: path.stat().st_mtime_ns for path in records} == records
    for case in result.cases:
        assert (folder / f"{case}.b2nd").is_file()
        assert (config.preprocessed_folder / "gt_segmentations" / f"{case}.nii.gz").is_file()
    assert not list(folder.glob(".partial*"))

    # the dataset shrinks: its files, references and nnU-Net's split follow
    gone = result.cases[0]
    (config.data_folder / "imagesTr" / f"{gone}.nii.gz").unlink()
    (config.data_folder / "labelsTr" / f"{gone}.nii.gz").unlink()
    prepare_dataset(config)
    assert gone not in plan_and_preprocess(config).cases
    assert not (folder / f"{gone}.b2nd").exists()
    assert gone not in (config.preprocessed_folder / "splits_final.json").read_text()


def test_a_split_of_the_users_own_is_not_replaced(own_root: Path) -> None:
    config = write_config(own_root)
    path = config.preprocessed_folder / "splits_final.json"
    cases = plan_and_preprocess(config).cases
    path.write_text(json.dumps([{"train": cases[:4], "val": [*cases[4:], "vanished"]}]))
    next((config.preprocessed_folder / ".medseg").glob("preprocess-*3d_fullres.json")).unlink()
    with pytest.raises(UserError, match=r"names cases that the dataset no longer holds .vanished"):
        plan_and_preprocess(config)
    own = [{"train": cases[:4], "val": cases[4:]}]
    path.write_text(json.dumps(own))
    plan_and_preprocess(config)
    assert json.loads(path.read_text()) == own


def test_a_full_disk(trained_volume: Volume, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(trained_volume.folder, num_processes=1)
    folder = config.preprocessed_folder / "nnUNetPlans_3d_fullres"
    lost = sorted(folder.glob("*_seg.b2nd"))[0]
    lost.unlink()
    with trained_volume.full("plan_and_preprocess", capsys, free=8192):  # Blosc2 writes it
        plan_and_preprocess(config)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.pkl")}
    assert len(plan_and_preprocess(config).cases) == 6
    assert lost.is_file()
    after = {path: path.stat().st_mtime_ns for path in folder.glob("*.pkl")}
    assert len(before.items() & after.items()) == 5  # the others are not made again


def refuses(config: TaskConfig, message: str) -> None:
    """``plan_and_preprocess`` refuses the config, and everything is as it was."""
    before = contents(config.root.path)
    with pytest.raises(UserError, match=message):
        plan_and_preprocess(config)
    assert contents(config.root.path) == before


def test_a_configuration_that_the_plans_lack(preprocessed_root: Path) -> None:
    config = write_config(preprocessed_root, configuration="3d_lowres")
    refuses(config, "no '3d_lowres'; they have 2d, 3d_fullres, tiny")


def test_a_dataset_that_is_not_prepared(tmp_path: Path) -> None:
    refuses(write_config(tmp_path), "run prepare_dataset first")


def test_labels_that_changed_since_the_dataset_was_prepared(own_root: Path) -> None:
    config = write_config(own_root, labels={"background": 0, "Front": 1, "Back": 2})
    refuses(config, "made for other labels: run prepare_dataset")
