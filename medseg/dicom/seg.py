"""DICOM SEG: written for a source series, read onto an image's grid."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.config import disable_value_validation
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import CTImageStorage, generate_uid

from medseg import __version__
from medseg.config import Label
from medseg.dicom.header import character_set_for, normalised_header, series_number
from medseg.dicom.images import read_image
from medseg.imaging import LPS_TO_RAS, SAME_PLACE, Volume, as_labels
from medseg.project import UserError, atomic_file

MANUFACTURER = "kfp-medseg"
LONGEST_NAME = 64
"""Characters that DICOM's value representation LO holds."""

_ANATOMY = codes.SCT.AnatomicalStructure
_TISSUE = codes.SCT.Tissue


def write_segmentation(
    mask: NDArray[Any],
    reference: Volume | str | Path,
    path: str | Path,
    labels: Mapping[str, Label],
    **options: Any,
) -> Path:
    """Writes a label map as a binary DICOM SEG that refers to its source series.

    Args:
        mask: Label values ``[i, j, k]`` on the reference's grid.
        reference: The source series: a volume from :func:`medseg.dicom.read_image`, or its path.
        path: The file to write.
        labels: Segment names to label values, as a config's ``labels``; the value 0 is background.
            A list of values is a region: its segment holds the voxels of all of them.
        options: The keyword arguments of :func:`build_segmentation`: what the segments are, and
            what made the mask.

    Returns:
        ``path``.

    Raises:
        UserError: As :func:`build_segmentation`.
    """
    if not isinstance(reference, Volume):
        reference = read_image(reference)
    dataset = build_segmentation(mask, reference, labels, **options)
    with atomic_file(Path(path)) as temporary:
        dataset.save_as(temporary)
    return Path(path)


def build_segmentation(
    mask: NDArray[Any],
    reference: Volume,
    labels: Mapping[str, Label],
    *,
    segments: Sequence[Mapping[str, Any]] = (),
    algorithm_name: str = "kfp-medseg",
    algorithm_version: str = __version__,
    description: str = "Segmentation",
) -> Segmentation:
    """A label map as a binary DICOM SEG that refers to its source series.

    Segments are numbered 1, 2, … in the order of their label values; a label without a voxel is
    described but has no frames. Equal input gives equal UIDs. Of the source's header goes on what
    :func:`medseg.dicom.header.normalised_header` makes of it; text is in the source's character
    set, or in UTF-8 where that cannot hold a segment's name.

    Args:
        mask: Label values ``[i, j, k]`` on the reference's grid.
        reference: The source series, from :func:`medseg.dicom.read_image`.
        labels: Segment names to label values, as a config's ``labels``; the value 0 is background.
            A list of values is a region: its segment holds the voxels of all of them.
        segments: What replaces the defaults of a segment: items with ``segment_label`` (one of
            ``labels``) and any of ``segmented_property_category``, ``segmented_property_type``
            (each ``{code, scheme, meaning}``) and ``algorithm_name``, as in a segmentation task
            file. By default a name that pydicom's SNOMED CT dictionary knows (``Spleen``) gets its
            code, any other the code of tissue.
        algorithm_name: What made the mask, at most 64 characters; empty means a person did
            (SegmentAlgorithmType MANUAL, else AUTOMATIC).
        algorithm_version: The algorithm's version.
        description: SeriesDescription.

    Returns:
        The instance, not yet in a file.

    Raises:
        UserError: The reference is no DICOM series, ``labels`` name no segment, the mask has
            another size or holds a value that ``labels`` does not name, or a name or code is longer
            than DICOM allows or holds a backslash; or the image's axes are not perpendicular.
    """
    if not reference.instances:
        raise UserError(
            f"{reference.name} is no DICOM series, so a DICOM SEG has nothing to refer to: "
            "give the DICOM input, or choose NIfTI as output format."
        )
    structures = _structures(labels)
    if not structures:
        raise UserError(f"no label names a segment of {reference.name}: declare one beside 0.")
    frames = _frames(mask, reference, structures)
    overrides = _overrides(segments, structures)
    first = reference.instances[0]
    seed = [
        str(first.SeriesInstanceUID),
        hashlib.sha256(frames.tobytes()).hexdigest(),
        repr(list(structures.items())),
        repr(segments),
        f"{algorithm_name} {algorithm_version} {description} {__version__}",
    ]
    header = normalised_header(first)
    slices = _slices(reference)
    described = [
        _describe(number, name, overrides.get(name, {}), algorithm_name, algorithm_version)
        for number, name in enumerate(structures, start=1)
    ]
    texts = [*structures, repr(segments), algorithm_name, description]
    # what the source says of itself is kept though it may break the standard, without a warning
    # that quotes it
    with disable_value_validation():
        segmentation = Segmentation(
            source_images=_source_images(header, reference, slices),
            pixel_array=_on_grid(frames, reference, header),
            segmentation_type="BINARY",
            segment_descriptions=described,
            series_instance_uid=generate_uid(entropy_srcs=["series", *seed]),
            series_number=series_number(first) + 1000,
            sop_instance_uid=generate_uid(entropy_srcs=["instance", *seed]),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name="medseg",
            software_versions=__version__,
            device_serial_number="0",
            content_label="SEGMENTATION",
            content_creator_name=None,
            series_description=_short(description, "the series description"),
            specific_character_set=character_set_for(header, texts),
        )
        segmentation.PatientName = header.PatientName
        _refer(segmentation, slices)
    return segmentation


