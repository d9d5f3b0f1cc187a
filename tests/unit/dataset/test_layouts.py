"""Which files a case is, in either layout, and what a dataset.json says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from medseg.config import DEFAULT_SUFFIXES, TaskConfig, load_config
from medseg.dataset import (
    Case,
    case_hashes,
    cases,
    cases_in,
    channel_names,
    copy_decathlon,
    decathlon_cases,
    files_of,
    read_description,
)
from medseg.project import DataRoot, UserError
from tests.volumes import contents


def make(root: DataRoot, **fields: Any) -> TaskConfig:
    content = {
        "data_dir": "NIFTI",
        "dataset_name_or_id": "4",
        "experiment_name": "T",
        "labels": {"background": 0, "A": 1},
        "modality_dict": {"flair": "_flair.nii.gz", "t1": "_t1.nii", "label": "_seg.nii.gz"},
        "bundle_config": {"bundle_root": "bundle"},
        **fields,
    }
    (root.path / "config.yaml").write_text(yaml.safe_dump(content))
    return load_config("config.yaml", root)


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_subfolders(root: DataRoot) -> None:
    folder = touch(
        root.path / "NIFTI",
        *("a/a_flair.nii.gz", "a/a_t1.nii", "a/a_seg.nii.gz", "a/notes.txt"),
        *("b/b_flair.nii.gz", "b/b_seg.nii.gz"),
        *("c/c_flair.nii.gz", "c/c_t1.nii"),
        *("d/d_seg.nii.gz", ".hidden/x_flair.nii.gz", "dataset.json", "t/t_t1.nii"),
    )
    config = make(root, test_cases=["t"])
    whole = Case(
        "a", (folder / "a/a_flair.nii.gz", folder / "a/a_t1.nii"), folder / "a/a_seg.nii.gz"
    )
    assert files_of(config, "a") == whole
    assert {case.name: case.missing for case in cases(config)} == {
        "a": "",
        "b": "has no image: b/b_t1.nii is missing",
        "c": "has no label: c/c_seg.nii.gz is missing",
        "d": "has no image: d/d_flair.nii.gz is missing",
    }
    assert files_of(config, "t").missing == "has no image: t/t_flair.nii.gz is missing"
    assert [case.name for case in cases_in(folder, config.modality_dict)] == ["a", "b", "c", "t"]
    assert cases_in(folder) == []
    assert channel_names(config) == ["flair", "t1"]
    assert channel_names(make(root, modality_list=["FLAIR", "T1w"])) == ["FLAIR", "T1w"]


def test_decathlon(root: DataRoot) -> None:
    folder = touch(
        root.path / "NIFTI",
        *("imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "imagesTr/b.v2.nii", "labelsTr/b.v2.nii.gz"),
        *("imagesTr/c.nii.gz", "labelsTr/d.nii.gz", "imagesTr/._a.nii.gz", "imagesTr/notes.txt"),
        *("imagesTs/t.nii.gz", "labelsTs/t.nii.gz", "imagesTs/u.nii.gz"),
    )
    (folder / "dataset.json").write_text(json.dumps({"modality": {"1": "T1w", "0": "FLAIR"}}))
    config = make(root, dataset_format="decathlon")
    assert {case.name: case.missing for case in cases(config)} == {
        "a": "",
        "b.v2": "",
        "c": "has no label: labelsTr/c.nii.gz is missing",
        "d": "has no image: imagesTr/d.nii.gz is missing",
    }
    assert files_of(config, "b.v2").images == (folder / "imagesTr/b.v2.nii",)
    assert [case.name for case in cases_in(folder)] == ["a", "b.v2", "c", "t", "u"]
    assert [case.name for case in decathlon_cases(folder, "Ts") if not case.missing] == ["t"]
    assert channel_names(config) == ["FLAIR", "T1w"]
    assert channel_names(make(root, dataset_format="decathlon", modality_list=["a", "b"])) == [
        "a",
        "b",
    ]
    (folder / "dataset.json").unlink()
    assert channel_names(config) == ["flair", "t1"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data_dir": "nowhere"}, "data_dir .*nowhere is not a folder: check data_dir in config"),
        ({"data_dir": "empty"}, "holds no cases of the format 'subfolders'"),
        ({"dataset_format": "decathlon"}, "has no folder imagesTr: .*dataset_format to subfolders"),
        ({"test_cases": ["a", "x"]}, "test_cases names x, which .* does not hold"),
        ({"test_cases": ["a"]}, "holds no cases"),
    ],
)
def test_no_cases(root: DataRoot, fields: dict[str, Any], message: str) -> None:
    touch(root.path / "NIFTI", "a/a_flair.nii.gz")
    (root.path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        cases(make(root, **fields))


def test_descriptions(tmp_path: Path) -> None:
    def described(**content: object) -> tuple[str, tuple[str, ...], dict[str, Any]]:
        (tmp_path / "dataset.json").write_text(json.dumps(content))
        description = read_description(tmp_path)
        return description.name, description.channels, description.labels

    assert read_description(tmp_path).channels == ()  # there is none
    numbered = {str(number): f"c{number}" for number in (10, 9, 0)}
    labels = {"2": "B", "0": "background", "1": "A"}
    by_name = {"B": 2, "background": 0, "A": 1}
    assert described(name="X", modality=numbered, labels=labels) == (
        "X",
        ("c0", "c9", "c10"),
        by_name,
    )
    of_nnunet = {**by_name, "all": [1, 2]}
    assert described(channel_names={"0": "CT"}, labels=of_nnunet) == ("", ("CT",), of_nnunet)
    assert described() == ("", (), {})
    for content in ({"modality": ["CT"]}, {"modality": {"CT": 0}}, {"labels": {"A": "one"}}):
        with pytest.raises(UserError, match=r"dataset\.json is not a Decathlon dataset\.json"):
            described(**content)
    for text in ("[]", "{"):
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(UserError, match=r"dataset\.json is damaged"):
            read_description(tmp_path)


def test_a_copy_leaves_out_what_cannot_be_measured(tmp_path: Path) -> None:
    names = ("imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "imagesTs/t.nii.gz", "labelsTs/t.nii.gz")
    source = touch(tmp_path / "d", *names, "imagesTs/u.nii.gz", "imagesTr/._a.nii.gz", "README")
    with pytest.raises(UserError, match=r"holds no dataset\.json: give a folder in the Decathlon"):
        copy_decathlon(source, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    touch(source, "dataset.json")
    before = contents(source)
    copy_decathlon(source, tmp_path / "copy")
    kept = {
        path.relative_to(tmp_path / "copy").as_posix() for path in (tmp_path / "copy").rglob("*")
    }
    assert {name for name in kept if "." in name or name == "README"} == {
        *names,
        "README",
        "dataset.json",
    }
    assert contents(source) == before


def test_hashes_are_those_of_earlier_versions(root: DataRoot) -> None:
    """They decide whether a model is trained anew."""
    touch(root.path / "NIFTI", "a/a_flair.nii.gz", "a/a_t1.nii", "a/a_seg.nii.gz", "b/b_t1.nii")
    assert case_hashes(make(root)) == {
        "a": "571ca145b3908631f1fc7714180710c66122b27247f69fd88d29f16816f1b65c"
    }
    assert case_hashes(make(root, modality_list=["FLAIR", "T1w"])) != case_hashes(make(root))


def test_the_room_needs_neither_pydicom_nor_torch() -> None:
    """An annotation server with other versions of both imports it."""
    script = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['pydicom', 'torch', 'highdicom', 'nnunetv2']))\n"
        "from medseg import dataset, imaging\n"
        "for room in (dataset, imaging): [getattr(room, name) for name in room.__all__]\n"
        "print([name for name in sys.modules if name.startswith('medseg.dicom')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
    assert DEFAULT_SUFFIXES["label"] == "_label.nii.gz"


def test_what_composing_a_pipeline_installs_is_enough_for_layouts() -> None:
    script = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['numpy', 'nibabel', 'isal', 'jinja2', 'SimpleITK']))\n"
        "import medseg.dataset.layouts, medseg.demo.config\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == ""
