"""NIfTI files: the one reader, the one writer."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from isal import igzip, igzip_lib, igzip_threaded
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from medseg.imaging.volume import Volume
from medseg.project import UserError, atomic_file

LEVEL = 2
"""igzip's level: about the size of zlib's default, many times faster."""

_DAMAGED: tuple[type[Exception], ...] = (  # type: ignore[assignment]
    ImageFileError, HeaderDataError, WrapStructError, OSError, EOFError, ValueError, zlib.error,
    igzip_lib.IsalError,  # a class, whatever its stub says
)  # fmt: skip


def read_nifti(path: str | Path) -> Volume:
    """Reads a NIfTI file.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file with three dimensions, or four with channels last.

    Returns:
        The volume; values are scaled where the header says so, integers stay integers otherwise.

    Raises:
        UserError: The file is missing, damaged, has other dimensions, or holds no plain numbers
            (colours, complex values).
    """
    path = Path(path)
    with _opened(path) as image:
        kind = image.get_data_dtype()
        if kind.kind not in "iuf" or kind.itemsize > 8:
            raise UserError(
                f"{path} holds values of the type {kind}: a volume needs one real number a voxel."
            )
        array = np.asanyarray(image.dataobj)
        affine = _affine(image)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise UserError(f"{path} has shape {array.shape}: a volume needs 3 dimensions.")
    return Volume(array, affine, path.name)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An open file as nibabel's image, with its voxels still to read.

    The one place where a NIfTI file is opened, and where what readers raise becomes a sentence.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: name a NIfTI file.")
    try:
        with igzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            size = stream.read(4)
            stream.seek(0)
            second = 540 in (int.from_bytes(size, "little"), int.from_bytes(size, "big"))
            form = nibabel.Nifti2Image if second else nibabel.Nifti1Image
            yield form.from_file_map(form.make_file_map({"image": stream}), mmap=False)
    except _DAMAGED as error:
        raise UserError(f"{path} cannot be read as NIfTI (damaged?): {error}.") from error


def _affine(image: Any) -> NDArray[np.float64]:
    """From voxel index to millimetres in RAS: the one place that decides a file's geometry."""
    return np.asarray(image.affine, dtype=np.float64)


def read_label_map(path: str | Path) -> Volume:
    """Reads a NIfTI file whose voxels are labels.

    Args:
        path: The file, with three dimensions.

    Returns:
        The volume, of type uint8 (or uint16 where a value needs it).

    Raises:
        UserError: As :func:`read_nifti`, or a value is no label (negative or fractional).
    """
    volume = read_nifti(path)
    if volume.array.ndim != 3:
        raise UserError(f"{path} has shape {volume.array.shape}: a label map needs 3 dimensions.")
    return Volume(as_labels(volume.array, volume.name), volume.affine, volume.name)


def as_labels(array: NDArray[Any], name: str) -> NDArray[Any]:
    """An array as label values in the smallest unsigned type (uint8, else uint16).

    Args:
        array: Whole numbers of any type.
        name: What to call it in a message.

    Raises:
        UserError: A value is negative, fractional, or above 65535.
    """
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= np.iinfo(np.uint16).max):
        raise UserError(f"{name} holds values from {low} to {high}: labels are 0, 1, 2, …")
    labels = array.astype(np.uint8 if high <= np.iinfo(np.uint8).max else np.uint16)
    if array.dtype.kind == "f" and not np.array_equal(labels, array):
        raise UserError(f"{name} holds fractions: labels are 0, 1, 2, …")
    return labels


def write_nifti(array: NDArray[Any], affine: NDArray[np.float64], path: str | Path) -> Path:
    """Writes a volume as NIfTI-1, all of it or nothing; equal input gives equal bytes.

    Args:
        array: Voxel values ``[i, j, k]``. Types that NIfTI readers may not know (bool, 64-bit
            integers) become the label type of :func:`as_labels` where they fit, else int32; float64
            becomes float32.
        affine: 4x4, from voxel index to millimetres in RAS; its axes perpendicular.
        path: The target, ``.nii.gz`` or ``.nii``.

    Returns:
        ``path``.

    Raises:
        UserError: 64-bit integers do not fit into 32 bits.
    """
    path = Path(path)
    array = _storable(array, path.name)
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(affine, code=1)  # code 1: scanner coordinates
    image.set_sform(affine, code=1)
    image.header["magic"] = b"n+1"
    image.header["vox_offset"] = 352  # the header, and four bytes that say: no extensions
    with atomic_file(path) as temporary, _named(temporary):
        if path.suffix == ".gz":
            threads = min(4, os.cpu_count() or 1)
            stream = igzip_threaded.open(temporary, "wb", compresslevel=LEVEL, threads=threads)
        else:
            stream = temporary.open("wb")
        with stream:
            stream.write(image.header.binaryblock + bytes(4))
            stream.write(array.tobytes(order="F"))
    return path


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Says which file could not be written, which an open one does not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _storable(array: NDArray[Any], name: str) -> NDArray[Any]:
    """The array in a type that every NIfTI reader knows."""
    if array.dtype == np.float64:
        return array.astype(np.float32)
    if array.dtype.kind != "b" and not (array.dtype.kind in "iu" and array.dtype.itemsize == 8):
        return array
    low, high = array.min(), array.max()
    if low >= 0 and high <= np.iinfo(np.uint16).max:
        return as_labels(array, name)
    if low < np.iinfo(np.int32).min or high > np.iinfo(np.int32).max:
        raise UserError(
            f"{name} holds values from {low} to {high}: whole numbers must fit into 32 bits."
        )
    return array.astype(np.int32)