def _structures(labels: Mapping[str, Label]) -> dict[str, tuple[int, ...]]:
    """The names of the segments and the values that each holds, in the order of the values."""
    values = {
        name: tuple(sorted(label)) if isinstance(label, Sequence) else (int(label),)
        for name, label in labels.items()
    }
    named = {name: own for name, own in values.items() if any(own)}
    return dict(sorted(named.items(), key=lambda item: item[1]))


def _frames(
    mask: NDArray[Any], reference: Volume, structures: Mapping[str, tuple[int, ...]]
) -> NDArray[np.unsignedinteger[Any]]:
    """The mask as highdicom takes it.

    Returns:
        ``[slice, row, column]`` with the numbers of the segments; where two segments share a value,
        ``[slice, row, column, segment]`` with 1 in a segment.
    """
    mask = as_labels(mask, f"the mask for {reference.name}")
    if mask.shape != reference.shape:
        raise UserError(
            f"the mask has shape {mask.shape}, its source series {reference.name} "
            f"{reference.shape}: resample the mask onto the series' grid first."
        )
    declared = list(chain(*structures.values()))
    unknown = sorted(set(np.unique(mask).tolist()) - {0, *declared})
    if unknown:
        listed = ", ".join(
            f"{name}: {', '.join(map(str, values))}" for name, values in structures.items()
        )
        raise UserError(
            f"the mask for {reference.name} holds the label {unknown[0]}, which no segment "
            f"declares ({listed})."
        )
    mask = mask.transpose(2, 1, 0)
    if len(set(declared)) < len(declared):
        held = [np.isin(mask, values) for values in structures.values()]
        return np.stack(held, axis=-1).astype(np.uint8)
    numbers = np.zeros(max(declared) + 1, np.uint8 if len(structures) < 256 else np.uint16)
    for number, values in enumerate(structures.values(), start=1):
        numbers[list(values)] = number
    return np.ascontiguousarray(numbers[mask])


# --- the source as highdicom sees it ---


@dataclass(frozen=True)
class _Slice:
    """One slice of the source, and the object that holds it.

    Attributes:
        index: Its place along k.
        sop_class: SOPClassUID.
        instance: SOPInstanceUID.
        frame: Its frame in that, from 1; 0 where the instance is one frame.
    """

    index: int
    sop_class: str
    instance: str
    frame: int

    @property
    def placeholder(self) -> str:
        """What stands for its SOPInstanceUID until the SEG is built."""
        return f"1.{self.index + 1}"


