"""The stage ``nifti_to_dicom``: a NIfTI dataset to one DICOM study per case."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    PYDICOM_IMPLEMENTATION_UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)
from pydicom.valuerep import DSfloat, format_number_as_ds

from medseg import __version__
from medseg.config import DEFAULT_SUFFIXES, Label, TaskConfig
from medseg.dataset import Case, Description, cases_in, is_decathlon, read_description
from medseg.dicom.cases import pseudonym, short_name
from medseg.dicom.seg import LONGEST_NAME, MANUFACTURER, build_segmentation
from medseg.dicom.targets import open_target
from medseg.imaging import (
    LPS_TO_RAS,
    Volume,
    check_rectangular,
    check_same_grid,
    read_label_map,
    read_nifti,
)
from medseg.project import DataRoot, Failures, UserError, fingerprint, progress, result

_SOP_CLASSES = {"CT": CTImageStorage, "MR": MRImageStorage}

_MR_CHANNEL = re.compile(r"MRI?|T1.*|T2.*|FLAIR.*|PD.*|ADC.*|DWI.*|SWI.*", re.IGNORECASE)
"""Channel names that stand for a kind of MR image."""


@dataclass
class _Dataset:
    """An input dataset, whatever its layout."""

    name: str
    cases: list[Case]
    channels: list[str]
    modalities: list[str]
    labels: Mapping[str, Label]


@dataclass(frozen=True)
class WrittenCases:
    """What became of the cases of a dataset.

    Attributes:
        cases: All that the target holds now.
        written: Those of them that were stored now.
    """

    cases: tuple[str, ...]
    written: tuple[str, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many they are: what an artifact carries, for a dataset may hold thousands."""
        return {"cases": len(self.cases), "written": len(self.written)}


def nifti_to_dicom(
    root: DataRoot,
    input_folder: str,
    output: str,
    *,
    config: TaskConfig | None = None,
    modality: str = "",
    deidentify: bool = False,
) -> WrittenCases:
    """Writes a NIfTI dataset as DICOM: a study per case with its image series and a DICOM SEG.

    Images become single-frame CT or MR instances of 16 bits: whole numbers as they are, fractions
    with the rescale slope that uses all bits, so that no value is off by more than half a stored
    unit. Several channels become several series, with the channel's name as SeriesDescription.
    PatientID is the case; UIDs follow from the content, so the same input gives the same UIDs.
    A case that the target already holds is left alone.

    A volume whose axes form a left-handed system in LPS comes back from :func:`convert_studies`
    with its third axis reversed: the same voxels at the same places.

    Args:
        root: The data root.
        input_folder: A dataset in the Decathlon layout (``dataset.json``, ``imagesTr``,
            ``labelsTr``, and ``imagesTs``, ``labelsTs`` where present), or with one folder per
            case (``<case>/<case>_image.nii.gz``, ``_label.nii.gz``, or the config's suffixes).
        output: A folder inside the data root (``<output>/<case>/<series>/0001.dcm``), a DICOMweb
            URL (STOW-RS) or ``dicom://AETITLE@host:port`` (C-STORE).
        config: The task, for suffixes, channels, modality and labels.
        modality: ``CT`` or ``MR``; by default what ``modality_list`` or dataset.json say.
        deidentify: Whether cases get pseudonyms.

    Raises:
        UserError: The input holds no case, the modality is unknown, or the target does not answer.
        CasesFailedError: More cases failed than ``max_failed_cases``; the others are stored.
    """
    folder = root.resolve(input_folder, field="input_folder")
    if not folder.is_dir():
        raise UserError(f"input_folder: {folder} is not a folder: name the one of the dataset.")
    dataset = _read_dataset(folder, config)
    kind = _modality(modality, dataset, folder)
    target = open_target(root, output)
    failures = Failures(private=True)
    cases, written = [], []
    for count, case in enumerate(dataset.cases, start=1):
        patient = pseudonym(root, case.name) if deidentify else case.name
        with failures.case(case.name):
            files = [*case.images, *([case.label] if case.label.is_file() else [])]
            settings = {
                "dataset": dataset.name,
                "patient": patient,
                "channels": dataset.channels,
                "labels": dataset.labels,
                "modality": kind,
                "version": __version__,
            }
            inputs = fingerprint(settings, files)
            if not target.is_done(patient, inputs):
                series = _build(case, patient, dataset, kind, inputs, deidentify)
                target.store(patient, inputs, series)
                written.append(patient)
            cases.append(patient)
            progress(patient, count, len(dataset.cases))
    failures.check(len(dataset.cases), config.max_failed_cases if config else 0)
    if target.folder is not None:
        result("DICOM", target.folder)
    return WrittenCases(tuple(cases), tuple(written))


