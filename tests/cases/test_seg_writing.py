"""DICOM SEG from sources that other tools choke on, through the public command."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import yaml

from medseg.config import TaskConfig, load_config
from medseg.dataset import read_quality
from medseg.dicom import read_image
from medseg.dicom.seg import paint_segments, read_segments
from medseg.project import DataRoot
from tests.cases.conftest import run, run_pipeline
from tests.cases.threshold import write_threshold_model

LABELS: dict[str, Any] = {"background": 0, "Low": 1, "High": 2}
REGIONS: dict[str, Any] = {"background": 0, "Whole": [1, 2], "Core": 2}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_threshold_model(tmp_path_factory.mktemp("model") / "model.ts", LABELS)


def segment(source: Path, model: Path, output: Path) -> str:
    done = run("segment", source, "--model", model, "-o", output, "--no-tta")
    assert done.exit_code == 0, done.output
    return done.output


def copied(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    return folder


def edit(folder: Path, **values: bytes) -> None:
    """Puts values into all files as they are, right or wrong."""
    for path in folder.glob("*.dcm"):
        dataset = pydicom.dcmread(path)
        for keyword, value in values.items():
            tag = pydicom.tag.Tag(keyword)
            vr = pydicom.datadict.dictionary_VR(tag)
            value += b" " * (len(value) % 2)
            dataset[tag] = pydicom.dataelem.RawDataElement(
                tag, vr, len(value), value, 0, False, True
            )
        dataset.save_as(path)


def check_dicom(path: Path) -> None:
    if shutil.which("dciodvfy") is None and not os.environ.get("CI"):
        return
    done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
    assert "Error" not in done.stderr, done.stderr


def painted(path: Path, source: Path, values: dict[int, int]) -> np.ndarray:
    image = read_image(source)
    back = np.zeros(image.shape, np.uint8)
    for number, value in values.items():
        one = np.zeros(image.shape, np.uint8)
        paint_segments(pydicom.dcmread(path), {number: 1}, one, image)
        back[one == 1] = value
    return back


@pytest.mark.parametrize("case", ["C04_noframe", "C43_stripped", "C42_jp"])
def test_sources_that_lack_attributes(
    case: str, real_data: Path, model: Path, tmp_path: Path
) -> None:
    source = real_data / "cases/seg_writing_needs_attributes/DICOM" / case
    output = segment(source, model, tmp_path / "out.dcm")
    assert "Zzyzx" not in output
    assert "warn" not in output.lower()
    written = pydicom.dcmread(tmp_path / "out.dcm")
    first = pydicom.dcmread(source / "IM0001.dcm")
    assert written.FrameOfReferenceUID == first.get(
        "FrameOfReferenceUID", written.FrameOfReferenceUID
    )
    assert written.get("PatientName") == first.get("PatientName", "")
    image = read_image(source)
    expected = (image.array > 100).astype(np.uint8) + (image.array > 400)
    np.testing.assert_array_equal(painted(tmp_path / "out.dcm", source, {1: 1, 2: 2}), expected)
    check_dicom(tmp_path / "out.dcm")
    again = segment(source, model, tmp_path / "again.dcm")
    assert "Zzyzx" not in again
    assert (
        pydicom.dcmread(tmp_path / "again.dcm").FrameOfReferenceUID == written.FrameOfReferenceUID
    )


def test_a_birth_date_that_is_none(
    real_data: Path, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = real_data / "cases/seg_writing_needs_attributes/DICOM/C04_noframe"
    source = copied(case, tmp_path / "in")
    edit(source, PatientBirthDate=b"17.05.1980", StudyDate=b"2020-01-31", PatientSex=b"W")
    edit(source, StudyTime=b"12 Uhr", PatientAge=b"40", PatientWeight=b"schwer")
    edit(source, SeriesNumber=b"eins", AccessionNumber=b"A" * 20)
    output = segment(source, model, tmp_path / "out.dcm")
    assert "1980" not in output + caplog.text
    written = pydicom.dcmread(tmp_path / "out.dcm")
    assert (written.PatientBirthDate, written.StudyTime, written.PatientSex) == ("", "", "")
    assert written.StudyDate == "20200131"
    assert written.AccessionNumber == "A" * 20  # whole, so that the SEG goes to its study


@pytest.mark.parametrize("character_set", [None, "ISO_IR 100", "ISO_IR_192", "latin1"])
def test_a_name_that_the_character_set_cannot_hold(
    character_set: str | None, real_data: Path, tmp_path: Path
) -> None:
    case = real_data / "cases/seg_writing_needs_attributes/DICOM/C04_noframe"
    source = copied(case, tmp_path / "in")
    if character_set is not None:
        name = "Müller^Jörg".encode("utf-8" if "192" in character_set else "latin-1")
        edit(source, SpecificCharacterSet=character_set.encode(), PatientName=name)
    labels = {"background": 0, "Grösse 肝": 1, "High": 2}
    model = write_threshold_model(tmp_path / "model.ts", labels)
    segment(source, model, tmp_path / "out.dcm")
    written = pydicom.dcmread(tmp_path / "out.dcm")
    assert written.SpecificCharacterSet == "ISO_IR 192"
    assert [segment.name for segment in read_segments(written)] == ["Grösse 肝", "High"]
    assert written.PatientName == ("Müller^Jörg" if character_set else "Zzyzx^Marker")
    check_dicom(tmp_path / "out.dcm")


def test_a_segment_holds_what_its_name_says(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "cases/seg_writing_needs_attributes/DICOM/C04_noframe"
    model = write_threshold_model(tmp_path / "model.ts", REGIONS, [1, 2])
    segment(source, model, tmp_path / "out.dcm")
    image = read_image(source)
    for number, (name, threshold) in enumerate((("Whole", 100), ("Core", 400)), start=1):
        one = painted(tmp_path / "out.dcm", source, {number: 1})
        np.testing.assert_array_equal(one, image.array > threshold, err_msg=name)
    check_dicom(tmp_path / "out.dcm")


@pytest.mark.parametrize("name", ["reg", "regign"])
def test_regions_come_and_go(name: str, real_data: Path, root: DataRoot) -> None:
    case = real_data / "cases/regions_with_ignore"
    copied(case / "DICOM", root.path / "DICOM")
    config_path = root.path / f"{name}.yaml"
    shutil.copyfile(case / "configs" / f"{name}.yaml", config_path)
    config = load_config(config_path, root)
    path = converted_label(root, "DICOM", config)
    label = np.asarray(nibabel.load(path).dataobj)
    assert dict(zip(*np.unique(label, return_counts=True), strict=True)) == {
        0: label.size - 349,
        1: 331,
        2: 18,
    }
    (row,) = read_quality(config.data_folder)
    assert row.volumes_ml["Whole"] == pytest.approx(0.628, abs=1e-3)

    if "ignore" in config.labels:
        label[0, 0, 0] = 3
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(label, image.affine, image.header), path)
    done = run_pipeline(
        "nifti_to_dicom",
        root,
        input_folder=f"NIFTI/{name}",
        output="BACK",
        config_file_path=config_path.name,
    )
    assert done.exit_code == 0, done.output
    (written,) = (root.path / "BACK").rglob("SEG/*.dcm")
    check_dicom(written)
    content = yaml.safe_load(config_path.read_text())
    content["data_dir"] = "/mnt/Data/NIFTI/again"
    config_path.write_text(yaml.safe_dump(content, sort_keys=False))
    path = converted_label(root, "BACK", load_config(config_path, root))
    np.testing.assert_array_equal(np.asarray(nibabel.load(path).dataobj), label)


def converted_label(root: DataRoot, folder: str, config: TaskConfig) -> Path:
    """The label of the one case that dicom_to_nifti makes of a folder."""
    done = run_pipeline(
        "dicom_to_nifti",
        root,
        studies=f"file:///mnt/Data/{folder}",
        config_file_path=config.path.name,
    )
    assert done.exit_code == 0, done.output
    (path,) = config.data_folder.glob("*/*_label.nii.gz")
    return path