def _slices(reference: Volume) -> list[_Slice]:
    """Where each slice of the source comes from."""
    slices = []
    to_index = np.linalg.inv(LPS_TO_RAS @ reference.affine)
    for place, instance in enumerate(reference.instances):
        meta = getattr(instance, "file_meta", Dataset())
        sop_class = instance.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID")
        sop_class = str(sop_class or CTImageStorage)
        uid = str(instance.SOPInstanceUID)
        groups = instance.get("PerFrameFunctionalGroupsSequence") or ()
        if len(groups) < 2:
            slices.append(_Slice(place, sop_class, uid, 0))
            continue
        shared = (instance.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
        for frame, group in enumerate(groups, start=1):
            position = _group(group, shared, "PlanePositionSequence").ImagePositionPatient
            index = round(float((to_index @ [*map(float, position), 1])[2]))
            slices.append(_Slice(index, sop_class, uid, frame))
    return slices


def _source_images(header: Dataset, reference: Volume, slices: Iterable[_Slice]) -> list[Dataset]:
    """The source as one CT series of single slices, whatever it is: highdicom knows such best.

    It refuses sources whose class it does not know, that have two orientations in the last digit,
    or that are several enhanced objects; :func:`_refer` puts the true references in their place.
    """
    affine = LPS_TO_RAS @ reference.affine
    spacing = reference.spacing
    images = []
    for item in slices:
        image = Dataset()
        image.update(header)
        image.add_new("PatientName", "PN", "")  # highdicom warns of unusual ones by quoting them
        image.Modality = "CT"
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, item.placeholder
        image.Columns, image.Rows = reference.shape[:2]
        image.PixelSpacing = [float(spacing[1]), float(spacing[0])]
        image.SliceThickness = float(spacing[2])
        image.ImageOrientationPatient = [
            float(value) for axis in (0, 1) for value in affine[:3, axis] / spacing[axis]
        ]
        image.ImagePositionPatient = [float(v) for v in (affine @ [0, 0, item.index, 1])[:3]]
        images.append(image)
    return images


def _on_grid(
    frames: NDArray[np.unsignedinteger[Any]], reference: Volume, header: Dataset
) -> highdicom.Volume:
    """The frames at their place.

    Raises:
        UserError: The image's axes are not perpendicular: a SEG cannot say so.
    """
    affine = (LPS_TO_RAS @ reference.affine)[:, [2, 1, 0, 3]]  # highdicom's: slice, row, column
    # directions rounded to a few digits are not quite perpendicular; the nearest that are
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / spacing)
    straight = affine.copy()
    straight[:3, :3] = left @ right * spacing
    extent = np.abs(straight[:3, :3] - affine[:3, :3]) @ np.array(frames.shape[:3])
    if extent.max() > SAME_PLACE * spacing.min():
        raise UserError(
            f"the axes of {reference.name} are not perpendicular, which a DICOM SEG cannot say: "
            "resample the series onto a rectangular grid first, or choose NIfTI as output format."
        )
    numbers = {"SegmentNumber": range(1, frames.shape[3] + 1)} if frames.ndim == 4 else None
    return highdicom.Volume(
        frames,
        straight,
        "PATIENT",
        frame_of_reference_uid=header.FrameOfReferenceUID,
        channels=numbers,
    )


def _refer(segmentation: Segmentation, slices: Iterable[_Slice]) -> None:
    """Lets a SEG refer to the true instances and frames of its source."""
    true = {item.placeholder: item for item in slices}
    for groups in segmentation.PerFrameFunctionalGroupsSequence:
        for derivation in groups.get("DerivationImageSequence", ()):
            for source in derivation.SourceImageSequence:
                item = true.get(source.ReferencedSOPInstanceUID)
                if item is None:  # frames of several segments share what they refer to
                    continue
                source.ReferencedSOPClassUID = item.sop_class
                source.ReferencedSOPInstanceUID = item.instance
                if item.frame:
                    source.ReferencedFrameNumber = item.frame
    instances = []
    for uid, sop_class in {item.instance: item.sop_class for item in true.values()}.items():
        instance = Dataset()
        instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID = sop_class, uid
        instances.append(instance)
    segmentation.SourceImageSequence = instances
    segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence = instances


# --- what the segments are ---


def _short(text: str, what: str, longest: int = LONGEST_NAME) -> str:
    if len(text) > longest:
        raise UserError(
            f"{what} {text!r} has {len(text)} characters; DICOM allows {longest}: shorten it."
        )
    if "\\" in text or any(ord(letter) < 32 for letter in text):
        raise UserError(
            f"{what} {text!r} holds a backslash or a line break, which DICOM does not allow: "
            "rename it."
        )
    return text


