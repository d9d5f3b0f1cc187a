"""Studies to a dataset: which series, which segments, which case; and what must not leak."""

from __future__ import annotations

import logging
import shutil
import stat
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from medseg.config import TaskConfig
from medseg.dataset import collect_dataset
from medseg.dicom import convert_studies, list_studies, read_image, write_segmentation
from medseg.dicom.cases import pseudonym
from medseg.dicom.sources import open_source
from medseg.dicom.to_nifti import ConvertedStudies
from medseg.imaging import read_nifti
from medseg.project import CasesFailedError, DataRoot, UserError
from tests.volumes import contents

CASE = "PGBM-002"
MakeConfig = Callable[..., TaskConfig]


def convert(root: DataRoot, **options: Any) -> ConvertedStudies:
    list_studies(root, "DICOM", "NIFTI")
    return convert_studies(root, "DICOM", 0, "NIFTI", **options)


def failure(root: DataRoot, case: str = CASE, **options: Any) -> str:
    def lies_there() -> dict[str, bytes]:
        found = contents(root.path)
        notes = (".medseg", "NIFTI/.medseg", "NIFTI/dataset.json")  # these tell of the failure
        return {name: found[name] for name in found if not name.startswith(notes)}

    before = lies_there()
    with pytest.raises(CasesFailedError) as caught:
        convert(root, **options)
    assert lies_there() == before
    return caught.value.reasons[case]


def draw(
    patient: Path, series: str, labels: dict[str, int], *, person: bool = True, column: int = 100
) -> Path:
    """Draws one box per label on a series and writes the SEG beside it."""
    volume = read_image(patient / series)
    mask = np.zeros(volume.shape, np.uint8)
    for value in labels.values():
        mask[column : column + 10, 100 * value : 100 * value + 10, 3:6] = value
    path = patient / f"seg-{series}-{column}.dcm"
    algorithm = "" if person else "A network"
    return write_segmentation(mask, volume, path, labels, algorithm_name=algorithm)


def label_of(root: DataRoot) -> np.ndarray:
    return np.asarray(read_nifti(root.path / f"NIFTI/{CASE}/{CASE}_label.nii.gz").array)


# --- which series ---


def test_two_channels_by_their_keys(patient: Path, root: DataRoot, make_config: MakeConfig) -> None:
    suffixes = {"FLAIRreg": "_0.nii.gz", "t1-post": "_1.nii.gz", "label": "_seg.nii.gz"}
    draw(patient, "T1post", {"tumor": 1})
    config = make_config(modality_dict=suffixes)
    assert convert(root, config=config).cases == (CASE,)
    for suffix, series in (("_0", "FLAIRreg"), ("_1", "T1post")):
        found = read_nifti(root.path / f"NIFTI/{CASE}/{CASE}{suffix}.nii.gz")
        np.testing.assert_array_equal(found.array, read_image(patient / series).array)
    assert read_nifti(root.path / f"NIFTI/{CASE}/{CASE}_seg.nii.gz").array.sum() == 300
    dataset = collect_dataset(root, "NIFTI", config=config)["dataset"]
    assert dataset["channels"] == {"FLAIRreg": "_0.nii.gz", "t1-post": "_1.nii.gz"}


def test_channel_that_fits_no_or_several_series(
    patient: Path, root: DataRoot, make_config: MakeConfig
) -> None:
    suffixes = {"ADC": "_0.nii.gz", "T1": "_1.nii.gz", "label": "_seg.nii.gz"}
    message = failure(root, config=make_config(modality_dict=suffixes))
    assert "the channel 'ADC' fits none of the study's image series" in message
    assert "MR 'FLAIR_reg' (22 instances)" in message
    suffixes = {"MR": "_0.nii.gz", "T1": "_1.nii.gz", "label": "_seg.nii.gz"}
    assert "the channel 'MR' fits MR" in failure(root, config=make_config(modality_dict=suffixes))
    suffixes = {"T1": "_0.nii.gz", "T1post": "_1.nii.gz", "label": "_seg.nii.gz"}
    message = failure(root, config=make_config(modality_dict=suffixes))
    assert "two channels fit the same series" in message


def test_segmentation_chooses_the_series(patient: Path, root: DataRoot) -> None:
    assert "2 image series" in failure(root)
    draw(patient, "FLAIRreg", {"Tumor": 1})
    convert(root)
    found = read_nifti(root.path / f"NIFTI/{CASE}/{CASE}_image.nii.gz")
    np.testing.assert_array_equal(found.array, read_image(patient / "FLAIRreg").array)
    assert label_of(root).sum() == 300


