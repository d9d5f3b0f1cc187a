"""A small CT series whose headers a test may spoil."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

Edit = Callable[[int, Dataset], None]


def phantom() -> np.ndarray:
    """Stored values ``[slice, row, column]``; CT numbers after an intercept of -1024."""
    return np.arange(4 * 6 * 5, dtype=np.uint16).reshape(4, 6, 5) + 900


def write_series(
    folder: Path, edit: Edit | None = None, *, patient: str = "P1", first: int = 1
) -> list[Path]:
    """Writes four slices of 6 x 5 pixels, 0.9 x 0.8 x 2.5 mm.

    Args:
        folder: Where to; made if needed.
        edit: Changes slice number 0, 1, … before it is written.
        patient: PatientID, of which the UIDs are made.
        first: The number of the first file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, pixels in enumerate(phantom()):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = CTImageStorage
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=[patient, str(number), str(first)])
        dataset.StudyInstanceUID = generate_uid(entropy_srcs=[patient, "study"])
        dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[patient, "series"])
        dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=[patient, "frame"])
        dataset.Modality, dataset.SeriesDescription = "CT", "Body"
        dataset.PatientID, dataset.PatientName = patient, "Avasarala^Chrisjen"
        dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20200101", "120000", "1"
        dataset.SeriesNumber, dataset.InstanceNumber = 1, number + 1
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [-50, -60, 100 + 2.5 * number]
        dataset.PixelSpacing, dataset.SliceThickness = [0.8, 0.9], 2.5
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 0
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.PixelData = pixels.tobytes()
        if edit is not None:
            edit(number, dataset)
        paths.append(folder / f"IM{number + first:04}.dcm")
        dataset.save_as(paths[-1], enforce_file_format=True)
    return paths
