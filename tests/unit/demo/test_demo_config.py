"""The demo's config, for phantoms and for any Decathlon dataset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medseg.config import load_config
from medseg.demo import demo_config, generate_phantoms, write_demo_config
from medseg.project import DataRoot, UserError


def decathlon(folder: Path, cases: int, **described: object) -> Path:
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / name).mkdir(parents=True)
    for number in range(cases):
        for name in ("imagesTr", "labelsTr"):
            (folder / name / f"case_{number}.nii.gz").touch()
            (folder / name / f"._case_{number}.nii.gz").touch()
    (folder / "imagesTs" / "unlabelled.nii.gz").touch()
    content = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "A"}} | described
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_phantoms_config_loads(root: DataRoot) -> None:
    source = root.path / "source"
    generate_phantoms(source, training_cases=1, test_cases=2)
    write_demo_config(root.path / "configs/c.yaml", source, "Task09_SpleenPhantom")
    config = load_config("configs/c.yaml", root)
    assert config.dataset_name == "Dataset009_Task09_SpleenPhantom"
    assert config.labels == {"background": 0, "spleen": 1}
    assert config.modality_list == ["CT"]
    assert config.test_cases == ["phantom_002", "phantom_003"]
    assert config.data_folder == root.path / "NIFTI/Task09_SpleenPhantom"


def test_real_decathlon_holds_cases_back(root: DataRoot) -> None:
    source = decathlon(
        root.path / "source",
        12,
        modality={"0": "FLAIR", "1": "T1w"},
        labels={"2": "B", "0": "Background", "1": "A"},
    )
    write_demo_config(root.path / "c.yaml", source, "Brains")
    config = load_config("c.yaml", root)
    assert config.test_cases == ["case_7", "case_8", "case_9"]  # the last by name
    assert config.channels == {"FLAIR": "_FLAIR.nii.gz", "T1w": "_T1w.nii.gz"}
    assert config.labels == {"background": 0, "B": 2, "A": 1}
    assert config.dataset_id == 1


@pytest.mark.parametrize(("cases", "held_back"), [(5, 0), (6, 1), (8, 3), (40, 3)])
def test_training_keeps_five_cases(tmp_path: Path, cases: int, held_back: int) -> None:
    config = demo_config(decathlon(tmp_path / "d", cases), "Task04")
    assert len(config["test_cases"]) == held_back


def test_bad_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no dataset\.json.*Decathlon format"):
        demo_config(tmp_path, "x")
    (tmp_path / "dataset.json").write_text('{"labels": []}')
    with pytest.raises(UserError, match=r"dataset\.json is not a Decathlon dataset\.json"):
        demo_config(tmp_path, "x")
