"""From the instances of an image series to a volume."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import highdicom
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels import apply_modality_lut, pixel_array  # type: ignore[attr-defined]

from medseg.imaging import LPS_TO_RAS, Volume
from medseg.project import UserError

_UNEVEN = 0.01
"""Share of the slice spacing by which a slice may be off its place, as in highdicom."""


def volume_from_instances(instances: Sequence[Dataset], name: str) -> Volume:
    """Stacks the instances of one image series.

    Single-frame instances are sorted by their position along the slice normal; an enhanced
    multi-frame instance is sorted by its frames' positions. Values go through the modality
    transform (rescale slope and intercept, PS3.3 C.11.1), so CT comes out in HU.

    Args:
        instances: All instances of the series, in any order. Their pixel data is taken out of
            them, so that a volume is in memory once.
        name: What to call the volume in a message.

    Returns:
        The volume: int16, uint16 or int32 where all values are whole, else float32.

    Raises:
        UserError: The instances are no regular volume; the message says why and names the
            instance numbers.
    """
    if not instances:
        raise UserError(f"{name}: the series holds no instances.")
    if any("PixelData" not in instance for instance in instances):
        raise UserError(f"{name}: an instance of the image series has no pixel data.")
    if any(instance.get("SamplesPerPixel", 1) != 1 for instance in instances):
        raise UserError(f"{name}: the series holds colour images, which are no measurements.")
    if any(int(instance.get("NumberOfFrames") or 1) > 1 for instance in instances):
        return _multi_frame(instances, name)
    return _single_frames(instances, name)


def _single_frames(instances: Sequence[Dataset], name: str) -> Volume:
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        if any(not instance.get(keyword) for instance in instances):
            raise UserError(f"{name}: an instance has no {keyword}, so it has no place in space.")
    sizes = sorted({f"{instance.Columns}x{instance.Rows}" for instance in instances})
    if len(sizes) > 1:
        raise UserError(f"{name}: the series mixes image sizes ({', '.join(sizes)}).")
    orientations = np.array([instance.ImageOrientationPatient for instance in instances], float)
    if np.ptp(orientations, axis=0).max() > 1e-3:
        raise UserError(
            f"{name}: the series mixes orientations (a localizer?), so it is no volume."
        )
    spacings = np.array([instance.PixelSpacing for instance in instances], float)
    if (np.ptp(spacings, axis=0) > _UNEVEN * spacings[0]).any():
        raise UserError(f"{name}: the series mixes pixel spacings, so it is no volume.")

    row, column = orientations[0, :3], orientations[0, 3:]
    normal = np.cross(row, column)
    if abs(np.linalg.norm(normal) - 1) > 1e-2:
        raise UserError(f"{name}: ImageOrientationPatient holds no perpendicular unit vectors.")
    positions = np.array([instance.ImagePositionPatient for instance in instances], float)
    order = np.argsort(positions @ normal, kind="stable")
    instances, positions = [instances[index] for index in order], positions[order]
    step = _slice_step(instances, positions, normal, name)

    affine = np.eye(4)
    affine[:3, 0] = row * spacings[0, 1]  # PixelSpacing: between rows, then between columns
    affine[:3, 1] = column * spacings[0, 0]
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    try:
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            slices = list(pool.map(_values, instances))
    except (RuntimeError, ValueError, NotImplementedError):
        syntax = instances[0].file_meta.TransferSyntaxUID.name
        raise UserError(
            f"{name}: the pixel data cannot be decoded ({syntax}): the file is damaged, or pydicom "
            "lacks a decoder for it here (python-gdcm brings most of them)."
        ) from None
    array = _compact(np.stack(slices))
    return Volume(array.transpose(2, 1, 0), LPS_TO_RAS @ affine, name, tuple(instances))


def _slice_step(
    instances: Sequence[Dataset],
    positions: NDArray[np.float64],
    normal: NDArray[np.float64],
    name: str,
) -> NDArray[np.float64]:
    """The vector from one slice to the next, after all that can be wrong with it."""
    if len(instances) == 1:
        first = instances[0]
        return normal * float(first.get("SpacingBetweenSlices") or first.get("SliceThickness") or 1)
    gaps = np.diff(positions @ normal)
    spacing = float(np.median(gaps))

    def between(index: int) -> str:
        pair = (instances[index].get("InstanceNumber"), instances[index + 1].get("InstanceNumber"))
        return f"between instances {pair[0]} and {pair[1]}"

    closest, widest = int(gaps.argmin()), int(gaps.argmax())
    if gaps[closest] < 1e-3:
        raise UserError(
            f"{name}: two slices lie at the same place ({between(closest)}): the series holds a "
            "slice twice, or several time points or echoes; store each as a series of its own."
        )
    missing = round(float(gaps[widest]) / spacing) - 1
    if missing >= 1 and abs(gaps[widest] - (missing + 1) * spacing) < 0.1 * spacing:
        raise UserError(
            f"{name}: {missing} slice{'s are' if missing > 1 else ' is'} missing "
            f"{between(widest)}: fetch the complete series."
        )
    step: NDArray[np.float64] = (positions[-1] - positions[0]) / (len(positions) - 1)
    off = np.abs(positions - (positions[0] + np.arange(len(positions))[:, None] * step))
    if abs(step @ normal) < (1 - 1e-3) * np.linalg.norm(step):
        raise UserError(
            f"{name}: the slices are sheared (a tilted gantry): resample the series onto a "
            "rectangular grid first."
        )
    if off.max() > max(_UNEVEN * spacing, 0.01):
        raise UserError(
            f"{name}: the slice spacing varies from {gaps.min():.3g} to {gaps.max():.3g} mm, "
            f"most {between(widest)}: resample the series onto a regular grid first."
        )
    return step


def _values(instance: Dataset) -> NDArray[Any]:
    """Rescaled pixels of one instance, which loses its pixel data."""
    pixels = pixel_array(instance)
    del instance.PixelData
    slope = float(instance.get("RescaleSlope", 1))
    intercept = float(instance.get("RescaleIntercept", 0))
    if "ModalityLUTSequence" in instance or not (slope.is_integer() and intercept.is_integer()):
        scaled: NDArray[Any] = apply_modality_lut(pixels, instance).astype(np.float32)
        return scaled
    if slope != 1 or intercept != 0:
        pixels = pixels.astype(np.int32) * int(slope) + int(intercept)
    whole: NDArray[Any] = pixels
    return whole


def _compact(array: NDArray[Any]) -> NDArray[Any]:
    """Whole numbers in the smallest of int16, uint16 and int32; the rest in float32."""
    if array.dtype.kind == "f":
        return array.astype(np.float32, copy=False)
    low, high = int(array.min()), int(array.max())
    for candidate in (np.int16, np.uint16, np.int32):
        if np.iinfo(candidate).min <= low and high <= np.iinfo(candidate).max:
            return array.astype(candidate, copy=False)
    return array.astype(np.float32)


def _multi_frame(instances: Sequence[Dataset], name: str) -> Volume:
    if len(instances) > 1:
        raise UserError(
            f"{name}: the series holds {len(instances)} multi-frame instances; "
            "one volume must be one instance."
        )
    instance = instances[0]
    if "PerFrameFunctionalGroupsSequence" not in instance:
        raise UserError(f"{name}: a multi-frame instance without positions of its frames.")
    try:
        stack = highdicom.Image.from_dataset(instance, copy=False).get_volume(dtype=np.float64)
    except (ValueError, RuntimeError, AttributeError) as error:
        raise UserError(f"{name}: the multi-frame instance is no regular volume: {error}") from None
    affine = stack.affine[:, [2, 1, 0, 3]]  # highdicom's index: slice, row, column
    array = stack.array
    if np.cross(affine[:3, 0], affine[:3, 1]) @ affine[:3, 2] < 0:
        affine[:3, 3] += (len(array) - 1) * affine[:3, 2]
        affine[:3, 2] *= -1
        array = array[::-1]
    if np.array_equal(array, np.rint(array)) and np.abs(array).max() < 2**31:
        array = array.astype(np.int32)
    headers = Dataset()
    headers.update(instance)
    del headers.PixelData
    return Volume(_compact(array).transpose(2, 1, 0), LPS_TO_RAS @ affine, name, (headers,))
