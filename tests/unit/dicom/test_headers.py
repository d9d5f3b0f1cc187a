"""A DICOM SEG is written from, and read back equal for, headers of every kind."""

from __future__ import annotations

import io
import struct
from datetime import datetime
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataset import FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian

from medseg.dicom.header import normalised_header
from medseg.dicom.seg import build_segmentation, paint_segments, read_segments
from medseg.dicom.series import volume_from_instances
from medseg.imaging import Volume

KEYWORDS = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientSex",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "IssuerOfPatientID",
    "EthnicGroup",
    "PatientComments",
    "OtherPatientIDs",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
    "SeriesNumber",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "Manufacturer",
    "ManufacturerModelName",
    "SoftwareVersions",
    "InstitutionName",
    "InstitutionAddress",
    "StationName",
    "AcquisitionDateTime",
    "ClinicalTrialProtocolID",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
    "SOPClassUID",
)

SPELLINGS = ("", "\\ISO 2022 IR 87", "ISO_IR 6", "ISO_IR_6", "latin1", "UTF-8", "ISO_IR_192")
SPELLINGS += ("ISO IR 100", "ISO-IR 100", "ISO_IR 999", "hex", "iso_ir192", "ISO_IR 192\\ISO_IR 6")

VALUES = (
    *(b"", b" ", b"17.05.1980", b"1980-05-17", b"19800517", b"19801399", b"20200230", b"000000"),
    *(b"12:30:15", b"123015.5", b"246060", b"noon", b"M", b"W", b"male", b"040Y", b"40"),
    *(b"1,75", b"1.75", b"NaN", b"1e400", b"-5", b"99999999999", b"YES", b"01", b"1.2.840.1"),
    *(b"A\\B", b"a\nb", b"\x00", b"\x1b$B;3ED\x1b(B", "肝^Grösse".encode(), b"\xff\xfe", b"x" * 80),
)

values = st.one_of(st.sampled_from(VALUES), st.binary(max_size=12))
headers = st.dictionaries(st.sampled_from(KEYWORDS), values)
character_sets = st.sampled_from([None, *SPELLINGS, *(key for key in python_encoding if key)])
sources = st.sampled_from(["single", "oblique", "enhanced", "frames", "private"])
names = st.sampled_from(["Spleen", "Grösse 肝", "Опухоль", "ignore"])
regions = st.booleans()


def element(keyword: str, value: bytes) -> bytes:
    """An element as it lies in a file, right or wrong."""
    value += b" " * (len(value) % 2)
    tag = Tag(keyword)
    vr = dictionary_VR(tag).encode()
    return struct.pack("<HH2sH", tag.group, tag.element, vr, len(value)) + value


