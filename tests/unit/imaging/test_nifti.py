"""The one reader and the one writer of NIfTI, and what files are called."""

from __future__ import annotations

import gzip
import struct
from contextlib import ExitStack
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from medseg.imaging import is_nifti, nifti_stream, read_label_map, read_nifti, stem, write_nifti
from medseg.project import UserError
from tests.volumes import Volume

AFFINE = np.array([[-2.0, 0, 0, 30], [0, 0, 3, -5], [0, 1.5, 0, 7], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("name", "nifti", "without"),
    [
        ("a.nii.gz", True, "a"),
        ("a.nii", True, "a"),
        ("a.nii.b.nii.gz", True, "a.nii.b"),
        ("a.v2_0000.nii.gz", True, "a.v2_0000"),
        ("._a.nii.gz", False, "._a"),  # what macOS leaves in archives
        ("a.nrrd", False, "a.nrrd"),
        ("a.gz", False, "a.gz"),
        ("A.v2.NII.GZ", True, "A.v2"),
        ("a.Nii", True, "a"),
    ],
)
def test_names(name: str, nifti: bool, without: str) -> None:
    assert is_nifti(name) is nifti and is_nifti(Path("folder", name)) is nifti
    assert stem(name) == stem(Path("folder", name)) == without


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.uint16, np.float32])
def test_what_is_written_is_read(tmp_path: Path, kind: type, ending: str) -> None:
    array = np.arange(60).reshape(3, 4, 5).astype(kind)
    path = write_nifti(array, AFFINE, tmp_path / f"a{ending}")
    volume = read_nifti(path)
    assert volume.array.dtype == kind and np.array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    assert volume.name == path.name and volume.spacing == pytest.approx((2, 1.5, 3))
    theirs = SimpleITK.ReadImage(str(path))
    assert np.array_equal(SimpleITK.GetArrayFromImage(theirs).transpose(2, 1, 0), array)
    assert theirs.GetSpacing() == pytest.approx(volume.spacing)
    written = path.read_bytes()
    assert write_nifti(array, AFFINE, path).read_bytes() == written


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_slices_by_slices(tmp_path: Path, ending: str) -> None:
    array = np.random.default_rng(1).integers(0, 65536, (5, 4, 7)).astype(np.uint16)
    path = tmp_path / f"a{ending}"
    with nifti_stream(path, array.shape, np.uint16, AFFINE, slope=1 / 65535) as write:
        for start, stop in ((0, 3), (3, 4), (4, 7)):
            assert not path.exists()
            write(array[..., start:stop])
    volume = read_nifti(path)
    np.testing.assert_allclose(volume.array, array / 65535, atol=1e-6)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    theirs = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    np.testing.assert_allclose(theirs.transpose(2, 1, 0), array / 65535, atol=1e-6)
    before = path.read_bytes()
    for given in (array[..., :6], np.concatenate([array, array], axis=2)):
        with (
            pytest.raises(ValueError, match="bytes of voxels are missing"),
            nifti_stream(path, array.shape, np.uint16, AFFINE) as write,
        ):
            write(given)
        assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("free", [0, 60_000, 200_000])
def test_several_at_once_on_a_full_disk(volume: Volume, free: int) -> None:
    array = np.random.default_rng(1).integers(0, 65536, (128, 128, 40)).astype(np.uint16)
    (volume.folder / "before").touch()
    volume.leave(free)
    with pytest.raises(OSError, match="No space left") as caught, ExitStack() as files:
        writers = [
            files.enter_context(
                nifti_stream(
                    volume.folder / f"{name}.nii.gz", array.shape, array.dtype, AFFINE, threads=1
                )
            )
            for name in "abc"
        ]
        for start in range(0, 40, 5):
            for write in writers:
                write(array[..., start : start + 5])
    assert ".nii.gz" in caught.value.filename
    assert [path.name for path in volume.folder.iterdir()] == ["before"]


