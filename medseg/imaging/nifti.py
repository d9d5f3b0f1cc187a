"""NIfTI files: the one reader, the one writer."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from gzip import BadGzipFile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from isal import igzip, igzip_lib, igzip_threaded
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import NDArray

from medseg.imaging.header import Header, parse_header
from medseg.imaging.volume import Volume
from medseg.project import UserError, atomic_file, progress

LEVEL = 2
"""igzip's level: about the size of zlib's default, many times faster."""

ROUNDED = 1e-3
"""How far a label may be from a whole number, which it then is."""

CHUNK = 1 << 22
"""Bytes that are decompressed at once."""

_DAMAGED: tuple[type[Exception], ...] = (  # type: ignore[assignment]
    EOFError, BadGzipFile, zlib.error, igzip_lib.IsalError,  # a class, whatever its stub says
)  # fmt: skip


def read_nifti(path: str | Path) -> Volume:
    """Reads a NIfTI file, all of it: a damaged one gives no volume.

    Which of a header's answers decides where the voxels lie, :func:`parse_header` says; where they
    differ, the stage's log says so.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file with three dimensions, or four with channels last.
            A ``.nii.gz`` that is not compressed is read too.

    Returns:
        The volume; values are scaled where the header says so, integers stay integers otherwise.

    Raises:
        UserError: The file is missing; it is damaged (its checksum is wrong, it ends early, or
            more follows than its header says); its header is unusable; it holds no plain numbers
            (colours, complex values), or some that are not finite.
    """
    path = Path(path)
    with _opened(path) as (stream, zipped):
        header, array = _content(stream, path, zipped)
    if header.remark:
        progress(header.remark)
    array = array.reshape(header.shape, order="F")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    with np.errstate(all="ignore"):
        array = apply_read_scaling(array, *header.scale)
    _check_finite(array, path)
    return Volume(array, header.affine, path.name)


def read_header(path: str | Path) -> Header:
    """Reads a NIfTI file's header alone, which takes no time; its voxels may be damaged.

    Args:
        path: As for :func:`read_nifti`.

    Raises:
        UserError: The file is missing, or its header is unusable.
    """
    path = Path(path)
    with _opened(path) as (stream, _):
        return parse_header(stream.read(540), path)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, bool]]:
    """The file's bytes, unpacked where it is compressed, and whether it is."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: name a NIfTI file.")
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if zipped and path.suffix.lower() != ".gz":
                raise UserError(
                    f"{path} cannot be read as NIfTI: it is compressed. Name it .nii.gz."
                )
            yield (igzip.open(file) if zipped else file), zipped
    except _DAMAGED:
        raise _damaged(
            path, "it does not unpack to what was packed (cut off, or altered)"
        ) from None


def _content(stream: Any, path: Path, zipped: bool) -> tuple[Header, NDArray[Any]]:
    """Header and voxels of an open file, which is read to its end."""
    block = stream.read(540)
    header = parse_header(block, path)
    stored = path.stat().st_size * (1100 if zipped else 1)  # deflate shrinks no further
    if header.offset + header.size > stored:
        raise _damaged(
            path, f"its header announces {header.offset + header.size} bytes, it ends early"
        )
    stream.seek(header.offset)
    try:
        voxels = np.empty(header.size, np.uint8)
    except MemoryError:
        raise UserError(
            f"{path} holds {header.size / 2**30:.1f} GiB of voxels, more than there is memory: "
            "give the stage more, or crop it."
        ) from None
    done = 0
    while done < header.size:
        count = stream.readinto(voxels[done : done + CHUNK].data)
        if not count:
            raise _damaged(
                path, f"its header announces {header.size} bytes of voxels, it has {done}"
            )
        done += count
    if stream.read(1):  # the checksum is compared at the end of the stream
        raise _damaged(path, f"more follows than the {header.size} bytes of voxels in its header")
    return header, voxels.view(header.dtype)


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} cannot be read as NIfTI: {what}. Copy or export it anew.")


def _check_finite(array: NDArray[Any], path: Path) -> None:
    # NaN and infinity show in the extremes, which need no memory
    if array.dtype.kind != "f" or (np.isfinite(array.min()) and np.isfinite(array.max())):
        return
    count = array.size - int(np.count_nonzero(np.isfinite(array)))
    raise UserError(
        f"{path} has {count} voxels that are not finite (NaN or infinite): replace them, for "
        "example by the value of air."
    )


