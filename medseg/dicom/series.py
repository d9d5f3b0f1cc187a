"""From the instances of an image series to a volume."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels import apply_modality_lut, pixel_array  # type: ignore[attr-defined]
from pydicom.pixels.decoders.base import get_decoder

from medseg.dicom.decimals import has_value, mend_numbers, numbers
from medseg.dicom.decoders import register_decoders
from medseg.imaging import LPS_TO_RAS, Volume
from medseg.project import UserError

register_decoders()

_UNEVEN = 0.01
"""Share of the slice spacing by which a slice may be off its place, as in highdicom."""

ROUNDED = 0.05
"""Millimetres by which a slice may be off its place along each axis, as positions that are written
with one decimal are; it is remarked on."""

_SMALLEST_ROUNDED = 4 * ROUNDED
"""Below this slice spacing such a position tells too little."""

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def volume_from_instances(
    instances: Sequence[Dataset], name: str, remarks: list[str] | None = None
) -> Volume:
    """Stacks the instances of one image series.

    Slices, whether instances of one frame (enhanced ones too) or the frames of one instance, are
    sorted by their position along the slice normal. Stored values go through the modality
    transform (rescale slope and intercept, PS3.3 C.11.1; 1 and 0 where they have no value), so CT
    comes out in HU; a real world value map is not applied. Localizers and secondary captures within
    the series are left out. Positions may be rounded by :data:`ROUNDED`.

    Args:
        instances: All instances of the series, in any order. Their pixel data is taken out of
            them, so that a volume is in memory once.
        name: What to call the volume in a message.
        remarks: Gets a sentence for each instance that is left out, and for what is tolerated.

    Returns:
        The volume: int16, uint16 or int32 where all values are whole, else float32.

    Raises:
        UserError: The instances are no regular volume; the message says why and names the files
            and instance numbers.
    """
    remarks = [] if remarks is None else remarks
    if not instances:
        raise UserError(f"{name}: the series holds no instances.")
    _mend(instances, remarks)
    instances = _measurements(instances, remarks)
    for instance in instances:
        if "PixelData" not in instance:
            raise UserError(
                f"{name}: {describe(instance)} has no pixel data: fetch the series again."
            )
        if instance.get("SamplesPerPixel", 1) != 1:
            raise UserError(
                f"{name}: the series holds colour images, which are no measurements "
                f"({describe(instance)}): give the series that the scanner made."
            )
    if any(_frames(instance) > 1 for instance in instances):
        return _multi_frame(instances, name, remarks)
    slices = [
        _Slice(
            _frame_header(instance, 0),
            f"instance {instance_number(instance)}",
            describe(instance),
            partial(_pixels, instance, name),
        )
        for instance in instances
    ]
    array, affine, order = _stack(slices, name, remarks)
    return Volume(array, affine, name, tuple(instances[index] for index in order))


def describe(instance: Dataset) -> str:
    """An instance in a message: its file, where it was read from one, and its number."""
    path = getattr(instance, "filename", None)
    number = f"instance {instance_number(instance)}"
    return f"{path} ({number})" if isinstance(path, str | os.PathLike) and path else number


def instance_number(instance: Dataset) -> str:
    """InstanceNumber, or a question mark."""
    values = numbers(instance, "InstanceNumber")
    return f"{values[0]:.0f}" if values else "?"


def left_out_reason(image_type: str, sop_class: str, samples: str) -> str:
    """Why an instance of an image series is no slice of a volume; empty where it may be one.

    Args:
        image_type: ImageType, its values in any way put together.
        sop_class: SOPClassUID.
        samples: SamplesPerPixel.
    """
    if "LOCALIZER" in image_type.upper():
        return "a localizer (ImageType)"
    if sop_class == _SECONDARY_CAPTURE or sop_class.startswith(f"{_SECONDARY_CAPTURE}."):
        return "a secondary capture, no measurement"
    if samples not in ("", "1"):
        return "a colour image, no measurement"
    return ""


def _mend(instances: Sequence[Dataset], remarks: list[str]) -> None:
    mended: dict[str, int] = defaultdict(int)
    for instance in instances:
        for keyword in mend_numbers(instance):
            mended[keyword] += 1
    remarks += [
        f"{keyword} of {count} instance{'s' * (count > 1)} is not written as DICOM writes numbers "
        "(a decimal comma?); it was read as the number that it looks like"
        for keyword, count in mended.items()
    ]


def _measurements(instances: Sequence[Dataset], remarks: list[str]) -> list[Dataset]:
    """The instances without localizers and captures, unless there is nothing else."""
    reasons = [_left_out_reason(instance) for instance in instances]
    kept = [item for item, reason in zip(instances, reasons, strict=True) if not reason]
    if not kept:
        return list(instances)
    remarks += [
        f"{describe(instance)} was left out of its series: {reason}"
        for instance, reason in zip(instances, reasons, strict=True)
        if reason
    ]
    return kept


def no_volume_reason(instances: Sequence[Dataset]) -> str:
    """Why none of a series' instances can be a slice of a volume; empty where one may."""
    reasons = [_left_out_reason(instance) for instance in instances]
    return reasons[0] if reasons and all(reasons) else ""