# --- the input ---


def _read_dataset(folder: Path, config: TaskConfig | None) -> _Dataset:
    cases = cases_in(folder, config.modality_dict if config else DEFAULT_SUFFIXES)
    if not cases:
        raise UserError(
            f"{folder} holds no NIfTI case: give a folder with imagesTr (Decathlon layout), or "
            "with one folder per case that holds <case>_image.nii.gz."
        )
    described = read_description(folder) if is_decathlon(folder) else Description()
    named = list(described.channels)
    channels = (list(config.channels) if config else named) or ["image"]
    modalities = (config.modality_list if config else None) or named or channels
    labels = config.labels if config else described.labels
    return _Dataset(described.name or folder.name, cases, channels, modalities, labels)


def _modality(modality: str, dataset: _Dataset, folder: Path) -> str:
    names = [modality] if modality else dataset.modalities
    kinds = {"MR" if _MR_CHANNEL.fullmatch(name) else name.upper() for name in names}
    if len(kinds) == 1 and (kind := kinds.pop()) in _SOP_CLASSES:
        return kind
    raise UserError(
        f"the modality of {folder} is not clear ({', '.join(names)}): set modality to CT or MR."
    )


# --- one case ---


def _build(
    case: Case, patient: str, dataset: _Dataset, kind: str, seed: str, deidentify: bool
) -> dict[str, list[Dataset]]:
    """Series name to instances: the channels, then the segmentation."""
    volumes = _channels(case, dataset)
    image = next(iter(volumes.values()))
    study = Dataset()
    study.SpecificCharacterSet = "ISO_IR 192"
    study.PatientID = study.PatientName = patient
    study.PatientBirthDate = study.PatientSex = ""
    if deidentify:
        study.PatientIdentityRemoved = "YES"
        study.DeidentificationMethod = "Pseudonym in place of the case identifier"
    study.StudyInstanceUID = generate_uid(entropy_srcs=["study", dataset.name, patient])
    study.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame", patient, seed])
    study.StudyDate = study.StudyTime = study.StudyID = study.AccessionNumber = ""
    study.ReferringPhysicianName = ""
    study.StudyDescription = dataset.name[:LONGEST_NAME]

    series: dict[str, list[Dataset]] = {}
    for number, (channel, volume) in enumerate(volumes.items(), start=1):
        check_same_grid(image, volume)
        folder = f"{number}_{short_name(channel)}".rstrip("_")
        series[folder] = _image_series(study, volume, kind, channel, number, seed)
    if case.label.is_file():
        label = read_label_map(case.label)
        check_same_grid(image, label)
        names: dict[str, Label] = dict(dataset.labels)
        if not names:  # nothing names the labels: their values do
            names = {f"Label {value}": int(value) for value in np.unique(label.array) if value}
        instances = tuple(next(iter(series.values())))
        reference = Volume(image.array, image.affine, image.name, instances)
        segmentation = build_segmentation(
            label.array, reference, names, algorithm_name="", description="Segmentation"
        )
        series["SEG"] = [segmentation]
    return series


def _channels(case: Case, dataset: _Dataset) -> dict[str, Volume]:
    volumes: dict[str, Volume] = {}
    single = len(case.images) == 1  # with all channels
    for path, channel in zip(case.images, dataset.channels, strict=False):
        parts = read_nifti(path).channels
        names = dataset.channels if single else [channel]
        if len(parts) != len(names):
            raise UserError(
                f"{path.name} has {len(parts)} channels, but {len(names)} are declared "
                f"({', '.join(names)}): correct dataset.json or the config."
            )
        volumes.update(zip(names, parts, strict=True))
    return volumes


