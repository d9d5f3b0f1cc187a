"""DICOM studies in, DICOM SEG out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from medseg.bundle.formats import SUFFIXES
from medseg.bundle.inference import segment_each
from medseg.deploy.application import Package
from medseg.deploy.output import Result, is_inside, reason_left
from medseg.deploy.task_file import SegmentationTask
from medseg.dicom import (
    IMAGE_MODALITIES,
    FolderSource,
    Series,
    volume_from_instances,
    write_segmentation,
)
from medseg.project import Manifest, UserError, fingerprint, progress


def selection_rules(task: SegmentationTask) -> dict[str, Any]:
    """The rules of all modalities as one object for MONAI Deploy's series selector.

    Each selection is named after its modality.

    Args:
        task: The task.

    Raises:
        UserError: A modality has no rules.
    """
    without = [name for name, item in task.modalities.items() if not item.rules_text]
    if without:
        raise UserError(
            f"the segmentation task file has no Rules_Text for {', '.join(without)}: without rules "
            "no series can be chosen."
        )
    return {
        "selections": [
            {"name": name, "conditions": selection["conditions"]}
            for name, item in task.modalities.items()
            for selection in item.selections
        ]
    }


def segment_studies(
    package: Package,
    selected: Mapping[str, Mapping[str, Sequence[str]]],
    input_folder: Path,
    output: Path,
) -> list[Path]:
    """Segments every study of a folder whose series were selected, as DICOM SEG.

    Args:
        package: Model and task.
        selected: Per StudyInstanceUID, modality to the SeriesInstanceUIDs that fit its rules.
        input_folder: The input folder.
        output: The output folder. One study's result is ``<Task>.dcm`` in it; of several studies
            each gets a folder, named after the one it lies in.

    Returns:
        The results.

    Raises:
        UserError: There is no DICOM, or a study has no series that fits, or several; the output
            folder says so too.
            Results of something else lie in the output folder.
        CasesFailedError: Of several studies some failed.
    """
    with reason_left(output):
        source = FolderSource(input_folder)
    for item in source.left_out():
        progress(f"warning: {item.what} was left out: {item}")
    studies = source.studies()
    folders = _study_folders(source, input_folder, output)
    name = f"{package.task.file_name}{SUFFIXES['dicom']}"
    cases = {}
    targets = []
    for study in studies:
        case = folders[study.uid] if len(studies) > 1 else "the study"
        targets.append((output / folders[study.uid] if len(studies) > 1 else output) / name)
        fitting = selected.get(study.uid, {})
        cases[case] = partial(
            _segment_study, package, source, study.uid, fitting, case, targets[-1]
        )
    segment_each(cases)
    return targets


def _segment_study(
    package: Package,
    source: FolderSource,
    study_uid: str,
    fitting: Mapping[str, Sequence[str]],
    case: str,
    target: Path,
) -> bool:
    """Segments a study; false where its result is there already."""
    with reason_left(target.parent):
        chosen = _choose(source, study_uid, package.task, fitting, case)
        states = {modality: series.state for modality, series in chosen.items()}
        inputs = fingerprint({"package": package.identity, **states})
        result = Result(target, Manifest(target.parent, "inference"), inputs)
        if result.is_done():
            return False
        remarks: list[str] = []
        volumes = {
            modality: volume_from_instances(source.fetch(series), f"{case}, {modality}", remarks)
            for modality, series in chosen.items()
        }
        for remark in remarks:
            progress(f"warning: {case}: {remark}")
        mask = package.segment(volumes)
        with result.writing():
            write_segmentation(
                mask,
                volumes[package.task.reference],
                target,
                package.model.segments,
                segments=[segment.model_dump() for segment in package.task.segments],
                description=package.task.name,
            )
        return True


def _study_folders(source: FolderSource, input_folder: Path, output: Path) -> dict[str, str]:
    """A name for each study: the top folder that it lies in, where that is one of its own."""
    inside = is_inside(output, input_folder)
    names: dict[str, str] = {}
    for number, study in enumerate(source.studies(), start=1):
        tops = {
            path.relative_to(input_folder).parts[0]
            for path in source.paths(study.uid)
            if len(path.relative_to(input_folder).parts) > 1
            and not (inside and path.is_relative_to(output))
        }
        name = tops.pop() if len(tops) == 1 else f"study-{number}"
        names[study.uid] = name if name not in names.values() else f"{name}-{number}"
    return names


def _choose(
    source: FolderSource,
    study_uid: str,
    task: SegmentationTask,
    fitting: Mapping[str, Sequence[str]],
    case: str,
) -> dict[str, Series]:
    images = [item for item in source.series(study_uid) if item.modality in IMAGE_MODALITIES]
    chosen = {}
    for modality in task.modalities:
        fits = [item for item in images if item.uid in fitting.get(modality, ())]
        if len(fits) == 1:
            chosen[modality] = fits[0]
            continue
        listed = ", ".join(map(str, fits or images)) or "none"
        if fits:
            raise UserError(
                f"{case} has {len(fits)} series that fit the rules of modality {modality} "
                f"({listed}): narrow its Rules_Text, or give a folder with one of them."
            )
        raise UserError(
            f"{case} has no series that fits the rules of modality {modality}; its image series: "
            f"{listed}. Check the Rules_Text in the segmentation task file."
        )
    users: dict[str, str] = {}
    for modality, series in chosen.items():
        if series.uid in users:
            raise UserError(
                f"{case}: the series {series} fits the rules of two modalities, "
                f"{users[series.uid]} and {modality}: narrow their Rules_Text."
            )
        users[series.uid] = modality
    return chosen
