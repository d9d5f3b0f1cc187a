"""DICOM SEG for a real series: what it says, what it refuses, how it is placed."""

from __future__ import annotations

import warnings
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from highdicom.seg import Segmentation

from medseg.dicom import read_image, write_segmentation
from medseg.dicom.seg import paint_segments, read_segments
from medseg.imaging import Volume
from medseg.project import UserError


@pytest.fixture
def volume(patient: Path) -> Volume:
    return read_image(patient / "T1post")


@pytest.fixture
def mask(volume: Volume) -> np.ndarray:
    mask = np.zeros(volume.shape, np.uint8)
    mask[100:200, 50:90, 3:5] = 1
    mask[300:310, 50:90, [7, 12]] = 2
    return mask


LABELS = {"background": 0, "Spleen": 1, "my finding": 2, "Never there": 3}


def test_refers_to_its_series(volume: Volume, mask: np.ndarray, tmp_path: Path) -> None:
    path = write_segmentation(mask, volume, tmp_path / "seg.dcm", LABELS)
    segmentation = pydicom.dcmread(path)
    source = volume.instances[0]
    assert segmentation.StudyInstanceUID == source.StudyInstanceUID
    assert segmentation.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert segmentation.PatientID == "PGBM-002"
    assert segmentation.PatientName == source.PatientName
    (referenced,) = segmentation.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == source.SeriesInstanceUID
    assert [segment.name for segment in read_segments(segmentation)] == list(LABELS)[1:]
    spleen, finding, _ = segmentation.SegmentSequence
    assert spleen.SegmentedPropertyTypeCodeSequence[0].CodeValue == "78961009"  # SNOMED CT
    assert finding.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    assert spleen.SegmentAlgorithmType == "AUTOMATIC"
    # Every frame names the slice that lies where it lies.
    places = {item.SOPInstanceUID: item.ImagePositionPatient for item in volume.instances}
    assert len(segmentation.PerFrameFunctionalGroupsSequence) == 4
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        (origin,) = frame.DerivationImageSequence[0].SourceImageSequence
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(places[origin.ReferencedSOPInstanceUID], place, atol=1e-2)


def test_defaults_are_replaced_by_a_task_file(
    volume: Volume, mask: np.ndarray, tmp_path: Path
) -> None:
    segments = [
        {
            "segment_label": "spleen",
            "segmented_property_category": {"code": "1", "scheme": "99X", "meaning": "Organ"},
            "segmented_property_type": {"code": "2", "scheme": "99X", "meaning": "My spleen"},
            "algorithm_name": "Segmentation-Spleen",
        }
    ]
    path = write_segmentation(mask, volume, tmp_path / "seg.dcm", LABELS, segments=segments)
    spleen = pydicom.dcmread(path).SegmentSequence[0]
    assert spleen.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Organ"
    assert spleen.SegmentedPropertyTypeCodeSequence[0].CodeValue == "2"
    assert spleen.SegmentAlgorithmName == "Segmentation-Spleen"

    segments[0]["segment_label"] = "Liver"
    with pytest.raises(UserError, match="segment_label 'Liver' is none of the labels"):
        write_segmentation(mask, volume, tmp_path / "seg.dcm", LABELS, segments=segments)


def test_equal_masks_give_equal_uids(volume: Volume, mask: np.ndarray, tmp_path: Path) -> None:
    def uid(mask: np.ndarray) -> str:
        path = write_segmentation(mask, volume, tmp_path / "seg.dcm", LABELS)
        return str(pydicom.dcmread(path).SOPInstanceUID)

    first = uid(mask)
    assert uid(mask.astype(np.int64)) == first
    mask[0, 0, 0] = 1
    assert uid(mask) != first


def test_empty_mask(volume: Volume, mask: np.ndarray, tmp_path: Path) -> None:
    path = write_segmentation(mask * 0, volume, tmp_path / "seg.dcm", LABELS)
    back = np.zeros_like(mask)
    paint_segments(pydicom.dcmread(path), {1: 1, 2: 2, 3: 3}, back, volume)
    assert not back.any()