def _left_out_reason(instance: Dataset) -> str:
    keywords = ("ImageType", "SOPClassUID", "SamplesPerPixel")
    return left_out_reason(*(str(instance.get(keyword) or "") for keyword in keywords))


# --- slices ---


@dataclass(frozen=True)
class _Slice:
    """A slice: an instance, or a frame of one.

    Attributes:
        header: Place and rescale, at the top level.
        number: What it is in a message, in short: ``instance 5``, ``frame 5``.
        place: The same with its file.
        pixels: Gives the stored values ``[row, column]``.
    """

    header: Dataset
    number: str
    place: str
    pixels: Callable[[], NDArray[Any]]


_PLACE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
_THICKNESS = ("SpacingBetweenSlices", "SliceThickness")
_RESCALE = ("RescaleSlope", "RescaleIntercept")
_FUNCTIONAL_GROUPS = {
    "PlanePositionSequence": _PLACE[:1],
    "PlaneOrientationSequence": _PLACE[1:2],
    "PixelMeasuresSequence": (*_PLACE[2:], *_THICKNESS),
    "PixelValueTransformationSequence": _RESCALE,
}


def _frame_header(instance: Dataset, frame: int) -> Dataset:
    """The instance, or for an enhanced one what its functional groups say of a frame."""
    per_frame = instance.get("PerFrameFunctionalGroupsSequence") or ()
    shared = instance.get("SharedFunctionalGroupsSequence") or ()
    groups = [*per_frame[frame : frame + 1], *shared[:1]]
    if not groups:
        return instance
    header = Dataset()
    for keyword in ("Rows", "Columns", "ModalityLUTSequence", *_PLACE, *_THICKNESS, *_RESCALE):
        if keyword in instance:
            header[keyword] = instance.get_item(keyword)  # not yet looked into: it may be no number
    for group in reversed(groups):  # what a frame says counts more than what all share
        for sequence, keywords in _FUNCTIONAL_GROUPS.items():
            for item in (group.get(sequence) or ())[:1]:
                for keyword in keywords:
                    if keyword in item:
                        header[keyword] = item.get_item(keyword)
    return header


def _frames(instance: Dataset) -> int:
    values = numbers(instance, "NumberOfFrames")
    return max(1, int(values[0])) if values else 1


def _multi_frame(instances: Sequence[Dataset], name: str, remarks: list[str]) -> Volume:
    if len(instances) > 1:
        raise UserError(
            f"{name}: the series holds {len(instances)} multi-frame instances; "
            "one volume must be one instance: store each as a series of its own."
        )
    instance = instances[0]
    count = _frames(instance)
    if len(instance.get("PerFrameFunctionalGroupsSequence") or ()) != count:
        raise UserError(
            f"{name}: the multi-frame instance {describe(instance)} does not give the positions of "
            "its frames: export the series as an enhanced one, or as single slices."
        )
    headers = Dataset()
    headers.update(instance)
    del headers.PixelData
    stored = _pixels(instance, name).reshape(count, instance.Rows, instance.Columns)
    slices = [
        _Slice(
            _frame_header(headers, frame),
            f"frame {frame + 1}",
            f"frame {frame + 1} of {describe(instance)}",
            partial(stored.__getitem__, frame),
        )
        for frame in range(count)
    ]
    array, affine, _ = _stack(slices, name, remarks)
    return Volume(array, affine, name, (headers,))


