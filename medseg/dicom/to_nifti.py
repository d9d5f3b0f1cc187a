"""The stage ``dicom_to_nifti``: studies to a NIfTI dataset, in shards."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import UID, SegmentationStorage

from medseg.config import DEFAULT_SUFFIXES, LABEL_KEY, Labels, TaskConfig
from medseg.dataset import (
    CONVERSION,
    LeftOutRow,
    QualityRow,
    cases,
    collect_dataset,
    dataset_folder,
    failed_cases,
    forget_left_out,
    record_left_out,
)
from medseg.dicom.cases import case_names
from medseg.dicom.decimals import mend_numbers
from medseg.dicom.private import private_path
from medseg.dicom.seg import Segment, paint_segments, read_segments
from medseg.dicom.series import describe, no_volume_reason, volume_from_instances
from medseg.dicom.sources import IMAGE_MODALITIES, LeftOut, Series, Source, open_source
from medseg.imaging import Volume, as_labels, check_same_grid, write_nifti
from medseg.project import (
    DataRoot,
    Failures,
    Manifest,
    UserError,
    fingerprint,
    lock,
    progress,
    read_json,
    write_json,
)
from medseg.project.files import remove_stale


@dataclass(frozen=True)
class ConvertedStudies:
    """What became of the studies of a shard.

    Attributes:
        cases: All cases that are done, sorted by name.
        converted: Those of them that were converted now.
        skipped: Case to reason: studies without image series.
    """

    cases: tuple[str, ...]
    converted: tuple[str, ...]
    skipped: Mapping[str, str]

    @property
    def counts(self) -> dict[str, int]:
        """How many they are: what an artifact carries, for a shard may hold thousands."""
        return {
            "cases": len(self.cases),
            "converted": len(self.converted),
            "skipped": len(self.skipped),
        }


def list_studies(
    root: DataRoot,
    studies: str,
    output_folder: str = "",
    *,
    config: TaskConfig | None = None,
    shards: int = 1,
) -> list[int]:
    """Lists all studies of a source, gives each its case name, and deals them out to shards.

    A PACS may hold thousands of studies, more than a parameter should carry: the shards' lists lie
    under the data root, readable by their owner only, where :func:`convert_studies` reads them.

    Args:
        root: The data root.
        studies: A DICOMweb URL, or a folder inside the data root (``file:///…`` or a path); empty
            where the config's dataset is NIfTI already.
        output_folder: The folder of the dataset to be; by default the config's ``data_dir``.
        config: The task.
        shards: Into how many lists to deal the studies; empty lists are left out.

    Returns:
        The numbers of the shards, from 0; none without ``studies``.

    Raises:
        UserError: The source cannot be read or holds no study, ``shards`` is below 1, or the
            config's suffixes do not tell the files of a converted case apart.
    """
    if shards < 1:
        raise UserError(f"shards is {shards}: give 1 or more.")
    folder = dataset_folder(root, output_folder, config)
    if not studies.strip() and config is not None:
        progress(f"studies is empty: {len(cases(config))} training cases are taken as they are")
        return []
    if config is not None and not config.has_distinct_suffixes:
        raise UserError(
            "modality_dict: two entries have the same suffix, so that the files of a converted "
            "case would have one name: give each its own, such as _image.nii.gz and _label.nii.gz."
        )
    listed = open_source(root, studies).studies()
    if not listed:
        raise UserError(f"{studies} holds no studies: check the parameter studies.")
    case_names(root, folder, listed)
    uids = [study.uid for study in listed]
    lists = [uids[start::shards] for start in range(min(shards, len(uids)))]
    write_json(_shards_file(root, folder), lists, private=True)
    forget_left_out(folder)
    progress(f"{len(uids)} studies")
    return list(range(len(lists)))


def convert_studies(
    root: DataRoot,
    studies: str,
    shard: int,
    output_folder: str = "",
    *,
    config: TaskConfig | None = None,
    deidentify: bool = False,
    max_failed_cases: int | None = None,
) -> ConvertedStudies:
    """Converts the studies of one shard to NIfTI: ``<output>/<case>/<case><suffix>``.

    **Image series.** Series of modality CT, MR or PT, without localizers and secondary captures
    where there are others. A study with one needs no choice. Of several,
    each channel of the config's ``modality_dict`` takes the series whose SeriesDescription is the
    channel's key, else the only one whose SeriesDescription holds the key or whose Modality is
    the key (case and punctuation do not count: ``flair_reg`` finds ``FLAIRreg``). With a single
    channel and no such match, or without a config, the series that the DICOM SEG refers to is
    taken. Channels must lie on one grid.

    **Label.** The DICOM SEG that refers to the image series, else one of its frame of reference.
    With a config the segments' names decide, compared without case; without one the segments'
    numbers. Segments of one name in one SEG are joined; of two SEGs with a segment of the same name
    the later one counts; a SEG that only an algorithm made is left out where a person made another.
    A study without SEG gives no label.

    Whatever is left out or replaced is told of in the log and in the quality table: with its case,
    or in a row of its own. The table and the dataset's manifest are written at the end, whatever
    failed.

    A case whose series and settings are unchanged since it was converted is not fetched again.

    Args:
        root: The data root.
        studies: As in :func:`list_studies`.
        shard: The shard's number, from :func:`list_studies` for the same folder.
        output_folder: The dataset's folder; by default the config's ``data_dir``.
        config: The task, for suffixes, channels and labels.
        deidentify: Whether cases get pseudonyms instead of PatientIDs, and files numbers.
        max_failed_cases: How many cases may fail, in all shards together; by default what the
            config says, else none.

    Raises:
        UserError: The studies were not listed or there is no such shard, the source cannot be read,
            or the config's dataset has another format.
        CasesFailedError: More cases failed than may; the others are finished.
    """
    folder = dataset_folder(root, output_folder, config)
    if config is not None and config.dataset_format != "subfolders":
        raise UserError(
            f"dataset_format: studies are converted to the format 'subfolders', but "
            f"{config.path.name} says {config.dataset_format!r}: set it to subfolders, with a "
            "data_dir of its own."
        )
    study_uids = _shard(root, folder, shard)
    source = open_source(root, studies, nameless=deidentify)
    listed = [study for study in source.studies() if study.uid in set(study_uids)]
    names = case_names(root, folder, listed, deidentify=deidentify)
    failures = Failures(private=True)
    for uid in study_uids:
        if uid not in names:
            failures.reasons[uid] = f"{studies} does not hold this study (any more)"
    left_out = source.left_out()
    rows = []
    if shard == 0:  # files that belong to no study are told of once
        _log_files(left_out)
        rows = [LeftOutRow(item.what, (f"left out: {item}",)) for item in left_out]
    cases, converted, skipped = [], [], {}
    listed.sort(key=lambda study: names[study.uid])
    for count, study in enumerate(listed, start=1):
        case = names[study.uid]
        with failures.case(case):
            series = source.series(study.uid)
            if not any(item.modality in IMAGE_MODALITIES for item in series):
                skipped[case] = _no_image(series)
                progress(f"{case} skipped: {skipped[case]}", count, len(listed))
                continue
            losses = _losses([item for item in left_out if item.study_uid == study.uid])
            fresh = _convert(source, series, case, folder / case, config, losses)
            cases.append(case)
            if fresh:
                converted.append(case)
            progress(case if fresh else f"{case} (unchanged)", count, len(listed))
    rows += [LeftOutRow(case, (f"skipped: {reason}",)) for case, reason in skipped.items()]
    rows += [LeftOutRow(case, (f"failed: {text}",)) for case, text in failures.reasons.items()]
    record_left_out(folder, shard, rows, len(failures.reasons))
    if max_failed_cases is None:
        max_failed_cases = config.max_failed_cases if config else 0
    failed = failed_cases(folder)
    if failed > max_failed_cases:  # collect_dataset will not run: the table is written here
        name = private_path(root, "table", root.relative(folder)).name
        with lock(root, name, wait=True), suppress(UserError):
            collect_dataset(root, output_folder, config=config)
    elsewhere = failed - len(failures.reasons)
    failures.check(len(study_uids), max(0, max_failed_cases - elsewhere))
    return ConvertedStudies(tuple(cases), tuple(converted), skipped)


_LOGGED = 20
"""Files that are left out for one reason and named in the log one by one."""


def _log_files(left_out: Sequence[LeftOut]) -> None:
    for item in left_out[:_LOGGED]:
        progress(f"warning: {item.what} was left out: {item}")
    if len(left_out) > _LOGGED:
        progress(f"warning: {len(left_out) - _LOGGED} more files were left out: see the table")


def _losses(left_out: Sequence[LeftOut]) -> list[str]:
    """The files that a study lacks, in a sentence for each reason."""
    files: dict[str, list[str]] = {}
    for item in left_out:
        files.setdefault(item.reason, []).append(item.what)
    return [
        f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''} "
        f"left out: {reason}"
        for reason, names in files.items()
    ]


def _no_image(series: Sequence[Series]) -> str:
    reason = "the study holds no CT, MR or PT series"
    if any(item.modality == "SEG" for item in series):
        reason += (
            ", but a DICOM SEG, which is not read without its image: give it the StudyInstanceUID "
            "of the study that it was drawn on"
        )
    return reason


def _shards_file(root: DataRoot, folder: Path) -> Path:
    # it holds StudyInstanceUIDs, so it does not lie inside a dataset that may be de-identified
    return private_path(root, "shards", root.relative(folder), ".json")


def _shard(root: DataRoot, folder: Path, shard: int) -> list[str]:
    """The StudyInstanceUIDs of a shard."""
    path = _shards_file(root, folder)
    lists = read_json(path, [], remedy="Run list_studies again.")
    if not 0 <= shard < len(lists):
        raise UserError(f"{path} holds no shard {shard}: run list_studies first.")
    return [str(uid) for uid in lists[shard]]


def _convert(
    source: Source,
    series: Sequence[Series],
    case: str,
    folder: Path,
    config: TaskConfig | None,
    losses: Sequence[str],
) -> bool:
    """Converts one study; whether there was anything to do. ``losses`` are remarked on."""
    images = [item for item in series if item.modality in IMAGE_MODALITIES]
    drawings = [item for item in series if item.modality == "SEG"]
    settings: dict[str, Any] = {
        "series": [asdict(item) for item in series],
        "losses": list(losses),
        "suffixes": config.modality_dict if config else DEFAULT_SUFFIXES,
        "labels": config.labels if config else None,
        "regions": config.regions_class_order if config else None,
    }
    inputs = fingerprint(settings)
    manifest = Manifest(folder, CONVERSION)
    if manifest.is_done(inputs):
        return False

    for suffix in settings["suffixes"].values():
        remove_stale(folder / f"{case}{suffix}")  # of a run that was killed
    warnings = [*losses, *_unread(series)]
    segmentations = _fetch_segmentations(source, drawings, warnings)
    usable = _usable(source, images, warnings)
    channels = _choose(usable, segmentations, config)
    taken = {item.uid for item in channels.values()}
    warnings += [
        f"{item} was left out: another series is the image"
        for item in images
        if item in usable and item.uid not in taken
    ]
    volumes = {
        key: volume_from_instances(source.fetch(item), f"{case} ({item})", warnings)
        for key, item in channels.items()
    }
    image = next(iter(volumes.values()))
    for other in volumes.values():
        check_same_grid(image, other)
    chosen = _segments(segmentations, volumes, config, warnings)
    label = _label_map(chosen, image, config) if chosen else None

    suffixes = settings["suffixes"]
    outputs = [
        write_nifti(volume.array, volume.affine, folder / f"{case}{suffixes[key]}")
        for key, volume in volumes.items()
    ]
    label_path = folder / f"{case}{suffixes[LABEL_KEY]}"
    label_path.unlink(missing_ok=True)  # of an earlier state of the study
    if label is not None:
        outputs.append(write_nifti(label, image.affine, label_path))
    values = {segment.name: value for _, segment, value in reversed(chosen)}
    regions = config.label_set.regions if config else {}
    row = QualityRow.measured(case, image, label, values, warnings, regions)
    for warning in row.warnings:
        progress(f"warning: {case}: {warning}")
    manifest.record(inputs, outputs, row.to_json())
    return True


def _unread(series: Sequence[Series]) -> list[str]:
    """What of a study is neither image nor segmentation."""
    remarks = []
    for item in series:
        if item.modality == "RTSTRUCT":
            remarks.append(
                f"{item} is not read: convert its contours to a DICOM SEG (3D Slicer does) and put "
                "that into the study"
            )
        elif item.modality not in (*IMAGE_MODALITIES, "SEG"):
            remarks.append(f"{item} is not read: it is no CT, MR or PT image and no DICOM SEG")
    return remarks


_SEGMENTATION_CLASSES = (SegmentationStorage, UID("1.2.840.10008.5.1.4.1.1.66.7"))
"""DICOM SEG, and the one whose frames are label maps."""


def _fetch_segmentations(
    source: Source, drawings: Sequence[Series], warnings: list[str]
) -> list[Dataset]:
    segmentations = []
    for dataset in (dataset for item in drawings for dataset in source.fetch(item)):
        if dataset.get("SOPClassUID") in _SEGMENTATION_CLASSES:
            mend_numbers(dataset)
            segmentations.append(dataset)
        else:
            warnings.append(
                f"{describe(dataset)} of modality SEG was left out: it is not of class DICOM SEG"
            )
    return segmentations


_SCOUT = 5
"""Instances of a series that is fetched to see whether it is but a localizer, where its source does
not know."""


def _usable(source: Source, images: Sequence[Series], warnings: list[str]) -> list[Series]:
    """The image series without those of localizers and captures, where there are others."""
    reasons = {item.uid: item.no_volume for item in images}
    if len(images) > 1:
        for item in images:
            if not item.no_volume and item.instances <= _SCOUT:
                reasons[item.uid] = no_volume_reason(source.fetch(item))
    usable = [item for item in images if not reasons[item.uid]]
    if not usable:
        return list(images)
    warnings += [
        f"{item} was left out: {reasons[item.uid]}" for item in images if reasons[item.uid]
    ]
    return usable


# --- which series ---


def _choose(
    images: Sequence[Series], segmentations: Sequence[Dataset], config: TaskConfig | None
) -> dict[str, Series]:
    keys = list(config.channels) if config else ["image"]
    if len(keys) == 1:
        if len(images) == 1:
            return {keys[0]: images[0]}
        matches = _matches(keys[0], images) if config else []
        if len(matches) != 1:
            uids = {uid for dataset in segmentations for uid in _referenced_series(dataset)}
            matches = [item for item in matches or images if item.uid in uids]
        if len(matches) == 1:
            return {keys[0]: matches[0]}
        raise UserError(
            f"the study has {len(images)} image series ({_list(images)}), and no DICOM SEG tells "
            "which one to take: give a config with the key of modality_dict in the "
            "SeriesDescription of that series."
        )
    chosen: dict[str, Series] = {}
    for key in keys:
        matches = _matches(key, images)
        if len(matches) != 1:
            raise UserError(
                f"modality_dict: the channel {key!r} fits {_list(matches) or 'none'} of the "
                f"study's image series ({_list(images)}): its key must be in the SeriesDescription "
                "of exactly one, or be its Modality."
            )
        chosen[key] = matches[0]
    if len({item.uid for item in chosen.values()}) < len(chosen):
        raise UserError(
            f"modality_dict: two channels fit the same series of the study ({_list(images)}): "
            "give keys that tell the SeriesDescriptions apart."
        )
    return chosen


def _matches(key: str, images: Sequence[Series]) -> list[Series]:
    wanted = _plain(key)
    exact = [item for item in images if _plain(item.description) == wanted]
    return exact or [
        item
        for item in images
        if wanted in _plain(item.description) or wanted == _plain(item.modality)
    ]


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).casefold()


def _list(series: Sequence[Series]) -> str:
    return ", ".join(map(str, series))


# --- which segments ---

_Chosen = list[tuple[Dataset, Segment, int]]
"""Segments with the SEG that holds them and their label value, in painting order."""


def _segments(
    segmentations: Sequence[Dataset],
    volumes: dict[str, Volume],
    config: TaskConfig | None,
    warnings: list[str],
) -> _Chosen:
    """The segments that make the label map, and what the quality table should say of them."""
    headers = [volume.instances[0] for volume in volumes.values()]
    series = {str(header.SeriesInstanceUID) for header in headers}
    frames = {str(header.get("FrameOfReferenceUID")) for header in headers}
    fitting = [item for item in segmentations if series & set(_referenced_series(item))] or [
        item for item in segmentations if str(item.get("FrameOfReferenceUID")) in frames
    ]
    warnings += [
        f"{describe(item)}, a DICOM SEG, was left out: it refers to another series than the image"
        for item in segmentations
        if not any(item is other for other in fitting)
    ]
    fitting.sort(key=lambda item: f"{item.get('ContentDate')}{item.get('ContentTime')}")
    segments = [(item, segment) for item in fitting for segment in read_segments(item)]
    by_hand = [(item, segment) for item, segment in segments if not segment.automatic]
    if by_hand and len(by_hand) < len(segments):
        warnings.append("segments that only an algorithm made were left out")
    elif segments and not by_hand:
        warnings.append("the label was made by an algorithm alone")
    if not segments:
        warnings.append("no label: the study has no DICOM SEG of this image")

    latest = _latest(by_hand or segments, warnings)
    if config is None:
        return _numbered(latest)
    values = {name.casefold(): value for name, value in config.label_set.drawn.items()}
    chosen = []
    for name, members in latest.items():
        if name not in values:
            raise UserError(
                f"the DICOM SEG holds the segment {members[0][1].name!r}, which the config's "
                f"labels do not declare ({', '.join(config.labels)}): add it there or rename the "
                "segment."
            )
        chosen += [(item, segment, values[name]) for item, segment in members]
    order = list(values.values())
    return sorted((c for c in chosen if c[2]), key=lambda item: order.index(item[2]))


_Named = dict[str, list[tuple[Dataset, Segment]]]


def _latest(segments: Sequence[tuple[Dataset, Segment]], warnings: list[str]) -> _Named:
    """The segments of each name in the latest SEG that has it; ``segments`` are in its order."""
    latest: _Named = {}
    for item, segment in segments:
        members = latest.setdefault(segment.name.casefold(), [])
        if members and members[0][0] is not item:
            warnings.append(
                f"the segment {segment.name!r} of {describe(members[0][0])} was replaced by that "
                f"of {describe(item)}, which is later"
            )
            members.clear()
        members.append((item, segment))
    warnings += [
        f"{len(members)} segments named {members[0][1].name!r} in one DICOM SEG were joined"
        for members in latest.values()
        if len(members) > 1
    ]
    return latest


def _numbered(latest: _Named) -> _Chosen:
    """The segments with their own numbers as values; joined ones have that of the first."""
    numbered = [
        (item, segment, members[0][1].number)
        for members in latest.values()
        for item, segment in members
    ]
    names = {segment.name.casefold(): number for _, segment, number in numbered}
    if len(set(names.values())) < len(names):
        raise UserError(
            "several DICOM SEGs number different segments alike "
            f"({', '.join(f'{s.name}: {n}' for _, s, n in numbered)}): give a config, whose "
            "labels then decide by name."
        )
    return numbered


def _label_map(chosen: _Chosen, image: Volume, config: TaskConfig | None) -> NDArray[Any]:
    if config is not None and config.label_set.has_regions:
        return as_labels(_from_regions(chosen, image, config.label_set), image.name)
    label_map = np.zeros(image.shape, np.uint16, order="F")
    files = {id(dataset): dataset for dataset, *_ in chosen}
    for key, dataset in files.items():
        values = {segment.number: value for item, segment, value in chosen if id(item) == key}
        paint_segments(dataset, values, label_map, image)
    return as_labels(label_map, image.name)


def _from_regions(chosen: _Chosen, image: Volume, labels: Labels) -> NDArray[np.uint16]:
    """The label map of regions, which share voxels: each voxel's value by all that it lies in."""
    names = {value: name for name, value in labels.drawn.items()}
    bits = {name: bit for bit, name in enumerate(dict.fromkeys(names[c[2]] for c in chosen))}
    kind = np.min_scalar_type(2 ** len(bits) - 1)
    inside = np.zeros(image.shape, kind, order="F")  # a bit for each structure
    for dataset, segment, value in chosen:
        one = np.zeros(image.shape, np.uint8, order="F")
        paint_segments(dataset, {segment.number: 1}, one, image)
        inside |= one.astype(kind) << kind.type(bits[names[value]])
    found, voxels = np.unique(inside, return_counts=True)
    values = np.zeros(len(found), np.uint16)
    for index, (combination, count) in enumerate(zip(found.tolist(), voxels, strict=True)):
        members = [name for name, bit in bits.items() if combination >> bit & 1]
        if members:
            shared = labels.value_of(members)
            if shared is None:
                raise UserError(
                    f"the segmentation of {image.name} overlaps itself: {count} voxels lie in "
                    f"{' and '.join(members)} at once, and no value of the config's labels does: "
                    "correct the segmentation, or declare them as regions that share a value."
                )
            values[index] = shared
    return values[np.searchsorted(found, inside)]


def _referenced_series(segmentation: Dataset) -> list[str]:
    return [
        str(item.SeriesInstanceUID) for item in segmentation.get("ReferencedSeriesSequence") or ()
    ]