def test_channels_off_each_other(patient: Path, root: DataRoot, make_config: MakeConfig) -> None:
    for path in (patient / "FLAIRreg").iterdir():
        dataset = pydicom.dcmread(path)
        x, y, z = map(float, dataset.ImagePositionPatient)
        dataset.ImagePositionPatient = [x + 0.1, y, z]
        dataset.save_as(path)
    suffixes = {"T1": "_0.nii.gz", "FLAIR": "_1.nii.gz", "label": "_seg.nii.gz"}
    message = failure(root, config=make_config(modality_dict=suffixes))
    assert "lies 0.1 mm off" in message


def test_study_without_images_is_skipped(patient: Path, root: DataRoot) -> None:
    draw(patient, "T1post", {"Tumor": 1})
    for series in ("T1post", "FLAIRreg"):
        shutil.rmtree(patient / series)
    found = convert(root)
    assert found.skipped[CASE].startswith("the study holds no CT, MR or PT series, but a DICOM SEG")
    assert found.cases == ()


# --- which segments ---


@pytest.fixture
def one_series(patient: Path) -> Path:
    shutil.rmtree(patient / "FLAIRreg")
    return patient


def test_no_segmentation_no_label(one_series: Path, root: DataRoot) -> None:
    convert(root)
    assert not (root.path / f"NIFTI/{CASE}/{CASE}_label.nii.gz").exists()
    found = collect_dataset(root, "NIFTI")
    assert found["dataset"]["cases_without_label"] == [CASE]
    assert found["rows"][0].warnings == ("no label: the study has no DICOM SEG of this image",)


def test_names_decide_with_a_config(
    one_series: Path, root: DataRoot, make_config: MakeConfig
) -> None:
    draw(one_series, "T1post", {"EDEMA": 1, "Tumor": 2})
    convert(root)
    assert label_of(root)[100, 200, 3] == 2
    config = make_config(labels={"background": 0, "tumor": 1, "Edema": 2})
    convert(root, config=config)  # other labels: converted again
    assert label_of(root)[100, 200, 3] == 1
    assert label_of(root)[100, 100, 3] == 2

    message = failure(root, config=make_config())
    assert "the segment 'EDEMA', which the config's labels do not declare" in message
    assert label_of(root)[100, 200, 3] == 1  # what was there is kept


def test_person_before_algorithm_and_later_before_earlier(one_series: Path, root: DataRoot) -> None:
    first = draw(one_series, "T1post", {"Tumor": 1}, person=False, column=20)
    convert(root)
    assert label_of(root)[20:30].sum() == 300
    warnings = collect_dataset(root, "NIFTI")["rows"][0].warnings
    assert warnings == ("the label was made by an algorithm alone",)

    draw(one_series, "T1post", {"Tumor": 1}, column=50)
    convert(root)
    assert label_of(root)[50:60].sum() == label_of(root).sum() == 300
    warnings = collect_dataset(root, "NIFTI")["rows"][0].warnings
    assert warnings == ("segments that only an algorithm made were left out",)

    corrected = pydicom.dcmread(draw(one_series, "T1post", {"Tumor": 1}, column=80))
    corrected.ContentDate = "29991231"
    corrected.save_as(one_series / "seg-T1post-80.dcm")
    first.unlink()
    convert(root)
    assert label_of(root)[80:90].sum() == label_of(root).sum() == 300


def test_segments_in_several_files(
    one_series: Path, root: DataRoot, make_config: MakeConfig
) -> None:
    draw(one_series, "T1post", {"Tumor": 1}, column=20)
    draw(one_series, "T1post", {"Edema": 1}, column=50)
    assert "give a config, whose labels then decide by name" in failure(root)
    convert(root, config=make_config(labels={"background": 0, "Tumor": 1, "Edema": 2}))
    assert label_of(root)[25, 105, 4] == 1
    assert label_of(root)[55, 105, 4] == 2


def test_nested_regions(one_series: Path, root: DataRoot, make_config: MakeConfig) -> None:
    volume = read_image(one_series / "T1post")
    whole = np.zeros(volume.shape, np.uint8)
    whole[10:30, 10:30, 5] = 1
    core = np.zeros(volume.shape, np.uint8)
    core[15:20, 15:20, 5] = 1
    write_segmentation(core, volume, one_series / "core.dcm", {"core": 1}, algorithm_name="")
    write_segmentation(whole, volume, one_series / "whole.dcm", {"whole": 1}, algorithm_name="")
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    convert(root, config=make_config(labels=labels, regions_class_order=[1, 2]))
    np.testing.assert_array_equal(label_of(root), whole + core)


