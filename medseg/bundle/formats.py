"""What images and segmentations are stored as."""

from __future__ import annotations

from typing import Literal

Format = Literal["nifti", "dicom"]

SUFFIXES: dict[Format, str] = {"nifti": ".nii.gz", "dicom": ".dcm"}
"""How the file of a segmentation ends."""
