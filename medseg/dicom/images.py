"""One door for an image, whatever its format."""

from __future__ import annotations

from pathlib import Path

from medseg.dicom.series import volume_from_instances
from medseg.dicom.sources import IMAGE_MODALITIES, FolderSource, Series
from medseg.imaging import Volume, is_nifti, read_nifti
from medseg.project import UserError, progress


def read_image(path: str | Path) -> Volume:
    """Reads a NIfTI file or a DICOM series.

    Args:
        path: A ``.nii``/``.nii.gz`` file, a DICOM file (multi-frame or one slice), or a folder
            that holds the files of one CT, MR or PT series, at any depth and beside other
            objects (SEG, reports).

    Returns:
        The volume. For DICOM, :attr:`Volume.instances` carries the headers that
        :func:`medseg.dicom.write_segmentation` refers to.

    Raises:
        UserError: The path does not exist, holds no or several image series, or the series is no
            regular volume (a missing slice, mixed sizes or orientations, …).
    """
    path = Path(path)
    if is_nifti(path):
        return read_nifti(path)
    if not path.exists():
        raise UserError(f"{path} does not exist: name a NIfTI file or a folder with DICOM files.")
    source = FolderSource(path)
    series = image_series(source)
    if len(series) != 1:
        names = ", ".join(map(str, series)) or "none"
        raise UserError(
            f"{path} must hold exactly one image series (CT, MR or PT), found {names}: "
            "give each series a folder of its own and name that."
        )
    remarks = [f"{item.what} was left out: {item}" for item in source.left_out()]
    remarks += [
        f"{item} was left out: {item.no_volume}"
        for study in source.studies()
        for item in source.series(study.uid)
        if item.no_volume and item != series[0]
    ]
    volume = volume_from_instances(source.fetch(series[0]), path.name, remarks)
    for remark in remarks:
        progress(f"warning: {path.name}: {remark}")
    return volume


def image_series(source: FolderSource) -> list[Series]:
    """The series of a folder that may become volumes: CT, MR or PT, and no localizers or captures.

    Args:
        source: The folder.

    Returns:
        The series; where all are localizers or captures, these.
    """
    images = [
        series
        for study in source.studies()
        for series in source.series(study.uid)
        if series.modality in IMAGE_MODALITIES
    ]
    return [series for series in images if not series.no_volume] or images