def through_a_file(dataset: Dataset, more: bytes) -> Dataset:
    """Writes and reads a dataset; ``more`` stands behind it, which pydicom takes as well."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = io.BytesIO()
    dataset.save_as(file)
    return pydicom.dcmread(io.BytesIO(file.getvalue() + more), force=True)


def source(kind: str, header: dict[str, bytes], character_set: str | None) -> Volume:
    """Three slices of four rows and five columns."""
    turn = np.deg2rad(20 if kind == "oblique" else 0)
    # three decimals: not quite perpendicular, nor of length one
    row = np.round([np.cos(turn), np.sin(turn), 0.0], 3)
    column = np.round([-np.sin(turn), np.cos(turn), 0.0], 3)
    base = Dataset()
    classes = {"private": "1.2.840.999.1"}
    classes |= dict.fromkeys(("enhanced", "frames"), EnhancedMRImageStorage)
    base.SOPClassUID = classes.get(kind, CTImageStorage)
    base.StudyInstanceUID, base.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    base.Modality = "CT"
    base.Rows, base.Columns = 4, 5
    base.SamplesPerPixel, base.PhotometricInterpretation = 1, "MONOCHROME2"
    base.BitsAllocated = base.BitsStored = 16
    base.HighBit, base.PixelRepresentation = 15, 0
    pixels = np.arange(60, dtype=np.uint16).reshape(3, 4, 5)
    places = [[-5.5, 3.25, 2.5 * k] for k in range(3)]
    if kind == "enhanced":
        datasets = [enhanced(base, pixels, places)]
    elif kind == "frames":  # enhanced objects of one frame a file
        datasets = [enhanced(base, pixels[k : k + 1], places[k : k + 1]) for k in range(3)]
    else:
        datasets = []
        for k, place in enumerate(places):
            item = Dataset()
            item.update(base)
            item.SOPInstanceUID = f"1.2.3.4.{k + 1}"
            item.ImagePositionPatient = place
            item.ImageOrientationPatient = [*row.tolist(), *column.tolist()]
            item.PixelSpacing = [0.8, 0.9]
            item.PixelData = pixels[k].tobytes()
            datasets.append(item)
    more = dict(header)
    if more.pop("SOPClassUID", None) is not None and kind in ("single", "oblique"):
        for item in datasets:
            del item.SOPClassUID
    if character_set is not None:
        more["SpecificCharacterSet"] = character_set.encode()
    put = b"".join(element(keyword, value) for keyword, value in more.items())
    return volume_from_instances([through_a_file(item, put) for item in datasets], "the source")


def enhanced(base: Dataset, pixels: np.ndarray, places: list[list[float]]) -> Dataset:
    item = Dataset()
    item.update(base)
    item.SOPInstanceUID = f"1.2.3.4.9.{int(places[0][2] * 10) + 1}"
    item.NumberOfFrames = len(places)
    item.FrameOfReferenceUID = "1.2.3.4.5"
    orientation, measures = Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing, measures.SliceThickness = [0.8, 0.9], 2.5
    shared = Dataset()
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    item.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for place in places:
        position, frame = Dataset(), Dataset()
        position.ImagePositionPatient = place
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    item.PerFrameFunctionalGroupsSequence = frames
    item.PixelData = pixels.tobytes()
    return item


def check(
    kind: str, header: dict[str, bytes], character_set: str | None, name: str, overlap: bool
) -> None:
    if kind in ("enhanced", "frames"):  # highdicom reads it by its UIDs
        header = {key: value for key, value in header.items() if "UID" not in key}
    volume = source(kind, header, character_set)
    mask = np.zeros(volume.shape, np.uint8)
    mask[1:3, 1:3, 1:], mask[4, 3, 0] = 1, 2
    labels: dict[str, Any] = {"background": 0, name: [1, 2] if overlap else 1, "Core": 2}
    written = io.BytesIO()
    build_segmentation(mask, volume, labels).save_as(written)
    written.seek(0)
    back = pydicom.dcmread(written)
    segments = read_segments(back)
    assert [segment.name for segment in segments] == [name, "Core"]
    read = np.zeros_like(mask)
    paint_segments(back, {1: 1}, read, volume)
    core = np.zeros_like(mask)
    paint_segments(back, {2: 1}, core, volume)
    read[core == 1] = 2
    np.testing.assert_array_equal(read, mask)

    assert (back.StudyInstanceUID, back.FrameOfReferenceUID.is_valid) == ("1.2.3", True)
    (series,) = back.ReferencedSeriesSequence
    instances = {item.SOPInstanceUID for item in volume.instances}
    assert series.SeriesInstanceUID == "1.2.3.4"
    assert {
        item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence
    } == instances
    frame = back.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0]
    assert frame.SourceImageSequence[0].ReferencedSOPInstanceUID in instances
    for keyword in ("PatientBirthDate", "StudyDate"):
        if back[keyword].value:
            datetime.strptime(back[keyword].value, "%Y%m%d")
    assert back.PatientSex in ("", "M", "F", "O")
    assert 1000 <= int(back.SeriesNumber) < 2**31
    again = normalised_header(back)  # what is in order stays as it is
    for keyword in ("PatientName", "PatientID", "AccessionNumber", "StudyDescription"):
        assert str(again.get(keyword, "")) == str(back.get(keyword) or "")


ARGUMENTS: dict[str, Any] = {
    "kind": sources,
    "header": headers,
    "character_set": character_sets,
    "name": names,
    "overlap": regions,
}


# what pydicom says of spellings of character sets; the library itself lets nobody hear it
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@settings(max_examples=500, derandomize=True, database=None, deadline=None)
@given(**ARGUMENTS)
def test_every_header_gives_a_segmentation(**drawn: Any) -> None:
    check(**drawn)