def test_no_patient_name_in_warnings(volume: Volume, mask: np.ndarray, tmp_path: Path) -> None:
    """highdicom quotes a name without components in a warning."""
    volume.instances[0].PatientName = "Avasarala"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path = write_segmentation(mask, volume, tmp_path / "seg.dcm", LABELS)
    assert not [str(item.message) for item in caught if "Avasarala" in str(item.message)]
    assert pydicom.dcmread(path).PatientName == "Avasarala"


def test_refusals(volume: Volume, mask: np.ndarray, tmp_path: Path) -> None:
    def refused(mask: np.ndarray, reference: Volume, labels: dict[str, int]) -> str:
        with pytest.raises(UserError) as caught:
            write_segmentation(mask, reference, tmp_path / "seg.dcm", labels)
        assert not (tmp_path / "seg.dcm").exists()
        return str(caught.value)

    assert "holds the label 2, which no segment declares" in refused(mask, volume, {"Spleen": 1})
    assert "no label names a segment" in refused(mask * 0, volume, {"background": 0})
    assert "has 65 characters" in refused(mask, volume, {"x" * 65: 1, "y": 2})
    assert "resample the mask" in refused(mask[:, :, 1:], volume, LABELS)
    assert "holds fractions" in refused(mask * 0.5, volume, LABELS)
    nifti = Volume(volume.array, volume.affine, "case.nii.gz")
    assert "case.nii.gz is no DICOM series" in refused(mask, nifti, LABELS)


def foreign(volume: Volume, pixels: np.ndarray, kind: str) -> Segmentation:
    """A SEG as another program writes it: all in highdicom's terms (slice, row, column)."""
    return Segmentation(
        list(volume.instances),
        pixels,
        kind,
        [
            highdicom.seg.SegmentDescription(
                number, name, pydicom.sr.codedict.codes.SCT.Tissue, code, "MANUAL"
            )
            for number, (name, code) in enumerate(
                (
                    ("Spleen", pydicom.sr.codedict.codes.SCT.Spleen),
                    ("Liver", pydicom.sr.codedict.codes.SCT.Liver),
                ),
                start=1,
            )
        ],
        *(pydicom.uid.generate_uid(), 7, pydicom.uid.generate_uid(), 1),
        *("Other", "Program", "1", "1"),
        max_fractional_value=100,
    )


def test_fractional_counts_from_one_half(volume: Volume) -> None:
    pixels = np.zeros((*volume.shape[::-1], 2), np.float32)
    pixels[3, 10:20, 30, 0] = 0.49
    pixels[3, 10:20, 31, 0] = 0.5
    segmentation = foreign(volume, pixels, "FRACTIONAL")
    back = np.zeros(volume.shape, np.uint8)
    paint_segments(segmentation, {1: 5}, back, volume)
    expected = np.zeros(volume.shape, np.uint8)
    expected[31, 10:20, 3] = 5
    np.testing.assert_array_equal(back, expected)


def test_overlap_is_refused(volume: Volume) -> None:
    pixels = np.zeros((*volume.shape[::-1], 2), np.uint8)
    pixels[3, 10:20, 30:40, 0] = 1
    pixels[3, 15:18, 30:33, 1] = 1
    segmentation = foreign(volume, pixels, "BINARY")
    back = np.zeros(volume.shape, np.uint8)
    with pytest.raises(UserError, match="9 voxels belong to both label 1 and label 2"):
        paint_segments(segmentation, {1: 1, 2: 2}, back, volume)


def test_another_geometry_is_refused(volume: Volume) -> None:
    pixels = np.zeros((*volume.shape[::-1], 2), np.uint8)
    pixels[3, 10:20, 30:40, 0] = 1
    segmentation = foreign(volume, pixels, "BINARY")
    back = np.zeros(volume.shape, np.uint8)
    for change in (
        np.diag([1, 1, 1.02, 1]),  # another slice spacing
        np.array([[1, 0, 0, 0.4], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),  # between the voxels
        np.diag([2, 2, 1, 1]),  # half the resolution
    ):
        other = Volume(volume.array, volume.affine @ change, "T1post")
        with pytest.raises(UserError, match="different geometry than T1post"):
            paint_segments(segmentation, {1: 1}, back, other)
    cropped = Volume(volume.array[:, :12], volume.affine, "T1post")
    with pytest.raises(UserError, match="reaches outside the image"):
        paint_segments(segmentation, {1: 1}, back[:, :12], cropped)
    assert not back.any()