def _stack(
    slices: Sequence[_Slice], name: str, remarks: list[str]
) -> tuple[NDArray[Any], NDArray[np.float64], list[int]]:
    """Array ``[i, j, k]``, affine in RAS, and the order of the slices."""
    positions = _table(slices, "ImagePositionPatient", 3, name)
    orientations = _table(slices, "ImageOrientationPatient", 6, name)
    spacings = _table(slices, "PixelSpacing", 2, name)
    _check_alike([f"{s.header.Columns}x{s.header.Rows}" for s in slices], slices, "sizes", name)
    directions = orientations - np.median(orientations, axis=0)
    _check_alike((np.abs(directions).max(axis=1) > 1e-3).tolist(), slices, "orientations", name)
    typical = np.median(spacings, axis=0)
    uneven = [bool((np.abs(each - typical) > _UNEVEN * typical).any()) for each in spacings]
    _check_alike(uneven, slices, "pixel spacings", name)
    if (typical <= 0).any():
        raise UserError(f"{name}: PixelSpacing of {slices[0].place} is not above 0: correct it.")

    row, column = orientations[0, :3], orientations[0, 3:]
    normal = np.cross(row, column)
    if abs(np.linalg.norm(normal) - 1) > 1e-2:
        raise UserError(
            f"{name}: ImageOrientationPatient of {slices[0].place} holds no perpendicular unit "
            "vectors: correct it."
        )
    order = np.argsort(positions @ normal, kind="stable").tolist()
    slices, positions = [slices[index] for index in order], positions[order]
    affine = np.eye(4)
    affine[:3, 0] = row * spacings[order[0], 1]  # PixelSpacing: between rows, then columns
    affine[:3, 1] = column * spacings[order[0], 0]
    affine[:3, 3], affine[:3, 2] = _slice_grid(slices, positions, normal, name, remarks)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        values = list(pool.map(lambda item: _rescaled(item.pixels(), item, name), slices))
    return _compact(np.stack(values)).transpose(2, 1, 0), LPS_TO_RAS @ affine, order


def _table(slices: Sequence[_Slice], keyword: str, count: int, name: str) -> NDArray[np.float64]:
    rows = []
    for item in slices:
        values = numbers(item.header, keyword)
        if values is None or len(values) != count:
            raise UserError(
                f"{name}: {item.place} has no {keyword} that can be read ({count} numbers), so it "
                "has no place in space: correct it, or leave it out."
            )
        rows.append(values)
    return np.array(rows, np.float64)


def _check_alike(kinds: Sequence[Any], slices: Sequence[_Slice], what: str, name: str) -> None:
    """Refuses a series whose slices differ, and names those that differ from the most."""
    usual = max(kinds, key=kinds.count) if what == "sizes" else False
    odd = [item.place for item, kind in zip(slices, kinds, strict=True) if kind != usual]
    if odd:
        several = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        sizes = f" ({', '.join(sorted(set(kinds)))})" if what == "sizes" else ""
        hint = " (a localizer?)" if what == "orientations" else ""
        raise UserError(
            f"{name}: the series mixes {'image ' * (what == 'sizes')}{what}{sizes}{hint}, so it is "
            f"no volume: {', '.join(odd[:3])}{several} differ from the other slices; leave them "
            "out, or store them as a series of their own."
        )


# --- their grid ---


