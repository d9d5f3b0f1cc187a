"""Whether volumes have the same voxels, and the order of axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from nibabel.affines import apply_affine
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


def same_grid(first: Volume, second: Volume) -> bool:
    """Whether :func:`check_same_grid` holds."""
    return not _difference(first, second)


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
    places = [apply_affine(each.affine, corners(first)) for each in (first, second)]
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


def corners(volume: Volume) -> NDArray[np.float64]:
    """The indices ``[i, j, k]`` of a volume's eight corner voxels, one a row."""
    return np.array(list(np.ndindex(2, 2, 2))) * (np.array(volume.shape, dtype=np.float64) - 1)


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value + 0:.5g}" for value in values)


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
