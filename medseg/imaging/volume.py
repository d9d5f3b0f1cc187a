"""A volume and its place in the patient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from nibabel import orientations
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pydicom import Dataset

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Turns DICOM's coordinates (left, posterior, superior) into NIfTI's (right, anterior, superior);
its own inverse."""


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

    @property
    def orientation(self) -> str:
        """Where i, j and k grow to, nearest axes of the patient, such as ``RAS`` or ``LPS``."""
        return "".join(orientations.aff2axcodes(self.affine))

    @property
    def channels(self) -> tuple[Volume, ...]:
        """The channels of a 4D volume, each in three dimensions; a 3D volume itself."""
        if self.array.ndim == 3:
            return (self,)
        return tuple(
            replace(self, array=self.array[..., channel]) for channel in range(self.array.shape[3])
        )

    def turned(self, axes: str) -> Volume:
        """The same voxels at the same places, with axes permuted and flipped.

        Args:
            axes: Where i, j and k should grow to, such as ``LPS``. An oblique volume keeps its own
                axes, in the order that is nearest.

        Returns:
            The volume; its array is a view.
        """
        turn = orientations.ornt_transform(
            orientations.io_orientation(self.affine), orientations.axcodes2ornt(axes)
        )
        return replace(
            self,
            array=orientations.apply_orientation(self.array, turn),
            affine=self.affine @ orientations.inv_ornt_aff(turn, self.shape),
        )