def _image_series(
    study: Dataset, volume: Volume, kind: str, channel: str, number: int, seed: str
) -> list[Dataset]:
    """The instances of one channel, in the order of k."""
    check_rectangular(volume)
    if max(volume.shape[:2]) > np.iinfo(np.uint16).max:
        raise UserError(f"{volume.name} has a slice of {volume.shape[:2]}: too large for DICOM.")
    stored, slope, intercept = _stored_values(volume)
    affine = LPS_TO_RAS @ volume.affine
    spacing = volume.spacing
    uid = generate_uid(entropy_srcs=["series", study.PatientID, channel, str(number), seed])

    common = Dataset()
    common.update(study)
    common.Modality = kind
    common.SOPClassUID = _SOP_CLASSES[kind]
    common.SeriesInstanceUID = uid
    common.SeriesNumber = number
    common.SeriesDescription = channel[:LONGEST_NAME]
    common.Manufacturer = MANUFACTURER
    common.SoftwareVersions = __version__
    common.PositionReferenceIndicator = common.PatientPosition = common.Laterality = ""
    common.ImageType = ["DERIVED", "SECONDARY", "AXIAL" if kind == "CT" else "OTHER"]
    common.DerivationDescription = "Converted from NIfTI"
    common.AcquisitionNumber = None
    common.SliceThickness = common.SpacingBetweenSlices = _decimal(spacing[2])
    common.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[0])]  # rows, then columns
    common.ImageOrientationPatient = [
        _decimal(value) for axis in (0, 1) for value in affine[:3, axis] / spacing[axis]
    ]
    if kind == "CT":
        common.KVP = None
        common.RescaleType = "HU"
    else:
        common.ScanningSequence, common.SequenceVariant = "RM", "NONE"  # research mode
        common.ScanOptions = common.MRAcquisitionType = ""
        common.EchoTime = common.EchoTrainLength = common.RepetitionTime = None
    if kind == "CT" or (slope, intercept) != (1, 0):  # classic MR does not know a rescale
        common.RescaleSlope, common.RescaleIntercept = _decimal(slope), _decimal(intercept)
    common.SamplesPerPixel, common.PhotometricInterpretation = 1, "MONOCHROME2"
    common.Columns, common.Rows = volume.shape[:2]
    common.BitsAllocated = common.BitsStored = 16
    common.HighBit = 15
    common.PixelRepresentation = int(stored.dtype == np.int16)

    instances = []
    for k in range(volume.shape[2]):
        instance = Dataset()
        instance.update(common)
        instance.InstanceNumber = k + 1
        instance.SOPInstanceUID = generate_uid(entropy_srcs=["instance", uid, str(k)])
        position = affine @ [0, 0, k, 1]
        instance.ImagePositionPatient = [_decimal(value) for value in position[:3]]
        instance.PixelData = stored[:, :, k].T.tobytes()
        instance["PixelData"].VR = "OW"
        instance.file_meta = _file_meta(instance)
        instance.preamble = bytes(128)
        instances.append(instance)
    return instances


def _file_meta(instance: Dataset) -> FileMetaDataset:
    """Complete, for dicomweb-client sends an instance as it finds it."""
    meta = FileMetaDataset()
    meta.FileMetaInformationGroupLength = 0  # pydicom fills it in where it writes
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = instance.SOPClassUID
    meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    return meta


def _stored_values(volume: Volume) -> tuple[NDArray[Any], float, float]:
    """16-bit values, and the slope and intercept that give the original back."""
    array = volume.array
    if array.dtype.kind not in "iuf":
        raise UserError(f"{volume.name} holds {array.dtype} values: an image needs numbers.")
    if not np.isfinite(array).all():
        raise UserError(f"{volume.name} holds infinite or undefined values (NaN): replace them.")
    low, high = float(array.min()), float(array.max())
    if array.dtype.kind in "iu" or np.array_equal(array, np.rint(array)):
        for candidate in (np.int16, np.uint16):
            if np.iinfo(candidate).min <= low and high <= np.iinfo(candidate).max:
                return array.astype(candidate), 1.0, 0.0
    # The rounded numbers of the header decide, so that reading them gives the same values.
    intercept = float(_decimal(low))
    slope = float(_decimal((high - intercept) / 65534))
    stored = np.rint((array.astype(np.float64) - intercept) / slope)
    return np.clip(stored, 0, 65535).astype(np.uint16), slope, intercept


def _decimal(value: float) -> DSfloat:
    """A DICOM decimal string: at most 16 characters."""
    return DSfloat(format_number_as_ds(float(value)))