def _slice_grid(
    slices: Sequence[_Slice],
    positions: NDArray[np.float64],
    normal: NDArray[np.float64],
    name: str,
    remarks: list[str],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where the first slice lies, and the vector from one slice to the next."""
    if len(slices) == 1:
        thickness = _thickness(slices[0].header)
        if not thickness:
            remarks.append("a single slice that does not say how thick it is: taken as 1 mm")
        return positions[0], normal * (thickness[0] if thickness else 1)
    gaps = np.diff(positions @ normal)
    spacing = float(np.sort(gaps)[(len(gaps) - 1) // 2])  # the lower median: gaps only add

    def between(index: int) -> str:
        one, other = slices[index].number, slices[index + 1].number.split()[-1]
        return f"between {one.replace(' ', 's ', 1)} and {other}"

    closest, widest = int(gaps.argmin()), int(gaps.argmax())
    if gaps[closest] < 1e-3:
        raise UserError(
            f"{name}: two slices lie at the same place ({between(closest)}): the series holds a "
            "slice twice, or several time points or echoes; store each as a series of its own."
        )
    step: NDArray[np.float64] = (positions[-1] - positions[0]) / (len(positions) - 1)
    off = np.abs(positions - (positions[0] + np.arange(len(positions))[:, None] * step))
    sheared = abs(step @ normal) < (1 - 1e-3) * np.linalg.norm(step)
    if not sheared and off.max() <= max(_UNEVEN * spacing, 0.01):
        return positions[0], step
    rounded = _rounded_grid(slices, positions, normal, step, remarks)
    if rounded is not None:
        return rounded
    missing = round(float(gaps[widest]) / spacing) - 1
    if missing >= 1 and abs(gaps[widest] - (missing + 1) * spacing) < 0.1 * spacing:
        raise UserError(
            f"{name}: {missing} slice{'s are' if missing > 1 else ' is'} missing "
            f"{between(widest)}: fetch the complete series."
        )
    if sheared:
        raise UserError(
            f"{name}: the slices are sheared (a tilted gantry): resample the series onto a "
            "rectangular grid first."
        )
    raise UserError(
        f"{name}: the slice spacing varies from {gaps.min():.3g} to {gaps.max():.3g} mm, "
        f"most {between(widest)}: resample the series onto a regular grid first."
    )


def _rounded_grid(
    slices: Sequence[_Slice],
    positions: NDArray[np.float64],
    normal: NDArray[np.float64],
    step: NDArray[np.float64],
    remarks: list[str],
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """The even grid that the positions are, but for their rounding; None where there is none.

    The spacing that the header states is tried before the one that the positions have on average.
    """
    count = np.arange(len(positions))[:, None]
    for spacing in (*_thickness(slices[0].header), float(step @ normal)):
        start = positions - count * (normal * spacing)
        if spacing < _SMALLEST_ROUNDED or (np.ptp(start, axis=0) > 2 * ROUNDED + 1e-6).any():
            continue
        origin = positions[0]
        if np.abs(start - origin).max() > ROUNDED + 1e-6:
            origin = (start.min(axis=0) + start.max(axis=0)) / 2
        off = float(np.abs(start - origin).max())
        remarks.append(
            f"the positions of the slices are rounded: off by up to {off:.3f} mm from slices every "
            f"{spacing:.4g} mm, which is within the tolerance of {ROUNDED} mm"
        )
        return origin, normal * spacing
    return None


def _thickness(header: Dataset) -> list[float]:
    stated = [numbers(header, keyword) for keyword in _THICKNESS]
    return [abs(values[0]) for values in stated if values and values[0]]


# --- their values ---


def _pixels(instance: Dataset, name: str) -> NDArray[Any]:
    """The stored values of an instance, which loses its pixel data.

    Raises:
        UserError: They cannot be decoded.
    """
    syntax = getattr(getattr(instance, "file_meta", None), "TransferSyntaxUID", None)
    try:
        pixels: NDArray[Any] = pixel_array(instance)
    except Exception:  # noqa: BLE001 - whatever a decoder says of a damaged file
        what, remedy = "it is damaged or cut off", "fetch it again"
        if syntax is not None and syntax.is_encapsulated and not _decodable(syntax):
            what = "there is no decoder for it here"
            remedy = "export it without compression, or install python-gdcm, which has most"
        raise UserError(
            f"{name}: the pixel data of {describe(instance)} cannot be decoded "
            f"({getattr(syntax, 'name', 'unknown transfer syntax')}): {what}; {remedy}."
        ) from None
    del instance.PixelData
    return pixels


def _decodable(syntax: str) -> bool:
    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


def _rescaled(pixels: NDArray[Any], item: _Slice, name: str) -> NDArray[Any]:
    """Values after the modality transform, whole where they are."""
    if item.header.get("ModalityLUTSequence"):
        table: NDArray[Any] = apply_modality_lut(pixels, item.header).astype(np.float32)
        return table
    slope, intercept = (
        _number(item, keyword, default, name)
        for keyword, default in zip(_RESCALE, (1.0, 0.0), strict=True)
    )
    if slope == 0:
        raise UserError(f"{name}: RescaleSlope of {item.place} is 0, so it has no values.")
    if slope == 1 and intercept == 0:
        return pixels
    low, high = sorted(int(value) * slope for value in (pixels.min(), pixels.max()))
    largest = max(abs(low), abs(high)) + abs(intercept)
    if slope.is_integer() and intercept.is_integer() and largest < 2**62:
        kind: Any = np.int32 if largest < 2**31 else np.int64
        whole: NDArray[Any] = pixels.astype(kind)
        whole *= int(slope)
        whole += int(intercept)
        return whole
    if not math.isfinite(largest) or largest > float(np.finfo(np.float32).max):
        raise UserError(
            f"{name}: the rescaled values of {item.place} are larger than float32 holds: correct "
            "RescaleSlope and RescaleIntercept."
        )
    return (pixels.astype(np.float64) * slope + intercept).astype(np.float32)


def _number(item: _Slice, keyword: str, default: float, name: str) -> float:
    """The number of an attribute, the default where it has no value."""
    values = numbers(item.header, keyword)
    if values:
        return values[0]
    if has_value(item.header, keyword):
        raise UserError(f"{name}: {keyword} of {item.place} is not a number: correct it.")
    return default


def _compact(array: NDArray[Any]) -> NDArray[Any]:
    """Whole numbers in the smallest of int16, uint16 and int32; the rest in float32."""
    if array.dtype.kind == "f":
        return array.astype(np.float32, copy=False)
    low, high = int(array.min()), int(array.max())
    for candidate in (np.int16, np.uint16, np.int32):
        if np.iinfo(candidate).min <= low and high <= np.iinfo(candidate).max:
            return array.astype(candidate, copy=False)
    return array.astype(np.float32)