def test_types_that_others_may_not_know(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    for array, kind in (
        (np.ones((2, 2, 2), bool), np.uint8),
        (np.full((2, 2, 2), 300, np.int64), np.uint16),
        (np.full((2, 2, 2), -300, np.int64), np.int32),
        (np.full((2, 2, 2), 0.5, np.float64), np.float32),
    ):
        stored = read_nifti(write_nifti(array, np.eye(4), path)).array
        assert stored.dtype == kind and np.array_equal(stored, array)
    with pytest.raises(UserError, match=r"a\.nii\.gz holds values .* must fit into 32 bits"):
        write_nifti(np.full((2, 2, 2), 1 << 40), np.eye(4), path)


@pytest.mark.parametrize("form", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_four_dimensions_and_both_versions(tmp_path: Path, form: type) -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 2, 2)
    nibabel.save(form(array, AFFINE), tmp_path / "a.nii.gz")
    volume = read_nifti(tmp_path / "a.nii.gz")
    assert volume.shape == (2, 3, 2)
    assert [channel.array.tolist() for channel in volume.channels] == [
        array[..., 0].tolist(),
        array[..., 1].tolist(),
    ]
    nibabel.save(form(array[..., :1], AFFINE), tmp_path / "b.nii")
    (only,) = read_nifti(tmp_path / "b.nii").channels
    assert np.array_equal(only.array, array[..., 0])


def test_big_endian_and_scaled(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header(endianness=">")
    image = nibabel.Nifti1Image(np.array([[[1, 2], [3, 4]]], ">i2"), AFFINE, header)
    image.header.set_slope_inter(0.5, 10)
    nibabel.save(image, tmp_path / "a.nii")
    assert read_nifti(tmp_path / "a.nii").array.ravel().tolist() == [10.5, 11, 11.5, 12]
    stored = (tmp_path / "a.nii").read_bytes()
    assert stored[:4] == struct.pack(">i", 348)


def refused(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_nifti(path)


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    refused(path, r"a\.nii\.gz does not exist")
    noise = np.random.default_rng(0).integers(0, 255, (20, 20, 20), np.uint8)
    whole = write_nifti(noise, AFFINE, path).read_bytes()
    plain = gzip.decompress(whole)
    for content in (b"", whole[:1], whole[:200], whole[: len(whole) // 2], b"x" * 999):
        path.write_bytes(content)
        refused(path, r"a\.nii\.gz cannot be read as NIfTI")
    for content in (whole + b"x", whole + b"x" * 99, whole + whole, whole[:-1]):
        path.write_bytes(content)
        refused(path, r"a\.nii\.gz cannot be read as NIfTI")
    path.write_bytes(whole[:-6] + b"xx" + whole[-4:])  # the checksum
    refused(path, r"a\.nii\.gz cannot be read as NIfTI: it does not unpack to what was packed")
    path.write_bytes(whole[:-4] + b"xxxx")  # the length
    refused(path, r"a\.nii\.gz cannot be read as NIfTI")
    path.write_bytes(whole + bytes(512))  # a tape's or an archive's padding, which gzip passes over
    assert np.array_equal(read_nifti(path).array, noise)
    path.write_bytes(plain)  # not compressed
    assert np.array_equal(read_nifti(path).array, noise)
    path.write_bytes(whole[:100] + b"\xff\xff\xff\xff" + whole[104:])
    refused(path, r"a\.nii\.gz cannot be read as NIfTI")
    for content in (b"", plain[:100], plain[:400], plain[:-1], plain + b"x", whole):
        (tmp_path / "a.nii").write_bytes(content)
        refused(tmp_path / "a.nii", r"a\.nii cannot be read as NIfTI")


def test_what_is_no_volume(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    for shape in ((5,), (5, 5), (5, 5, 5, 1, 3)):
        nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4)), path)
        refused(path, "needs 3 dimensions")
    colours = np.zeros((3, 3, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    for array in (colours, np.zeros((3, 3, 3), np.complex64)):
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
        refused(path, "needs one real number a voxel")


def test_label_maps(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    for values, kind in (([0, 1, 255], np.uint8), ([0, 1, 256], np.uint16)):
        write_nifti(np.array([[values]], np.float32), np.eye(4), path)
        label = read_label_map(path).array
        assert label.dtype == kind and label.ravel().tolist() == values
    for value, message in ((-1, "from -1.0 to 0.0"), (0.5, "holds fractions"), (70000, "70000")):
        write_nifti(np.array([[[0, value]]], np.float32), np.eye(4), path)
        with pytest.raises(UserError, match=rf"a\.nii\.gz.*{message}.*labels are 0, 1, 2"):
            read_label_map(path)
    write_nifti(np.zeros((2, 2, 2, 2), np.uint8), np.eye(4), path)
    with pytest.raises(UserError, match="a label map needs 3 dimensions"):
        read_label_map(path)
