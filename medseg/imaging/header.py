"""NIfTI headers: size, type, scale and place of the voxels, checked before a voxel is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel import nifti1, nifti2
from numpy.typing import NDArray

from medseg.project import UserError

TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8",
    256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
"""NIfTI's codes of the types that hold one real number a voxel."""

OTHER_TYPES = {
    1: "single bits", 32: "complex numbers", 128: "colours (RGB)", 1536: "128-bit numbers",
    1792: "complex numbers", 2048: "complex numbers", 2304: "colours (RGBA)",
}  # fmt: skip

UNITS = {1: 1000.0, 3: 0.001}
"""Codes of metres and micrometres, in millimetres; all others mean millimetres, as to ITK."""

LONGEST_EDGE = 100.0
"""No voxel of a patient is longer, in mm; a larger one is a unit that the header states wrongly."""

SHEAR = 1e-3
"""How far axes may be from perpendicular, as a cosine: numbers are rounded to single precision."""

_LPS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Header:
    """What a NIfTI header says.

    Attributes:
        shape: Voxels along each dimension, without those of 1 behind the third.
        dtype: The stored type, in its byte order.
        offset: Where the voxels begin, in bytes from the file's begin.
        scale: Slope and intercept that stored values are scaled with; ``(1, 0)`` for none.
        affine: 4x4, from voxel index to millimetres in RAS; its axes are perpendicular.
        remark: What a person should know of the file, in one sentence; empty as a rule.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    scale: tuple[float, float]
    affine: NDArray[np.float64]
    remark: str

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between voxel centres along i, j, k."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return (i, j, k)

    @property
    def size(self) -> int:
        """Bytes of all voxels."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


def parse_header(block: bytes, path: Path) -> Header:
    """Reads and checks a header.

    Where the header has several answers to where its voxels lie, the one is taken that ITK takes,
    with which nnU-Net reads what it trains on: voxels are as large as ``pixdim`` says; they lie
    where the sform puts them if its code is 1 (scanner) or the qform has none, else where the
    qform does; where neither has a code, at the origin along DICOM's axes (LPS).

    Args:
        block: The file's first 540 bytes, or all that it has.
        path: The file, for messages.

    Raises:
        UserError: It is no NIfTI header, says nothing usable of the voxels' number, type, scale or
            place, or states a sheared grid.
    """
    fields = _fields(block, path)
    shape = _shape(fields, path)
    code = int(fields["datatype"])
    if code not in TYPES:
        what = OTHER_TYPES.get(code, "values of an unknown type")
        raise UserError(
            f"{path} holds {what} (NIfTI datatype {code}): a volume needs one real number a voxel. "
            "Convert it."
        )
    dtype = np.dtype(TYPES[code]).newbyteorder(fields.dtype["datatype"].byteorder)
    smallest = len(fields.tobytes()) + 4
    offset = float(fields["vox_offset"])
    if offset == 0:
        offset = smallest
    if not smallest <= offset < 2**40:
        raise _unusable(path, f"its header says that voxels begin at byte {offset:g}")
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0 or not np.isfinite(slope):
        slope, intercept = 1.0, 0.0
    if not np.isfinite(intercept):
        raise _unusable(path, f"its header scales values by {slope:g} and adds {intercept}")
    with np.errstate(all="ignore"):  # numbers of any kind; those that are not finite are refused
        affine, remark = _place(fields, shape, path)
    return Header(shape, dtype, int(offset), (slope, intercept), affine, remark)


def _unusable(path: Path, what: str) -> UserError:
    return UserError(f"{path} cannot be read as NIfTI: {what}. Correct or export it anew.")


def _fields(block: bytes, path: Path) -> Any:
    """The header as a record of numpy, in the file's byte order."""
    if not block:
        raise _unusable(path, "it is empty")
    for order in "<>":
        for form in (nifti1, nifti2):
            dtype = form.header_dtype.newbyteorder(order)
            if len(block) >= dtype.itemsize:
                fields = np.frombuffer(block, dtype, 1)[0]
                if fields["sizeof_hdr"] == dtype.itemsize and fields["magic"][:2] == b"n+":
                    return fields
    raise _unusable(path, "it does not begin with the header of a NIfTI file (.nii, .nii.gz)")


def _shape(fields: Any, path: Path) -> tuple[int, ...]:
    count = int(fields["dim"][0])
    shape = tuple(int(size) for size in fields["dim"][1 : count + 1]) if 0 < count < 8 else ()
    if not shape or min(shape) < 1:
        raise _unusable(path, f"its header gives it the dimensions {shape or (count,)}")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (3, 4):
        raise UserError(f"{path} has shape {shape}: a volume needs 3 dimensions.")
    return shape