@pytest.mark.parametrize("shared", [True, False])
def test_regions_that_overlap_without_one_in_the_other(
    one_series: Path, root: DataRoot, make_config: MakeConfig, shared: bool
) -> None:
    volume = read_image(one_series / "T1post")
    left, right = np.zeros((2, *volume.shape), np.uint8)
    left[10:25, 10:30, 5] = 1
    right[20:35, 10:30, 5] = 1
    write_segmentation(left, volume, one_series / "left.dcm", {"left": 1}, algorithm_name="")
    write_segmentation(right, volume, one_series / "right.dcm", {"right": 1}, algorithm_name="")
    labels = {"background": 0, "left": [1, 3], "right": [2, 3] if shared else 2}
    config = make_config(labels=labels, regions_class_order=[1, 2])
    if shared:
        convert(root, config=config)
        np.testing.assert_array_equal(label_of(root), left + 2 * right)
    else:
        assert "100 voxels lie in left and right at once" in failure(root, config=config)


def test_segmentation_of_another_geometry(one_series: Path, root: DataRoot) -> None:
    path = draw(one_series, "T1post", {"Tumor": 1})
    dataset = pydicom.dcmread(path)
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [0.5, 0.5]
    dataset.save_as(path)
    assert "the segmentation has different geometry than PGBM-002" in failure(root)


def test_cases_that_name_a_label_differently(one_series: Path, root: DataRoot) -> None:
    draw(one_series, "T1post", {"Tumor": 1})
    for number in (1, 2):
        other_patient(root, f"P{number}", "Tumor" if number == 1 else "Cyst")
    convert(root)
    found = collect_dataset(root, "NIFTI")
    assert found["dataset"]["labels"] == {"background": 0, "Tumor": 1}
    warned = {row.case: row.warnings for row in found["rows"] if row.warnings}
    assert list(warned) == ["P2"]
    assert "label 1 is 'Cyst' here but 'Tumor' in most cases" in warned["P2"][0]
    assert "Cyst" in found["html"]


# --- which case ---


def other_patient(root: DataRoot, patient_id: str, label: str = "", day: str = "20200101") -> str:
    """Copies T1post as the study of another patient (or another study of the same)."""
    uid = pydicom.uid.generate_uid()
    folder = root.path / "DICOM" / uid
    folder.mkdir()
    series = pydicom.uid.generate_uid()
    for path in (root.path / "DICOM" / "T1post").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.PatientID, dataset.StudyInstanceUID, dataset.StudyDate = patient_id, uid, day
        dataset.SeriesInstanceUID, dataset.SOPInstanceUID = series, pydicom.uid.generate_uid()
        dataset.save_as(folder / path.name)
    if label:
        volume = read_image(folder)
        mask = np.zeros(volume.shape, np.uint8)
        mask[10:20, 10:20, 5] = 1
        write_segmentation(mask, volume, folder / "seg.dcm", {label: 1}, algorithm_name="")
    return str(uid)


def test_two_studies_of_a_patient(one_series: Path, root: DataRoot) -> None:
    other_patient(root, CASE, day="20210101")
    other_patient(root, "Ärzte/1 2")
    assert sorted(convert(root).cases) == [CASE, f"{CASE}_2", "rzte_1_2"]
    # A study from before, found later, does not rename what is there.
    other_patient(root, CASE, day="20190101")
    found = convert(root)
    assert found.converted == (f"{CASE}_3",)


def test_pseudonyms_are_stable_and_private(one_series: Path, root: DataRoot) -> None:
    (case,) = convert(root, deidentify=True).cases
    assert case == pseudonym(root, CASE)
    assert case.startswith("case-")
    assert CASE not in case
    assert convert(root, deidentify=True).converted == ()
    collect_dataset(root, "NIFTI")
    for path in (root.path / "NIFTI").rglob("*"):
        assert CASE not in path.name
        if path.suffix == ".json":
            assert CASE not in path.read_text()
    secrets = list((root.path / ".medseg" / "dicom").glob("*.key"))
    secrets += (root.path / ".medseg" / "dicom").glob("*.json")
    assert len(secrets) == 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}