def _overrides(
    segments: Sequence[Mapping[str, Any]], names: Iterable[str]
) -> dict[str, Mapping[str, Any]]:
    spelling = {name.casefold(): name for name in names}
    overrides = {}
    for segment in segments:
        label = str(segment.get("segment_label", ""))
        if label.casefold() not in spelling:
            raise UserError(
                f"Segments: segment_label {label!r} is none of the labels "
                f"({', '.join(spelling.values())})."
            )
        overrides[spelling[label.casefold()]] = segment
    return overrides


def _describe(
    number: int, name: str, override: Mapping[str, Any], algorithm: str, version: str
) -> SegmentDescription:
    algorithm = str(override.get("algorithm_name") or algorithm)
    kind = getattr(codes.SCT, "".join(word.capitalize() for word in name.split()), None)
    identification = None
    if algorithm:
        identification = highdicom.AlgorithmIdentificationSequence(
            name=_short(algorithm, "the algorithm name"),
            family=codes.DCM.ArtificialIntelligence,
            version=_short(version, "the algorithm version"),
        )
    return SegmentDescription(
        segment_number=number,
        segment_label=_short(name, "the segment name"),
        segmented_property_category=_code(override, "category", _ANATOMY if kind else _TISSUE),
        segmented_property_type=_code(override, "type", kind or _TISSUE),
        algorithm_type="AUTOMATIC" if algorithm else "MANUAL",
        algorithm_identification=identification,
    )


def _code(override: Mapping[str, Any], which: str, default: Code) -> Code:
    code = override.get(f"segmented_property_{which}")
    if not code:
        return default
    field = f"segmented_property_{which} of {override.get('segment_label')!r}"
    try:
        value, scheme, meaning = (str(code[key]) for key in ("code", "scheme", "meaning"))
    except (KeyError, TypeError):
        raise UserError(f"Segments: {field} needs code, scheme and meaning.") from None
    return Code(
        _short(value, f"the code in {field}"),
        _short(scheme, f"the scheme in {field}", 16),
        _short(meaning, f"the meaning in {field}"),
    )


@dataclass(frozen=True)
class Segment:
    """One segment of a DICOM SEG.

    Attributes:
        name: SegmentLabel.
        number: SegmentNumber.
        automatic: Whether an algorithm made it without a person (SegmentAlgorithmType AUTOMATIC).
    """

    name: str
    number: int
    automatic: bool


def read_segments(dataset: Dataset) -> list[Segment]:
    """The segments that a DICOM SEG describes, by number; a LABELMAP's background is left out."""
    segments = [
        Segment(
            str(item.get("SegmentLabel") or f"Segment {item.SegmentNumber}").strip(),
            int(item.SegmentNumber),
            item.get("SegmentAlgorithmType") == "AUTOMATIC",
        )
        for item in dataset.get("SegmentSequence") or ()
    ]
    return sorted((s for s in segments if s.number > 0), key=lambda segment: segment.number)


def paint_segments(
    dataset: Dataset,
    values: Mapping[int, int],
    label_map: NDArray[Any],
    image: Volume,
) -> None:
    """Paints segments of a DICOM SEG into a label map.

    Every frame is placed by its own position and orientation, so frames may come in any order,
    leave out empty slices, cover a part of the image, or be stored flipped or in another plane, as
    long as their voxels are the image's. A FRACTIONAL segmentation counts where it is at least
    half of its maximum.

    Args:
        dataset: The DICOM SEG.
        values: Segment number to label value; other segments are left out.
        label_map: Label values ``[i, j, k]`` on the image's grid, changed in place.
        image: The image.

    Raises:
        UserError: The segmentation's voxels are not the image's, or two segments overlap.
    """
    # highdicom's own way, get_volume(combine_segments=True).match_geometry(…) of 0.28, gives the
    # same label map in the plain case, but not what is promised above: it needs a looser tolerance
    # for the rounded positions of real headers, takes an image of half the resolution by leaving
    # out voxels, cuts off what reaches outside the image without a word, and knows neither
    # FRACTIONAL segmentations nor regions. It would be a second way beside this one.
    seg = Segmentation.from_dataset(dataset, copy=False)
    shared = seg.SharedFunctionalGroupsSequence[0]
    to_index = np.linalg.inv(LPS_TO_RAS @ image.affine).astype(np.float64)
    for frame, groups in enumerate(seg.PerFrameFunctionalGroupsSequence):
        placement = None
        for number, area in _segments_of_frame(seg, frame, groups, values):
            rows, columns = np.nonzero(area)
            if not len(rows):
                continue
            if placement is None:
                placement = _placement(groups, shared, to_index, image)
            i, j, k = (placement[:3, :3] @ np.stack([columns, rows, np.ones_like(rows)])).astype(
                np.intp
            )
            inside = np.all(
                [(i >= 0), (j >= 0), (k >= 0)]
                + [axis < size for axis, size in zip((i, j, k), image.shape, strict=True)]
            )
            if not inside:
                raise UserError(
                    f"the segmentation of {image.name} reaches outside the image: it belongs to "
                    "another series."
                )
            _paint(label_map, (i, j, k), values[number], image.name)


