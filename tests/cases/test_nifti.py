"""NIfTI inputs that were once got wrong: each has its right value, or a sentence."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import yaml

from medseg.config import load_config
from medseg.imaging import read_nifti, write_nifti
from medseg.nnunet import prepare_dataset
from medseg.project import DataRoot, UserError
from tests.cases.conftest import run, run_pipeline, words

FOREGROUND = 1954  # of the phantom in most folders, by the model of these tests


def segmented(model: Path, source: Path, target: Path) -> int:
    done = run("segment", source, "--model", model, "-o", target, "--device", "cpu")
    assert done.exit_code == 0, done.output
    return int(np.count_nonzero(read_nifti(target).array))


@pytest.mark.parametrize(
    "name",
    ["sform_qform_spacing/ok.nii.gz", "sform_qform_spacing/sqform2.nii",
     "xyzt_units_meter/meter.nii.gz", "nan_voxels_empty/ok.nii.gz"],
)  # fmt: skip
def test_one_geometry(
    cases: Path, model: Path, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert segmented(model, cases / name, tmp_path / "out.nii.gz") == FOREGROUND
    volume = read_nifti(tmp_path / "out.nii.gz")
    assert volume.spacing == pytest.approx((1.2, 1.2, 2.0), abs=1e-5)
    assert "WARNING" not in capfd.readouterr().err


def test_disagreeing_forms_are_told(cases: Path, model: Path, tmp_path: Path) -> None:
    source = cases / "sform_qform_spacing" / "sqform2.nii"
    done = run("segment", source, "--model", model, "-o", tmp_path / "o.nii.gz", "--device", "cpu")
    assert (
        "sqform2.nii: its sform says voxels of 0.6 x 0.6 x 1 mm, its pixdim of 1.2 x 1.2 x 2 mm: "
        "pixdim is taken, as nnU-Net does" in done.output
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gzip_damage_segmented/corrupt.nii.gz", "it does not unpack to what was packed"),
        ("gzip_damage_segmented/bad_3rand.nii.gz", "it does not unpack to what was packed"),
        ("truncated_label_trained_on/imagesTr/i_cut.nii.gz", "it does not unpack"),
        ("rgb_and_broken_headers/rgb.nii.gz", r"holds colours \(RGB\) \(NIfTI datatype 128\)"),
        ("rgb_and_broken_headers/complex.nii.gz", "holds complex numbers"),
        ("rgb_and_broken_headers/baddtype.nii", r"unknown type \(NIfTI datatype 999\)"),
        ("nan_voxels_empty/nan.nii.gz", r"5184 voxels that are not finite \(NaN or infinite\)"),
    ],
)
def test_a_sentence(cases: Path, model: Path, tmp_path: Path, name: str, message: str) -> None:
    done = run("segment", cases / name, "--model", model, "-o", tmp_path / "o.nii.gz")
    assert done.exit_code == 1
    assert isinstance(done.exception, UserError | SystemExit), done.exception
    said = words(done) + str(done.exception)
    assert Path(name).name in said
    assert re.search(message, said), said
    assert not (tmp_path / "o.nii.gz").exists()


@pytest.mark.parametrize("given", ["", "amos_0001.nii.gz", "amos_0002.nii.gz"])
def test_four_digits_that_number_cases(
    cases: Path, model: Path, tmp_path: Path, given: str
) -> None:
    source = cases / "four_digit_case_numbers" / "amos" / given
    done = run("segment", source, "--model", model, "-o", tmp_path, "--device", "cpu")
    assert done.exit_code == 0, done.output
    names = [given] if given else ["amos_0001.nii.gz", "amos_0002.nii.gz"]
    assert sorted(path.name for path in tmp_path.glob("*.nii.gz")) == names
    for name in names:
        assert np.count_nonzero(read_nifti(tmp_path / name).array) == FOREGROUND


def dataset(root: DataRoot, source: Path, name: str, config: Path | None = None) -> Path:
    """Copies a case's dataset to NIFTI/NAME and fills it up to five intact cases."""
    folder = root.path / "NIFTI" / name
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    add_cases(folder, source)
    content = {
        "data_dir": f"/mnt/Data/NIFTI/{name}",
        "dataset_format": "decathlon",
        "dataset_name_or_id": "11",
        "experiment_name": name,
        "modality_list": ["CT"],
        "labels": {"background": 0, "Spleen": 1},
        "bundle_config": {"bundle_root": "B"},
        **(yaml.safe_load(config.read_text()) if config else {}),
        "num_processes": 1,
        "device": "cpu",
        "max_failed_cases": 50,
    }
    (root.path / "config.yaml").write_text(yaml.safe_dump(content))
    return folder


def add_cases(folder: Path, source: Path) -> None:
    for part in ("imagesTr", "labelsTr"):
        for path in (source / part).glob("*"):
            shutil.copyfile(path, folder / part / path.name)


def repeat_case(folder: Path) -> None:
    """Makes five cases of one."""
    for part in ("imagesTr", "labelsTr"):
        for index in range(1, 5):
            shutil.copyfile(folder / part / "c0.nii.gz", folder / part / f"c{index}.nii.gz")


