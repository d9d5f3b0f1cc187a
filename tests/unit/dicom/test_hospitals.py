"""What hospitals send, and what of a folder is told of when it is not used."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import EnhancedCTImageStorage, SurfaceSegmentationStorage, generate_uid

from medseg.dataset import collect_dataset
from medseg.dicom import (
    convert_studies,
    list_studies,
    open_source,
    open_target,
    read_image,
    write_segmentation,
)
from medseg.imaging import read_nifti
from medseg.project import CasesFailedError, DataRoot, UserError
from tests.unit.dicom.phantom import phantom, write_series

HU = phantom().astype(int) - 1024


def check(folder: Path) -> None:
    """The series is the phantom."""
    volume = read_image(folder)
    np.testing.assert_array_equal(volume.array, HU.transpose(2, 1, 0))
    np.testing.assert_allclose(volume.spacing, (0.9, 0.8, 2.5))


def table(root: DataRoot, **options: Any) -> dict[str, tuple[str, ...]]:
    """Converts the folder ``DICOM``; warnings of each row of the quality table."""
    list_studies(root, "DICOM", "NIFTI")
    convert_studies(root, "DICOM", 0, "NIFTI", **options)
    collected = collect_dataset(root, "NIFTI")
    rows = {row.left_out: row.warnings for row in collected["left_out"]}
    assert all(name in collected["html"] for name in rows)
    return rows | {row.case: row.warnings for row in collected["rows"]}


def raw(path: Path, old: bytes, new: bytes) -> None:
    """Replaces bytes of a file."""
    content = path.read_bytes()
    assert len(old) == len(new)
    assert old in content
    path.write_bytes(content.replace(old, new))


# --- numbers ---


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"0.8\\0.9 ", b"0,8\\0,9 "), (b"0.8\\0.9 ", b" 0.8\\.9\0"), (b"2.5 ", b"2,5\0")],
)
def test_near_numbers(tmp_path: Path, old: bytes, new: bytes) -> None:
    for path in write_series(tmp_path / "x"):
        raw(path, old, new)
    check(tmp_path / "x")


def test_what_is_no_number_is_said(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "x")
    raw(paths[2], b"0.8\\0.9 ", b"Hi\\there")
    with pytest.raises(UserError, match=r"IM0003.dcm \(instance 3\) has no PixelSpacing") as caught:
        read_image(tmp_path / "x")
    assert "there" not in str(caught.value)
    raw(paths[2], b"Hi\\there", b"0.8\\0.9 ")
    raw(paths[1], b"-1024", b"-1-24")
    with pytest.raises(UserError, match=r"RescaleIntercept of IM0002.dcm \(instance 2\) is not a"):
        read_image(tmp_path / "x")


def test_rescale_that_does_not_fit_int32(tmp_path: Path) -> None:
    def edit(_: int, dataset: Dataset) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = 4000000, 0

    write_series(tmp_path / "x", edit)
    found = read_image(tmp_path / "x").array
    np.testing.assert_array_equal(found, (phantom().astype(np.int64) * 4000000).transpose(2, 1, 0))

    def huge(_: int, dataset: Dataset) -> None:
        dataset.RescaleSlope = "1e300"

    write_series(tmp_path / "y", huge)
    with pytest.raises(UserError, match="larger than float32 holds"):
        read_image(tmp_path / "y")


@pytest.mark.parametrize("axis", [(1, 0, 0, 0, 1, 0), (0.8, 0, -0.6, 0, 1, 0)])
@pytest.mark.parametrize("spacing", [0.625, 0.75, 1.25, 2.35])
def test_rounded_positions(tmp_path: Path, spacing: float, axis: tuple[float, ...]) -> None:
    normal = np.cross(axis[:3], axis[3:])

    def edit(number: int, dataset: Dataset) -> None:
        dataset.ImageOrientationPatient = list(axis)
        place = np.array([-50.3, -60, 100]) + number * spacing * normal
        dataset.ImagePositionPatient = [f"{value:.1f}" for value in place]
        dataset.SliceThickness = spacing

    write_series(tmp_path / "x", edit)
    assert read_image(tmp_path / "x").spacing[2] == pytest.approx(spacing, abs=1e-6) or spacing > 1
    assert read_image(tmp_path / "x").spacing[2] == pytest.approx(spacing, abs=0.04)


# --- objects ---


def as_enhanced(number: int, dataset: Dataset) -> None:
    """Moves place and rescale of a slice into functional groups."""
    dataset.SOPClassUID, dataset.NumberOfFrames = EnhancedCTImageStorage, 1

    def group(*keywords: str) -> Items:
        item = Dataset()
        for keyword in keywords:
            item[keyword] = dataset[keyword]
            del dataset[keyword]
        return Items([item])

    frame, shared = Dataset(), Dataset()
    frame.PlanePositionSequence = group("ImagePositionPatient")
    shared.PlaneOrientationSequence = group("ImageOrientationPatient")
    shared.PixelMeasuresSequence = group("PixelSpacing", "SliceThickness")
    frame.PixelValueTransformationSequence = group("RescaleSlope", "RescaleIntercept")
    dataset.PerFrameFunctionalGroupsSequence = Items([frame])
    dataset.SharedFunctionalGroupsSequence = Items([shared])


def test_enhanced_objects_of_one_frame(tmp_path: Path) -> None:
    write_series(tmp_path / "x", as_enhanced)
    check(tmp_path / "x")


def test_orientation_apart_without_a_word_of_localizer(tmp_path: Path) -> None:
    def edit(number: int, dataset: Dataset) -> None:
        if number == 1:
            dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]

    write_series(tmp_path / "x", edit)
    with pytest.raises(UserError, match=r"IM0002.dcm \(instance 2\) differ .* leave them out"):
        read_image(tmp_path / "x")


# --- folders ---


def test_links_to_folders(root: DataRoot, tmp_path: Path) -> None:
    write_series(root.path / "elsewhere" / "a")
    write_series(tmp_path / "outside", patient="P2")
    studies = root.path / "DICOM"
    studies.mkdir()
    (studies / "link").symlink_to(root.path / "elsewhere")
    (studies / "round").symlink_to(studies)
    (studies / "out").symlink_to(tmp_path / "outside")
    (studies / "gone.dcm").symlink_to(root.path / "nothing")
    os.mkfifo(studies / "pipe")
    rows = table(root)
    assert set(rows) == {"P1", "out", "gone.dcm", "pipe"}
    assert rows["out"] == ("left out: a link out of the data root: copy the files there",)
    assert "leads nowhere" in rows["gone.dcm"][0]


def test_files_of_other_kinds(root: DataRoot) -> None:
    paths = write_series(root.path / "DICOM" / "x")
    (root.path / "DICOM" / "readme.txt").write_text("hello")
    (root.path / "DICOM" / "x" / "again.dcm").write_bytes(paths[0].read_bytes())
    rows = table(root)
    assert rows["readme.txt"] == ("left out: it is no DICOM file",)
    assert "(x/IM0001.dcm was read)" in rows["x/again.dcm"][0] or (
        "(x/again.dcm was read)" in rows["x/IM0001.dcm"][0]
    )
    assert any("SOPInstanceUID of another file" in warning for warning in rows["P1"])


def test_names_of_files_do_not_tell_who_a_pseudonym_is(
    root: DataRoot, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = root.path / "DICOM" / "Avasarala"
    write_series(folder)
    write_series(root.path / "DICOM" / "Avasarala2", patient="P2")[2].unlink()
    (folder / "IM0009.dcm").write_bytes(b"")
    paths = sorted((root.path / "DICOM" / "Avasarala2").iterdir())
    paths[0].write_bytes(paths[0].read_bytes()[:-20])
    rows = table(root, deidentify=True, max_failed_cases=1)
    assert any(name.startswith("file ") for name in rows)
    told = capsys.readouterr().out + (root.path / "NIFTI" / "dataset.json").read_text()
    assert "vasarala" not in told


# --- studies ---


def drawn(folder: Path, target: Path, edit: Callable[[Dataset], None]) -> None:
    volume = read_image(folder)
    mask = np.zeros(volume.shape, np.uint8)
    mask[1:3, 1:3, 1:3] = 1
    path = write_segmentation(mask, volume, target, {"Lesion": 1}, algorithm_name="")
    dataset = pydicom.dcmread(path)
    edit(dataset)
    dataset.save_as(path)


def test_segmentations_that_are_not_read(root: DataRoot) -> None:
    folder = root.path / "DICOM" / "x"
    write_series(folder)

    def surface(dataset: Dataset) -> None:
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SurfaceSegmentationStorage

    def other_study(dataset: Dataset) -> None:
        dataset.StudyInstanceUID = generate_uid()
        dataset.PatientID = "P7"

    def other_series(dataset: Dataset) -> None:
        dataset.SOPInstanceUID = generate_uid()
        dataset.FrameOfReferenceUID = generate_uid()
        dataset.ReferencedSeriesSequence[0].SeriesInstanceUID = generate_uid()

    drawn(folder, root.path / "surface.dcm", surface)
    drawn(folder, root.path / "study.dcm", other_study)
    drawn(folder, root.path / "series.dcm", other_series)
    for name in ("surface", "study", "series"):
        (root.path / f"{name}.dcm").rename(folder / f"{name}.dcm")
    rows = table(root)
    assert "give it the StudyInstanceUID of the study that it was drawn on" in rows["P7"][0]
    told = "; ".join(rows["P1"])
    assert "x/surface.dcm (instance 1) of modality SEG was left out: it is not of class" in told
    assert "x/series.dcm (instance 1), a DICOM SEG, was left out: it refers to another" in told


def test_the_table_is_written_whatever_fails(root: DataRoot) -> None:
    write_series(root.path / "DICOM" / "a")
    write_series(root.path / "DICOM" / "b", patient="P2")[1].unlink()
    list_studies(root, "DICOM", "NIFTI", shards=2)
    outcomes = {}
    for shard in (0, 1):
        try:
            outcomes[shard] = convert_studies(root, "DICOM", shard, "NIFTI").cases
        except CasesFailedError as error:
            outcomes[shard] = tuple(error.reasons)
    assert sorted(outcomes.values()) == [("P1",), ("P2",)]
    content = json.loads((root.path / "NIFTI" / "dataset.json").read_text())
    assert content["cases"] == ["P1"]
    (lost,) = [row for row in content["quality"] if row.get("left_out") == "P2"]
    assert "1 slice is missing between instances 1 and 3" in lost["warnings"][0]
    for shard in (0, 1):
        convert_studies(root, "DICOM", shard, "NIFTI", max_failed_cases=1)
    assert read_nifti(root.path / "NIFTI/P1/P1_image.nii.gz").shape == (5, 6, 4)


def test_a_record_that_is_none_of_ours(root: DataRoot) -> None:
    record = root.path / "NIFTI" / "a" / ".medseg" / "dicom_to_nifti.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"result": {"case": "a"}}))
    with pytest.raises(UserError, match=r"dicom_to_nifti.json is no record of a converted case"):
        collect_dataset(root, "NIFTI")


@pytest.mark.parametrize("url", ["http://", "https:/server/x", "http://[::1", "http://a:b@c:port/"])
def test_malformed_urls(root: DataRoot, url: str) -> None:
    with pytest.raises(UserError, match=r"studies: the https? URL is malformed") as caught:
        open_source(root, url)
    assert "b@" not in str(caught.value)
    with pytest.raises(UserError, match=r"output: the https? URL is malformed"):
        open_target(root, url)