def read_label_map(path: str | Path) -> Volume:
    """Reads a NIfTI file whose voxels are labels.

    Args:
        path: The file, with three dimensions.

    Returns:
        The volume, of type uint8 (or uint16 where a value needs it).

    Raises:
        UserError: As :func:`read_nifti`, or a value is no label (see :func:`as_labels`).
    """
    volume = read_nifti(path)
    if volume.array.ndim != 3:
        raise UserError(f"{path} has shape {volume.array.shape}: a label map needs 3 dimensions.")
    return Volume(as_labels(volume.array, volume.name), volume.affine, volume.name)


def as_labels(array: NDArray[Any], name: str) -> NDArray[Any]:
    """An array as label values in the smallest unsigned type (uint8, else uint16).

    Args:
        array: Numbers of any type; whole ones, or off by no more than 0.001, as arithmetic in
            single precision leaves them.
        name: What to call it in a message.

    Raises:
        UserError: A value is negative, fractional, or above 65535.
    """
    whole = array
    if array.dtype.kind == "f":
        whole = np.rint(array)
        off = np.abs(whole - array) > ROUNDED
        if off.any():
            raise UserError(
                f"{name} holds fractions ({float(array[off][0]):.7g}): labels are 0, 1, 2, …"
            )
    low, high = whole.min(), whole.max()
    if not (low >= 0 and high <= np.iinfo(np.uint16).max):
        raise UserError(f"{name} holds values from {low} to {high}: labels are 0, 1, 2, …")
    return whole.astype(np.uint8 if high <= np.iinfo(np.uint8).max else np.uint16)


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
    with nifti_stream(path, array.shape, array.dtype, affine) as write:
        write(array)
    return path


@contextmanager
def nifti_stream(
    path: Path,
    shape: Sequence[int],
    dtype: np.dtype[Any] | type[np.generic],
    affine: NDArray[np.float64],
    *,
    slope: float | None = None,
    threads: int = 4,
) -> Iterator[Callable[[NDArray[Any]], None]]:
    """Writes a volume some slices at a time, all of it or nothing; equal input gives equal bytes.

    Args:
        path: The target, ``.nii.gz`` or ``.nii``.
        shape: Voxels along i, j, k.
        dtype: A type that NIfTI knows.
        affine: 4x4, from voxel index to millimetres in RAS; its axes perpendicular.
        slope: What stored values are multiplied with when they are read; None for nothing.
        threads: That compress, at most; the CPUs at hand, at most.

    Yields:
        Writes the next slices ``[i, j, some of k]``, which have that type.

    Raises:
        ValueError: There were fewer slices than the shape says, or more.
    """
    stored = np.broadcast_to(np.zeros((), dtype), tuple(shape))
    image = nibabel.Nifti1Image(stored, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(affine, code=1)  # code 1: scanner coordinates
    image.set_sform(affine, code=1)
    if slope is not None:
        image.header.set_slope_inter(slope, 0)
    image.header["magic"] = b"n+1"
    image.header["vox_offset"] = 352  # the header, and four bytes that say: no extensions
    left = stored.nbytes
    with atomic_file(path) as temporary:
        if path.suffix.lower() == ".gz":
            threads = min(threads, os.cpu_count() or 1)
            stream = igzip_threaded.open(temporary, "wb", compresslevel=LEVEL, threads=threads)
        else:
            stream = temporary.open("wb")
        with _closed(stream):
            stream.write(image.header.binaryblock + bytes(4))

            def write(slices: NDArray[Any]) -> None:
                nonlocal left
                left -= slices.nbytes
                stream.write(slices.tobytes(order="F"))

            yield write
        if left:
            raise ValueError(f"{path.name}: {left} bytes of voxels are missing")


@contextmanager
def _closed(stream: Any) -> Iterator[None]:
    """Closes a stream, also one that fails.

    igzip raises one and the same error again and again, and Python makes it the context of itself,
    which an :class:`contextlib.ExitStack` around it would follow for ever.
    """
    try:
        yield
        stream.close()
    except BaseException as error:
        with suppress(OSError):
            stream.close()
        if error.__context__ is error:
            error.__context__ = None
        raise


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