def test_a_failed_case_loses_no_other(
    one_series: Path, root: DataRoot, make_config: MakeConfig
) -> None:
    broken = one_series / other_patient(root, "P1")
    middle = pydicom.dcmread(broken / "000010.dcm").InstanceNumber
    (broken / "000010.dcm").unlink()
    with pytest.raises(CasesFailedError, match="1 of 2 cases failed") as caught:
        convert(root)
    between = f"1 slice is missing between instances {middle - 1} and {middle + 1}"
    assert between in caught.value.reasons["P1"]
    assert (root.path / f"NIFTI/{CASE}/{CASE}_image.nii.gz").is_file()
    assert convert(root, config=make_config(max_failed_cases=1)).cases == (CASE,)


# --- sources ---


def test_the_source_is_only_read(one_series: Path, root: DataRoot) -> None:
    def listing() -> list[tuple[str, int, int]]:
        return sorted(
            (str(path), path.stat().st_size, path.stat().st_mtime_ns)
            for path in [one_series, *one_series.rglob("*")]
        )

    before = listing()
    for path in [*one_series.rglob("*"), one_series]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        convert(root)
        assert listing() == before
    finally:
        for path in [one_series, *one_series.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_only_changed_headers_are_read_again(
    one_series: Path, root: DataRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = pydicom.dcmread

    def spy(path: Any, **options: Any) -> Any:
        read.append(Path(path).name)
        return real(path, **options)

    monkeypatch.setattr(pydicom, "dcmread", spy)
    open_source(root, "DICOM")
    assert len(read) == 22
    (one_series / "T1post" / "000003.dcm").touch()
    open_source(root, "file:///mnt/Data/DICOM")
    assert read[22:] == ["000003.dcm"]


def test_what_a_kill_left_is_removed(one_series: Path, root: DataRoot) -> None:
    left = root.path / "NIFTI" / CASE / ".partial-0123abcd-PGBM-002_image.nii.gz"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    convert(root)
    assert not left.exists()


def test_files_that_are_no_dicom_do_not_matter(one_series: Path, root: DataRoot) -> None:
    (one_series / "notes.txt").write_text("hello")
    (one_series / "DICOMDIR").write_bytes(b"\0" * 200)
    shutil.copytree(one_series / "T1post", one_series / "copy")  # the same instances again
    convert(root)
    image = read_nifti(root.path / f"NIFTI/{CASE}/{CASE}_image.nii.gz")
    assert image.shape == (512, 512, 22)


def test_sources_that_cannot_be(root: DataRoot) -> None:
    (root.path / "empty").mkdir()
    (root.path / "empty" / "notes.txt").write_text("hello")
    for studies, message in (
        ("empty", "empty holds no DICOM files"),
        ("file:///mnt/Data/nowhere", "does not exist"),
        ("file:///etc", "outside the data root"),
        ("ftp://server/folder", "ftp:// is not supported"),
        ("https://me:hunter2@server/dicom-web", "carries a user name or password"),
        ("http://127.0.0.1:9/dicom-web", "cannot be reached"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            list_studies(root, studies, "NIFTI")
        assert "hunter2" not in str(caught.value)
    with pytest.raises(UserError, match="holds no converted case"):
        collect_dataset(root, "NIFTI")
    assert contents(root.path / "empty") == {"notes.txt": b"hello"}
    assert not (root.path / "NIFTI").exists()


def test_a_server_that_is_busy_for_a_moment(root: DataRoot) -> None:
    answers = [503, 429, 204]

    class Busy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answers.pop(0))
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(UserError, match="holds no studies"):
                list_studies(root, f"http://127.0.0.1:{server.server_port}", "NIFTI")
        finally:
            server.shutdown()
    assert answers == []


def test_nothing_tells_who_the_patient_is(
    one_series: Path,
    root: DataRoot,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    """Output, logs at every level, warnings and all files hold no name, birth date or age."""
    for path in (one_series / "T1post").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.PatientName, dataset.PatientBirthDate = "Avasarala", "19480229"
        dataset.save_as(path)
    draw(one_series, "T1post", {"Tumor": 1})
    with caplog.at_level(logging.DEBUG):
        convert(root)
        found = collect_dataset(root, "NIFTI")
        path = next((one_series / "T1post").iterdir())
        path.unlink()
        failure(root)
    captured = capsys.readouterr()
    told = [captured.out, captured.err, caplog.text, str(found)]
    told += [str(item.message) for item in recwarn]
    told += [path.read_text() for path in root.path.rglob("*.json")]
    assert CASE in captured.out
    for text in told:
        assert "avasarala" not in text.lower()
        assert "19480229" not in text