def _place(fields: Any, shape: tuple[int, ...], path: Path) -> tuple[NDArray[np.float64], str]:
    """The affine, and what a person should know of it."""
    unit = UNITS.get(int(fields["xyzt_units"]) & 7, 1.0)
    stated = fields["pixdim"][1:4].astype(np.float64)
    spacing = np.abs(stated) * unit
    if not np.isfinite(spacing).all() or (spacing < 1e-6).any():
        raise _unusable(path, f"its pixdim gives its voxels no extent ({_numbers(stated)})")
    if spacing.max() > LONGEST_EDGE:
        raise _unusable(
            path,
            f"its voxels are {_numbers(spacing)} mm large (pixdim {_numbers(stated)}, xyzt_units "
            f"{int(fields['xyzt_units'])})",
        )
    sform = _sform(fields, path, unit)
    qform = _qform(fields, spacing, path, unit)
    if sform is None and qform is None:
        return _affine(_LPS, spacing, np.zeros(3)), ""
    preferred = qform if qform is not None else sform
    if sform is not None and (qform is None or int(fields["sform_code"]) == 1):
        preferred = sform
    assert preferred is not None
    directions, origin = _directions(preferred[:3, :3]), preferred[:3, 3]
    return _affine(directions, spacing, origin), _remark(
        sform, qform, preferred, shape, spacing, path
    )


def _sform(fields: Any, path: Path, unit: float) -> NDArray[np.float64] | None:
    """What the sform says, in mm; nothing where it has no code."""
    if int(fields["sform_code"]) <= 0:
        return None
    rows = np.array([fields[f"srow_{axis}"] for axis in "xyz"], dtype=np.float64)
    lengths = np.linalg.norm(rows[:, :3], axis=0)
    if not np.isfinite(rows).all() or (lengths * unit < 1e-6).any():
        raise _unusable(path, "its sform gives its voxels no extent")
    axes = rows[:, :3] / lengths
    if np.abs(axes.T @ axes - np.eye(3)).max() > SHEAR:
        raise UserError(
            f"{path} is sheared (the axes of its sform are not perpendicular, as with a tilted "
            "gantry): resample it onto a rectangular grid first."
        )
    return np.vstack([rows * unit, [0, 0, 0, 1]])


def _qform(
    fields: Any, spacing: NDArray[np.float64], path: Path, unit: float
) -> NDArray[np.float64] | None:
    """What the qform says, in mm; nothing where it has no code."""
    if int(fields["qform_code"]) <= 0:
        return None
    quaternion = np.array([fields[f"quatern_{axis}"] for axis in "bcd"], dtype=np.float64)
    offset = np.array([fields[f"qoffset_{axis}"] for axis in "xyz"], dtype=np.float64)
    if not np.isfinite([*quaternion, *offset]).all() or np.abs(quaternion).max() > 1.1:
        raise _unusable(path, f"its qform is no rotation ({_numbers(quaternion)})")
    if (fields["pixdim"][1:4] < 0).any():
        raise _unusable(
            path, f"its pixdim is negative ({_numbers(fields['pixdim'][1:4])}) beside a qform"
        )
    square = float(quaternion @ quaternion)
    if 1 - square < 1e-7:  # half a turn: single precision leaves the first component to rounding
        quaternion, first = quaternion / np.sqrt(square), 0.0
    else:
        first = float(np.sqrt(1 - square))
    b, c, d = quaternion
    a = first
    directions = np.array([
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
    ])  # fmt: skip
    if fields["pixdim"][0] < 0:
        directions[:, 2] *= -1
    return _affine(directions, spacing, offset * unit)


def _directions(axes: NDArray[np.float64]) -> NDArray[np.float64]:
    """The perpendicular axes of length 1 that are nearest to those of a form."""
    left, _, right = np.linalg.svd(axes / np.linalg.norm(axes, axis=0))
    return np.asarray(left @ right)


def _affine(
    directions: NDArray[np.float64], spacing: NDArray[np.float64], origin: NDArray[np.float64]
) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = origin
    return affine


def _remark(
    sform: NDArray[np.float64] | None,
    qform: NDArray[np.float64] | None,
    preferred: NDArray[np.float64],
    shape: tuple[int, ...],
    spacing: NDArray[np.float64],
    path: Path,
) -> str:
    """Says which answer was taken where a header has several that differ."""
    if sform is not None:
        lengths = np.linalg.norm(sform[:3, :3], axis=0)
        if (np.abs(lengths - spacing) > 0.01 * spacing).any():
            return (
                f"{path.name}: its sform says voxels of {_numbers(lengths)} mm, its pixdim of "
                f"{_numbers(spacing)} mm: pixdim is taken, as nnU-Net does. Check the file"
            )
    if sform is not None and qform is not None:
        corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape[:3]) - 1)
        ends = np.c_[corners, np.ones(8)]
        apart = np.abs(ends @ (sform - qform).T).max()
        if apart > 0.05 * spacing.min():
            taken = "sform" if preferred is sform else "qform"
            return (
                f"{path.name}: its sform and its qform lie up to {apart:.3g} mm apart: the {taken} "
                "is taken, as nnU-Net does. Check the file"
            )
    return ""


def _numbers(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.5g}" for value in values)
