"""What the demo lays out before it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.demo.walkthrough import prepare_demo
from medseg.project import DataRoot, UserError
from tests.unit.demo.test_demo_config import decathlon
from tests.volumes import contents


def test_a_real_decathlon_dataset(root: DataRoot, tmp_path: Path) -> None:
    dataset = decathlon(tmp_path / "Task04_Hippocampus", 9)
    demo = prepare_demo(root, dataset)
    copied = root.path / "decathlon" / "Task04_Hippocampus"
    assert len(list((copied / "imagesTr").iterdir())) == 9  # without the files of macOS
    assert list((copied / "imagesTs").iterdir()) == []  # without images that have no label
    assert (dataset / "imagesTs" / "unlabelled.nii.gz").is_file()
    assert demo.config.test_cases == ["case_6", "case_7", "case_8"]
    assert [name for name, _ in demo.runs] == ["nifti_to_dicom", "lifecycle"]

    config = root.path / "configs" / "Task04_Hippocampus_config.yaml"
    config.write_text(config.read_text().replace("num_epochs: 9", "num_epochs: 2"))
    assert prepare_demo(root, dataset).config.num_epochs == 2  # what the user changed stays


def test_no_decathlon_dataset(root: DataRoot, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no dataset\.json.*Decathlon format"):
        prepare_demo(root, tmp_path)
    assert contents(tmp_path) == {}
