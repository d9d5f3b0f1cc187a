"""From instances to a volume, on real MR series and on what breaks them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from highdicom.legacy import LegacyConvertedEnhancedMRImage
from pydicom.uid import ImplicitVRLittleEndian, RLELossless, generate_uid

from medseg.dicom import read_image, write_segmentation
from medseg.dicom.seg import paint_segments
from medseg.imaging import write_nifti
from medseg.project import UserError


@pytest.fixture
def t1(patient: Path) -> Path:
    """The folder of the T1post series: 22 slices, oblique."""
    return patient / "T1post"


def change(folder: Path, edit: Callable[[int, pydicom.Dataset], None]) -> None:
    """Edits every file, counted along the slice normal."""
    datasets = {path: pydicom.dcmread(path) for path in folder.iterdir()}
    ordered = sorted(datasets, key=lambda path: datasets[path].ImagePositionPatient[2])
    for number, path in enumerate(ordered):
        edit(number, datasets[path])
        datasets[path].save_as(path)


def test_same_voxels_and_places_as_simpleitk(t1: Path, tmp_path: Path) -> None:
    volume = read_image(t1)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(t1)))
    theirs = reader.Execute()
    np.testing.assert_array_equal(
        volume.array.transpose(2, 1, 0), SimpleITK.GetArrayFromImage(theirs)
    )
    np.testing.assert_allclose(volume.spacing, theirs.GetSpacing(), atol=1e-4)
    for index in ((0, 0, 0), (511, 0, 21), (13, 400, 7)):
        x, y, z = theirs.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(volume.affine @ [*index, 1], [-x, -y, z, 1], atol=1e-2)
    # ... and what we write of it reads the same.
    write_nifti(volume.array, volume.affine, tmp_path / "t1.nii.gz")
    ours = SimpleITK.ReadImage(str(tmp_path / "t1.nii.gz"))
    np.testing.assert_allclose(ours.GetOrigin(), theirs.GetOrigin(), atol=1e-2)
    np.testing.assert_allclose(ours.GetDirection(), theirs.GetDirection(), atol=1e-5)
    np.testing.assert_array_equal(read_image(tmp_path / "t1.nii.gz").array, volume.array)


def test_rescale_and_transfer_syntaxes(t1: Path) -> None:
    plain = read_image(t1).array

    def rescale(number: int, dataset: pydicom.Dataset) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = "2", "-1024"
        if number % 2:
            dataset.compress(RLELossless)

    change(t1, rescale)
    np.testing.assert_array_equal(read_image(t1).array, plain.astype(int) * 2 - 1024)

    def halve(_: int, dataset: pydicom.Dataset) -> None:
        dataset.RescaleSlope = "0.5"

    change(t1, halve)
    found = read_image(t1).array
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, plain * 0.5 - 1024)


def test_implicit_little_endian(t1: Path) -> None:
    plain = read_image(t1).array
    for path in t1.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        dataset.save_as(path, implicit_vr=True, little_endian=True)
    np.testing.assert_array_equal(read_image(t1).array, plain)


def test_damaged_pixels(t1: Path) -> None:
    def cut(_: int, dataset: pydicom.Dataset) -> None:
        dataset.PixelData = dataset.PixelData[:1000]

    change(t1, cut)
    with pytest.raises(UserError, match=r"cannot be decoded \(Explicit VR Little Endian\)"):
        read_image(t1)


def test_enhanced_multi_frame(t1: Path, tmp_path: Path) -> None:
    """The same series as one instance gives the same volume, and can carry a segmentation."""
    slices = read_image(t1)
    datasets = [pydicom.dcmread(path) for path in t1.iterdir()]
    enhanced = LegacyConvertedEnhancedMRImage(datasets, generate_uid(), 1, generate_uid(), 1)
    enhanced.save_as(tmp_path / "enhanced.dcm")
    volume = read_image(tmp_path / "enhanced.dcm")
    np.testing.assert_array_equal(volume.array, slices.array)
    np.testing.assert_allclose(volume.affine, slices.affine, atol=1e-2)
    mask = (volume.array > 3000).astype(np.uint8)
    path = write_segmentation(mask, volume, tmp_path / "seg.dcm", {"Bright": 1})
    back = np.zeros_like(mask)
    paint_segments(pydicom.dcmread(path), {1: 1}, back, slices)
    np.testing.assert_array_equal(back, mask)


def test_missing_slice(t1: Path) -> None:
    def edit(number: int, dataset: pydicom.Dataset) -> None:
        dataset.InstanceNumber = number + 1

    change(t1, edit)
    for path in list(t1.iterdir()):
        if pydicom.dcmread(path).InstanceNumber in (9, 10):
            path.unlink()
    with pytest.raises(UserError, match="2 slices are missing between instances 8 and 11"):
        read_image(t1)


def test_slice_twice(t1: Path) -> None:
    def edit(number: int, dataset: pydicom.Dataset) -> None:
        if number == 5:
            position = dataset.ImagePositionPatient
            edit.position = position  # type: ignore[attr-defined]
        if number == 6:
            dataset.ImagePositionPatient = edit.position  # type: ignore[attr-defined]

    change(t1, edit)
    with pytest.raises(UserError, match="two slices lie at the same place"):
        read_image(t1)


def test_uneven_spacing(t1: Path) -> None:
    def edit(number: int, dataset: pydicom.Dataset) -> None:
        if number > 10:
            normal = np.cross(
                dataset.ImageOrientationPatient[:3], dataset.ImageOrientationPatient[3:]
            )
            moved = np.array(dataset.ImagePositionPatient, float) + 1.5 * normal
            dataset.ImagePositionPatient = [f"{value:.4f}" for value in moved]

    change(t1, edit)
    with pytest.raises(UserError, match=r"slice spacing varies from 6\.5 to 8 mm"):
        read_image(t1)


def test_sheared_slices(t1: Path) -> None:
    def edit(number: int, dataset: pydicom.Dataset) -> None:
        x, y, z = map(float, dataset.ImagePositionPatient)
        dataset.ImagePositionPatient = [x, y + number, z]

    change(t1, edit)
    with pytest.raises(UserError, match="tilted gantry"):
        read_image(t1)


def test_mixed_sizes_orientations_and_places(t1: Path) -> None:
    def size(number: int, dataset: pydicom.Dataset) -> None:
        if number == 3:
            dataset.Rows = 511

    def orientation(number: int, dataset: pydicom.Dataset) -> None:
        dataset.Rows = 512
        if number == 3:
            dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]

    def place(number: int, dataset: pydicom.Dataset) -> None:
        if number == 3:
            del dataset.ImagePositionPatient

    for edit, message in (
        (size, "mixes image sizes (512x511, 512x512)"),
        (orientation, "mixes orientations"),
        (place, "has no ImagePositionPatient"),
    ):
        change(t1, edit)
        with pytest.raises(UserError) as caught:
            read_image(t1)
        assert message in str(caught.value)


def test_what_is_no_image(patient: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"exactly one image series .*'FLAIR_reg' \(22 instances\)"):
        read_image(patient)
    with pytest.raises(UserError, match="does not exist"):
        read_image(tmp_path / "nothing")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.dcm").write_text("no DICOM")
    with pytest.raises(UserError, match="holds no DICOM files"):
        read_image(tmp_path / "text")
    (tmp_path / "image.nii.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match="cannot be read as NIfTI"):
        read_image(tmp_path / "image.nii.gz")
