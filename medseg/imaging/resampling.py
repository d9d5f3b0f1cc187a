"""A volume on the grid of another."""

from __future__ import annotations

from dataclasses import replace

import nibabel
import numpy as np
from nibabel.affines import apply_affine
from nibabel.processing import resample_from_to

from medseg.imaging.grids import corners, same_grid
from medseg.imaging.volume import Volume
from medseg.project import UserError


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
    if same_grid(reference, volume):
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
    to_volume = np.linalg.inv(volume.affine) @ reference.affine
    ends = apply_affine(to_volume, corners(reference))
    if (ends.max(0) < 0).any() or (ends.min(0) > np.array(volume.shape) - 1).any():
        raise UserError(
            f"{volume.name} and {reference.name} do not overlap: register the one to the other "
            "first."
        )
    image = nibabel.Nifti1Image(volume.array.astype(np.float32), volume.affine)
    target = (reference.shape, reference.affine)
    array = np.asarray(resample_from_to(image, target, order=1, mode="nearest").dataobj)
    return replace(volume, array=array, affine=reference.affine)