def add_intact(folder: Path, count: int = 5) -> None:
    random = np.random.default_rng(0)
    for index in range(count):
        label = np.zeros((8, 9, 10), np.uint8)
        label[2:5, 2:5, 2:5] = 1
        image = (random.normal(0, 9, label.shape) + 100 * label).astype(np.int16)
        write_nifti(image, np.eye(4), folder / "imagesTr" / f"ok{index}.nii.gz")
        write_nifti(label, np.eye(4), folder / "labelsTr" / f"ok{index}.nii.gz")


def test_damaged_files_are_not_trained_on_and_almost_one_is_one(
    cases: Path, root: DataRoot
) -> None:
    source = cases / "truncated_label_trained_on"
    folder = dataset(root, source, "A", source / "A.yaml")
    add_cases(folder, cases / "almost_one_label")
    add_intact(folder, 3)
    done = run_pipeline("plan_and_preprocess", root, config_file_path="config.yaml")
    assert done.exit_code == 0, done.output
    for file in ("imagesTr/i_cut.nii.gz", "labelsTr/l_cut.nii.gz"):
        assert f"{file} cannot be read as NIfTI: " in words(done)
    raw = load_config("config.yaml", root).raw_folder
    names = {path.name.removesuffix(".nii.gz") for path in (raw / "labelsTr").iterdir()}
    assert names == {"ok0", "ok1", "ok2", "i_notgz", "l_almost1"}
    stored = nibabel.load(raw / "labelsTr" / "l_almost1.nii.gz")
    original = nibabel.load(folder / "labelsTr" / "l_almost1.nii.gz")
    assert stored.get_data_dtype().kind == "u"
    assert np.array_equal(np.asarray(stored.dataobj), np.rint(original.get_fdata()))


def test_no_foreground_anywhere(cases: Path, root: DataRoot) -> None:
    source = cases / "all_background"
    repeat_case(dataset(root, source, "B_allbg", source / "B_allbg.yaml"))
    for _ in range(2):  # the second time from the cases' records
        done = run_pipeline("plan_and_preprocess", root, config_file_path="config.yaml")
        assert done.exit_code == 1
        assert "no case has a voxel of any label (1): check" in words(done)


def test_the_ignore_label_is_no_foreground(cases: Path, root: DataRoot) -> None:
    source = cases / "ignore_in_fingerprint"
    folder = dataset(root, source, "D_ignore", source / "D_ignore.yaml")
    repeat_case(folder)
    done = run_pipeline("plan_and_preprocess", root, config_file_path="config.yaml")
    assert done.exit_code == 0, done.output
    preprocessed = load_config("config.yaml", root).preprocessed_folder
    measured = json.loads((preprocessed / "dataset_fingerprint.json").read_text())
    mean = measured["foreground_intensity_properties_per_channel"]["0"]["mean"]
    image = read_nifti(folder / "imagesTr" / "c0.nii.gz").array
    label = read_nifti(folder / "labelsTr" / "c0.nii.gz").array
    assert mean == pytest.approx(image[label == 1].mean(), abs=0.1)
    assert mean == pytest.approx(119.6, abs=1)


def test_damaged_labels_become_no_dicom(cases: Path, root: DataRoot) -> None:
    dataset(root, cases / "corrupt_label_into_dicom", "A")
    done = run_pipeline(
        "nifti_to_dicom", root, input_folder="NIFTI/A", output="DICOM", modality="CT"
    )
    assert done.exit_code == 1
    assert "labelsTr/l_corrupt.nii.gz cannot be read as NIfTI" in words(done)
    assert not list((root.path / "DICOM").rglob("*.dcm"))


def test_metres_into_dicom(cases: Path, root: DataRoot) -> None:
    folder = root.path / "NIFTI"
    (folder / "imagesTr").mkdir(parents=True)
    shutil.copy(cases / "xyzt_units_meter" / "meter.nii.gz", folder / "imagesTr")
    done = run_pipeline("nifti_to_dicom", root, input_folder="NIFTI", output="DICOM", modality="CT")
    assert done.exit_code == 0, done.output
    first = pydicom.dcmread(next((root.path / "DICOM").rglob("*.dcm")))
    assert [float(value) for value in first.PixelSpacing] == pytest.approx([1.2, 1.2])
    assert float(first.SliceThickness) == pytest.approx(2)


def test_endings_in_capitals_and_nnunets_names(root: DataRoot) -> None:
    folder = dataset(root, root.path / "none", "A")
    add_intact(folder)
    for index, ending in enumerate((".NII.GZ", "_0000.nii.gz", ".NII", "_0000.Nii.Gz")):
        path = folder / "imagesTr" / f"ok{index}.nii.gz"
        if ending == ".NII":
            path.write_bytes(gzip.decompress(path.read_bytes()))
        path.rename(path.with_name(f"ok{index}{ending}"))
    assert prepare_dataset(load_config("config.yaml", root))["cases"] == [
        f"ok{index}" for index in range(5)
    ]
