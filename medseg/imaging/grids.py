"""Whether volumes have the same voxels, what to do where they have not, and the order of axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import nibabel
import numpy as np
from nibabel.affines import apply_affine
from nibabel.processing import resample_from_to
from numpy.typing import NDArray

from medseg.imaging.volume import Volume
from medseg.project import UserError

SAME_PLACE = 0.05
"""How far two grids may lie apart at any corner, in voxels, to count as the same grid.

One number for all of spacing, origin and direction, for what counts is where voxels come to lie:
a spacing that is off by a thousandth is nothing over ten slices and two voxels over two thousand.
Headers round their numbers (DICOM's decimal strings, single precision, quaternions), and rounding
stays far below a twentieth of a voxel; errors of registration and wrong headers are larger.
"""


def check_same_grid(first: Volume, second: Volume) -> None:
    """Checks that two volumes have the same voxels at the same places.

    Args:
        first: A volume.
        second: Another one.

    Raises:
        UserError: They differ in size, or lie apart by more than 5 % of a voxel (of its shortest
            edge) at some corner; the message says in which of spacing, direction and origin.
    """
    difference = _difference(first, second)
    if difference:
        raise UserError(f"{difference}; resample the one onto the other's grid first.")


def check_rectangular(volume: Volume) -> None:
    """Checks that a volume's axes are perpendicular, as DICOM series and SimpleITK need them.

    Args:
        volume: The volume.

    Raises:
        UserError: The affine is singular or sheared.
    """
    spacing = np.array(volume.spacing)
    if not np.isfinite(volume.affine).all() or (spacing < 1e-6).any():
        raise UserError(f"{volume.name} has no usable affine: its voxels have no extent.")
    axes = volume.affine[:3, :3] / spacing
    if np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3:
        raise UserError(
            f"{volume.name} is sheared (its axes are not perpendicular, as with a tilted gantry): "
            "resample it onto a rectangular grid first."
        )


def resampled_onto(volume: Volume, reference: Volume) -> Volume:
    """A volume on the grid of another, resampled with linear interpolation where it is not.

    Beyond its own border it keeps the border's values, as MONAI's ``ResampleToMatch`` does.

    Args:
        volume: A volume of three dimensions.
        reference: The volume whose grid to take.

    Returns:
        ``volume`` itself where both have one grid already (:func:`check_same_grid`), else float32
        values on the grid of ``reference``.

    Raises:
        UserError: The grids differ, and the two do not overlap, or are of DICOM and have no common
            frame of reference.
    """
    if not _difference(reference, volume):
        return volume
    frames = [
        {str(item.get("FrameOfReferenceUID") or "") for item in each.instances}
        for each in (reference, volume)
    ]
    if frames[0] != frames[1] or "" in frames[0]:
        raise UserError(
            f"{volume.name} and {reference.name} have no common frame of reference: register the "
            "one to the other first."
        )
    corners = apply_affine(np.linalg.inv(volume.affine) @ reference.affine, _corners(reference))
    if (corners.max(0) < 0).any() or (corners.min(0) > np.array(volume.shape) - 1).any():
        raise UserError(
            f"{volume.name} and {reference.name} do not overlap: register the one to the other "
            "first."
        )
    image = nibabel.Nifti1Image(volume.array.astype(np.float32), volume.affine)
    target = (reference.shape, reference.affine)
    array = np.asarray(resample_from_to(image, target, order=1, mode="nearest").dataobj)
    return replace(volume, array=array, affine=reference.affine)


def to_zyx(volumes: Sequence[Volume]) -> NDArray[Any]:
    """Volumes as one array in the order that SimpleITK and nnU-Net use.

    The spacing in that order is ``volume.spacing[::-1]``.

    Args:
        volumes: One or more volumes on the same grid, of three dimensions or four.

    Returns:
        All channels of all volumes, in their order: ``(channel, z, y, x)``, that is
        ``[channel, k, j, i]``. A view where there is one volume.

    Raises:
        UserError: They do not have the same grid.
    """
    for other in volumes[1:]:
        check_same_grid(volumes[0], other)
    arrays = []
    for volume in volumes:
        array = volume.array if volume.array.ndim == 4 else volume.array[..., None]
        arrays.append(array.transpose(3, 2, 1, 0))
    return np.concatenate(arrays) if len(arrays) > 1 else arrays[0]


def from_zyx(array: NDArray[Any]) -> NDArray[Any]:
    """An array ``(z, y, x)``, such as nnU-Net's label map, as ``[i, j, k]``; a view."""
    return array.transpose(2, 1, 0)


def _difference(first: Volume, second: Volume) -> str:
    """What tells two grids apart, in words; nothing where they are the same."""
    if first.shape != second.shape:
        return (
            f"{second.name} has {_size(second.shape)} voxels, but {first.name} has "
            f"{_size(first.shape)}"
        )
    places = [apply_affine(each.affine, _corners(first)) for each in (first, second)]
    apart = np.abs(places[0] - places[1]).max()
    tolerance = SAME_PLACE * min(first.spacing)
    if apart <= tolerance:
        return ""
    origins, spacings = (
        [np.asarray(value) for value in pair]
        for pair in ((first.affine[:3, 3], second.affine[:3, 3]), (first.spacing, second.spacing))
    )
    with np.errstate(all="ignore"):  # a singular affine is as different as any
        directions = [
            each.affine[:3, :3] / spacing
            for each, spacing in zip((first, second), spacings, strict=True)
        ]
        extent = spacings[0] * (np.array(first.shape) - 1)
        effects = {  # each by itself, in mm
            f"spacing: {_numbers(spacings[0])} and {_numbers(spacings[1])} mm": np.abs(
                (spacings[0] - spacings[1]) * (np.array(first.shape) - 1)
            ).max(),
            f"origin: {_numbers(origins[0])} and {_numbers(origins[1])} mm in RAS": np.abs(
                origins[0] - origins[1]
            ).max(),
            f"direction: {_numbers(directions[0].T.ravel())} and "
            f"{_numbers(directions[1].T.ravel())}": np.abs(
                (directions[0] - directions[1]) * extent
            ).max(),
        }
    differences = [text for text, effect in effects.items() if not effect <= tolerance]
    return (
        f"{second.name} lies {apart:.3g} mm off {first.name}: they have different geometry "
        f"({'; '.join(differences) or 'spacing, origin and direction together'})"
    )


def _corners(volume: Volume) -> NDArray[np.float64]:
    """The indices of the eight corner voxels' centres."""
    return np.array(list(np.ndindex(2, 2, 2))) * (np.array(volume.shape, dtype=np.float64) - 1)


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value + 0:.5g}" for value in values)


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
