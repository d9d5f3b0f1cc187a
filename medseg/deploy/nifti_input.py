"""NIfTI files in, NIfTI label maps out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from medseg.bundle.formats import SUFFIXES
from medseg.bundle.inference import segment_each
from medseg.deploy.application import Package
from medseg.deploy.output import Result, is_inside, reason_left, refuse_foreign
from medseg.deploy.task_file import SegmentationTask
from medseg.imaging import read_nifti, write_nifti
from medseg.project import Manifest, UserError, fingerprint

FilesByModality = dict[str, Path]


def segment_files(package: Package, input_folder: Path, output: Path) -> list[Path]:
    """Segments every case of a folder of NIfTI files.

    A case is one file a modality, with the modality's ``File_Pattern`` after the case's name, in
    small letters or large. They lie in the folder itself, or in one folder a case; where files of
    different folders have the same name, their cases are named after the folders.

    Args:
        package: Model and task.
        input_folder: The input folder; the output folder may lie in it.
        output: The output folder; the result of a case is ``CASE.nii.gz``.

    Returns:
        The results.

    Raises:
        UserError: No file fits, or one of a case is missing; the output folder says so too.
            Results of something else lie in the output folder.
        CasesFailedError: Of several cases some failed.
    """
    with reason_left(output):
        cases = find_cases(package.task, input_folder, output)
    targets = {case: output / f"{case}{SUFFIXES['nifti']}" for case in cases}
    refuse_foreign(output, list(targets.values()))
    segment_each(
        {
            case: partial(_segment_case, package, case, files, targets[case], len(cases) == 1)
            for case, files in cases.items()
        }
    )
    return list(targets.values())


def _segment_case(
    package: Package, case: str, files: FilesByModality | str, target: Path, alone: bool
) -> bool:
    """Segments a case; false where its result is there already."""
    with reason_left(target.parent, "" if alone else case):
        if isinstance(files, str):
            raise UserError(files)
        missing = [name for name in package.task.modalities if name not in files]
        if missing:
            pattern = package.task.modalities[missing[0]].file_pattern
            raise UserError(
                f"{case} has no file of modality {missing[0]}: "
                f"{case}{pattern} is missing in the input folder."
            )
        inputs = fingerprint({"package": package.identity}, files.values())
        result = Result(target, Manifest(target.parent, f"inference-{target.name}"), inputs)
        if result.is_done():
            return False
        volumes = {name: read_nifti(path) for name, path in files.items()}
        mask = package.segment(volumes)
        with result.writing():
            write_nifti(mask, volumes[package.task.reference].affine, target)
        return True


def find_cases(
    task: SegmentationTask, folder: Path, output: Path
) -> dict[str, FilesByModality | str]:
    """The cases of a folder of NIfTI files.

    Args:
        task: The task, for the ``File_Pattern`` of its modalities.
        folder: The input folder.
        output: The output folder; what lies there is no input.

    Returns:
        Case to its files by modality, or to what is wrong with it.

    Raises:
        UserError: A File_Pattern is missing or there twice, or no file fits one.
    """
    patterns = {name: item.file_pattern for name, item in task.modalities.items()}
    if len(set(patterns.values())) < len(patterns) or not all(patterns.values()):
        raise UserError(
            "the segmentation task file needs a File_Pattern for every modality, and no two alike."
        )
    files = _fitting_files(patterns, folder, output)
    if not files:
        raise UserError(
            "the input folder holds no file that fits the File_Pattern of a modality "
            f"({', '.join(patterns.values())}): check the folder and the segmentation task file."
        )
    names: dict[Path, list[str]] = defaultdict(list)
    for name, places in files.items():
        for place in places:
            names[place].append(name)
    cases: dict[str, FilesByModality | str] = {}
    for name, places in files.items():
        pairs = [pair for group in places.values() for pair in group.items()]
        if len(dict(pairs)) == len(pairs):
            groups = {name: dict(pairs)}
        else:  # the same name in several folders: one case each, named after its folder
            groups = {
                "_".join((*place.parts, *([name] if len(names[place]) > 1 else []))) or name: group
                for place, group in places.items()
            }
        for case, group in groups.items():
            where = ", ".join(path.relative_to(folder).as_posix() for path in group.values())
            if case in cases:
                cases[case] = f"several files are called {case} ({where}, …): rename one."
            else:
                cases[case] = group
    return cases


def _fitting_files(
    patterns: Mapping[str, str], folder: Path, output: Path
) -> dict[str, dict[Path, FilesByModality]]:
    """The files that fit a pattern: by their name without it, then by their folder."""
    files: dict[str, dict[Path, FilesByModality]] = defaultdict(lambda: defaultdict(dict))
    inside = is_inside(output, folder)
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder).parent
        fitting = [
            name
            for name, pattern in patterns.items()
            if path.name.lower().endswith(pattern.lower())
        ]
        if not fitting or not path.is_file() or (inside and path.is_relative_to(output)):
            continue
        if any(part.startswith(".") for part in (path.name, *place.parts)):
            continue
        modality = max(fitting, key=lambda name: len(patterns[name]))  # the most specific suffix
        name = path.name[: -len(patterns[modality])] or path.parent.name
        files[name][place][modality] = path
    return files