def _segments_of_frame(
    seg: Segmentation, frame: int, groups: Dataset, wanted: Container[int]
) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """The wanted segments of one frame: number, and where it is ``[row, column]``."""
    if seg.SegmentationType == "LABELMAP":
        pixels = seg.get_stored_frame(frame, as_index=True)
        for number in np.unique(pixels).tolist():
            if number in wanted:
                yield number, pixels == number
        return
    shared = seg.SharedFunctionalGroupsSequence[0]
    identification = _group(groups, shared, "SegmentIdentificationSequence")
    number = int(identification.ReferencedSegmentNumber)
    if number in wanted:
        pixels = seg.get_stored_frame(frame, as_index=True)
        fractional = seg.SegmentationType == "FRACTIONAL"
        highest = float(seg.get("MaximumFractionalValue") or 1)
        yield number, pixels >= highest / 2 if fractional else pixels > 0


def _paint(
    label_map: NDArray[Any],
    voxels: tuple[NDArray[np.intp], ...],
    value: int,
    name: str,
) -> None:
    below = label_map[voxels]
    taken = (below != 0) & (below != value)
    if taken.any():
        raise UserError(
            f"the segmentation of {name} overlaps itself: {int(taken.sum())} voxels belong to both "
            f"label {int(below[taken][0])} and label {value}; a label map holds one label a voxel. "
            "Where they are regions, declare them in a config (labels, regions_class_order)."
        )
    label_map[voxels] = value


def _group(groups: Dataset, shared: Dataset, keyword: str) -> Dataset:
    sequence = groups.get(keyword) or shared.get(keyword)
    if not sequence:
        raise UserError(f"the DICOM SEG has no {keyword}: it is not a valid segmentation.")
    item: Dataset = sequence[0]
    return item


def _placement(
    groups: Dataset, shared: Dataset, to_index: NDArray[np.float64], image: Volume
) -> NDArray[np.float64]:
    """3x3: a frame's (column, row, 1) to the image's voxel index; whole numbers."""
    position = _group(groups, shared, "PlanePositionSequence").ImagePositionPatient
    orientation = _group(groups, shared, "PlaneOrientationSequence").ImageOrientationPatient
    spacing = _group(groups, shared, "PixelMeasuresSequence").PixelSpacing
    frame = np.array(
        [
            [*(float(value) * float(spacing[1]) for value in orientation[:3]), 0],
            [*(float(value) * float(spacing[0]) for value in orientation[3:]), 0],
            [*map(float, position), 1],
        ]
    ).T
    exact = (to_index @ frame)[:3]
    whole: NDArray[np.float64] = np.rint(exact)
    # Over the whole frame no voxel may be off by more than the tolerance.
    extent = np.array([max(image.shape), max(image.shape), 1])
    if (np.abs(exact - whole) @ extent > SAME_PLACE).any() or np.abs(whole[:, :2]).sum() != 2:
        raise UserError(
            f"the segmentation has different geometry than {image.name} (origin, spacing or "
            "orientation): it was drawn on another series or resampled; make it again on this one."
        )
    return whole
