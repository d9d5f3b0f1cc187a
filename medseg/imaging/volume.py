"""A volume and its place in the patient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medseg.project import UserError

if TYPE_CHECKING:
    from pydicom import Dataset

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Turns DICOM's coordinates (left, posterior, superior) into NIfTI's (right, anterior, superior);
its own inverse."""

SAME_PLACE = 0.05
"""How far two grids may lie apart at any corner, in voxels, to count as the same grid: headers
round their numbers, registration errors are larger."""


@dataclass(frozen=True)
class Volume:
    """A regular grid of voxels.

    Attributes:
        array: Voxel values ``[i, j, k]``, or ``[i, j, k, channel]`` from a 4D NIfTI file. Of a
            DICOM series: rescaled values (HU for CT).
        affine: 4x4, from voxel index to millimetres in RAS.
        name: What to call it in a message: the case or the file.
        instances: Headers of the DICOM instances it was read from, one a slice in the order of
            ``k`` (or the one multi-frame instance), without pixels. Empty for NIfTI.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]
    name: str
    instances: tuple[Dataset, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along i, j, k."""
        i, j, k = self.array.shape[:3]
        return (i, j, k)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between voxel centres along i, j, k."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return (i, j, k)


def check_same_grid(first: Volume, second: Volume) -> None:
    """Checks that two volumes have the same voxels at the same places.

    Args:
        first: A volume.
        second: Another one.

    Raises:
        UserError: They differ in size, or lie apart by more than 5 % of a voxel at some corner.
    """
    if first.shape != second.shape:
        raise UserError(
            f"{second.name} has {_size(second.shape)} voxels, but {first.name} has "
            f"{_size(first.shape)}: resample the one onto the other's grid first."
        )
    corners = np.array(
        [[*(np.array(corner) * (np.array(first.shape) - 1)), 1] for corner in np.ndindex(2, 2, 2)]
    )
    apart = np.abs(corners @ (first.affine - second.affine).T).max()
    if apart > SAME_PLACE * min(first.spacing):
        raise UserError(
            f"{second.name} lies {apart:.3g} mm off {first.name}: they have different geometry "
            "(origin, spacing or orientation); resample the one onto the other's grid first."
        )


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


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
