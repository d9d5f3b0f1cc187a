"""What runs inside an inference image: the model on what lies in the input folder.

The application in ``images/map/app`` joins this with MONAI Deploy's operators; here is all of it
that needs none of them.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg.deploy.package import ENVIRONMENT, TASK_FILE
from medseg.deploy.task_file import SegmentationTask, load_segmentation_task
from medseg.imaging import ENDING, Volume, from_zyx, resampled_onto, to_zyx, write_nifti
from medseg.project import (
    Failures,
    Manifest,
    UserError,
    fingerprint,
    progress,
    write_text,
)

if TYPE_CHECKING:
    from medseg.bundle.torchscript import PackagedModel
    from medseg.dicom import FolderSource, Series
    from medseg.nnunet.prediction import CasePredictor

NO_RESULT = "no-segmentation.txt"
"""What lies in the output folder in place of a result: why there is none."""

SUFFIXES = {"dicom": ".dcm", "nifti": ENDING}


@dataclass(frozen=True)
class Package:
    """The content of an application package.

    Attributes:
        model_file: The model.
        task: What to segment.
    """

    model_file: Path
    task: SegmentationTask

    @classmethod
    def from_environment(cls) -> Package:
        """What ``HOLOSCAN_MODEL_PATH`` and ``SEGMENTATION_TASK_…`` name.

        Raises:
            UserError: There is not exactly one model, or no task.
        """
        folder = Path(os.environ.get("HOLOSCAN_MODEL_PATH") or ENVIRONMENT["HOLOSCAN_MODEL_PATH"])
        models = sorted(folder.rglob("*.ts")) if folder.is_dir() else [folder]
        if len(models) != 1:
            raise UserError(
                f"{folder} must hold exactly one model.ts, found {len(models)}: build the image "
                "with docker_build, or mount the model's folder there."
            )
        task_file = Path(os.environ.get("SEGMENTATION_TASK_CONFIG_FILE") or TASK_FILE)
        task = load_segmentation_task(task_file, os.environ.get("SEGMENTATION_TASK_NAME", ""))
        return cls(models[0], task)

    @cached_property
    def model(self) -> PackagedModel:
        """The model, opened."""
        from medseg.bundle.torchscript import load_packaged

        return load_packaged(self.model_file)

    @cached_property
    def channels(self) -> tuple[str, ...]:
        """The modalities in the order of the model's channels."""
        from medseg.bundle.inference import segment_names

        return self.task.check_model(
            segment_names(self.model), channel_names(self.model), "the segmentation task file"
        )

    @cached_property
    def predictor(self) -> CasePredictor:
        """The network with nnU-Net's steps around it."""
        from medseg.bundle.inference import build_predictor

        predictor = build_predictor(self.model)
        progress("starting inference")
        return predictor

    @cached_property
    def identity(self) -> str:
        """Changes with all that decides a result but the images."""
        order = list(self.task.modalities)  # which a fingerprint takes no notice of by itself
        return fingerprint({"task": self.task.model_dump(), "order": order}, [self.model_file])

    def segment(self, volumes: Mapping[str, Volume]) -> np.ndarray[Any, Any]:
        """Segments one case.

        Args:
            volumes: Modality to volume. What is on another grid than the reference is resampled
                onto that.

        Returns:
            Label values ``[i, j, k]`` on the reference's grid.

        Raises:
            UserError: The volumes have no common frame of reference or do not overlap, or hold
                more than one channel each.
        """
        reference = volumes[self.task.reference]
        channels = []
        for name in self.channels:
            if volumes[name].array.ndim != 3:
                raise UserError(f"{volumes[name].name} is 4D: give one 3D file a modality.")
            channels.append(resampled_onto(volumes[name], reference))
        return from_zyx(self.predictor.segment(to_zyx(channels), reference.spacing[::-1]))


def channel_names(model: PackagedModel) -> list[str]:
    """The names of a model's input channels, in their order.

    Args:
        model: The packaged model.
    """
    names = model.dataset["channel_names"]
    return [str(names[key]) for key in sorted(names, key=int)]


# --- DICOM ---


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
    from medseg.bundle.inference import segment_names
    from medseg.dicom import FolderSource, volume_from_instances, write_segmentation

    with explained(output):
        source = FolderSource(input_folder)
    studies = source.studies()
    folders = _study_folders(source, input_folder, output)
    name = f"{package.task.file_name}{SUFFIXES['dicom']}"
    targets = {
        study.uid: (output / folders[study.uid] if len(studies) > 1 else output) / name
        for study in studies
    }
    failures = Failures(private=True)
    for number, study in enumerate(studies, start=1):
        case = folders[study.uid] if len(studies) > 1 else "the study"
        target = targets[study.uid]
        with failures.case(case), explained(target.parent):
            chosen = _choose(source, study.uid, package.task, selected.get(study.uid, {}), case)
            inputs = fingerprint(
                {"package": package.identity, **{k: v.state for k, v in chosen.items()}}
            )
            manifest = Manifest(target.parent, "inference")
            if _is_done(manifest, target, inputs):
                progress(f"{case} is segmented already", number, len(studies))
                continue
            volumes = {
                modality: volume_from_instances(source.fetch(series), f"{case}, {modality}")
                for modality, series in chosen.items()
            }
            mask = package.segment(volumes)
            with _recorded(manifest, target, inputs):
                write_segmentation(
                    mask,
                    volumes[package.task.reference],
                    target,
                    segment_names(package.model),
                    segments=[segment.model_dump() for segment in package.task.segments],
                    description=package.task.name,
                )
            progress(f"{case} segmented", number, len(studies))
    return _finish(failures, list(targets.values()))


def _study_folders(source: FolderSource, input_folder: Path, output: Path) -> dict[str, str]:
    """A name for each study: the top folder that it lies in, where that is one of its own."""
    inside = _inside(output, input_folder)
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
    from medseg.dicom import IMAGE_MODALITIES

    images = [item for item in source.series(study_uid) if item.modality in IMAGE_MODALITIES]
    chosen = {}
    for modality in task.modalities:
        fits = [item for item in images if item.uid in fitting.get(modality, ())]
        if len(fits) == 1:
            chosen[modality] = fits[0]
            continue
        found = ", ".join(map(str, fits or images)) or "none"
        if fits:
            raise UserError(
                f"{case} has {len(fits)} series that fit the rules of modality {modality} "
                f"({found}): narrow its Rules_Text, or give a folder with one of them."
            )
        raise UserError(
            f"{case} has no series that fits the rules of modality {modality}; its image series: "
            f"{found}. Check the Rules_Text in the segmentation task file."
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


# --- NIfTI ---


def segment_files(package: Package, input_folder: Path, output: Path) -> list[Path]:
    """Segments every case of a folder of NIfTI files.

    A case is one file a modality, with the modality's ``File_Pattern`` after the case's name. They
    lie in the folder itself, or in one folder a case; where files of different folders have the
    same name, their cases are named after the folders.

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
    from medseg.dicom import read_image

    with explained(output):
        cases = find_cases(package.task, input_folder, output)
    failures = Failures(private=True)
    targets = [output / f"{case}{SUFFIXES['nifti']}" for case in cases]
    _refuse_foreign(output, targets)
    for number, ((case, files), target) in enumerate(zip(cases.items(), targets, strict=True), 1):
        with failures.case(case), explained(output, case if len(cases) > 1 else ""):
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
            manifest = Manifest(output, f"inference-{target.name}")
            if _is_done(manifest, target, inputs):
                progress(f"{case} is segmented already", number, len(cases))
                continue
            volumes = {name: read_image(path) for name, path in files.items()}
            mask = package.segment(volumes)
            with _recorded(manifest, target, inputs):
                write_nifti(mask, volumes[package.task.reference].affine, target)
            progress(f"{case} segmented", number, len(cases))
    return _finish(failures, targets)


def find_cases(
    task: SegmentationTask, folder: Path, output: Path
) -> dict[str, dict[str, Path] | str]:
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
    # name, then folder, then modality
    found: dict[str, dict[Path, dict[str, Path]]] = defaultdict(lambda: defaultdict(dict))
    inside = _inside(output, folder)
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder).parent
        fitting = [name for name, pattern in patterns.items() if path.name.endswith(pattern)]
        if not fitting or not path.is_file() or (inside and path.is_relative_to(output)):
            continue
        if any(part.startswith(".") for part in (path.name, *place.parts)):
            continue
        modality = max(fitting, key=lambda name: len(patterns[name]))  # the most specific suffix
        name = path.name.removesuffix(patterns[modality]) or path.parent.name
        found[name][place][modality] = path
    if not found:
        raise UserError(
            "the input folder holds no file that fits the File_Pattern of a modality "
            f"({', '.join(patterns.values())}): check the folder and the segmentation task file."
        )
    names: dict[Path, list[str]] = defaultdict(list)
    for name, places in found.items():
        for place in places:
            names[place].append(name)
    cases: dict[str, dict[str, Path] | str] = {}
    for name, places in found.items():
        files = [item for group in places.values() for item in group.items()]
        if len(dict(files)) == len(files):
            groups = {name: dict(files)}
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


# --- both ---


class _ForeignResultError(UserError):
    """The output folder holds results that are not this run's; nothing is written there."""


@contextmanager
def explained(folder: Path, case: str = "") -> Iterator[None]:
    """Leaves the reason in the output folder where there is no result, and none where there is.

    Args:
        folder: The output folder.
        case: The case, where the folder is that of several.
    """
    path = folder / (f"{case}-{NO_RESULT}" if case else NO_RESULT)
    try:
        yield
        path.unlink(missing_ok=True)
    except _ForeignResultError:
        raise
    except UserError as error:
        write_text(path, f"{error}\n")
        raise


def _inside(output: Path, folder: Path) -> bool:
    """Whether the output folder lies in the input folder."""
    return output != folder and output.is_relative_to(folder)


def _begun(manifest: Manifest) -> Manifest:
    return Manifest(manifest.folder, f"{manifest.path.stem}.begun")


@contextmanager
def _recorded(manifest: Manifest, target: Path, inputs: str) -> Iterator[None]:
    """Records a result; a kill before that leaves a mark that it is ours."""
    begun = _begun(manifest)
    begun.record(inputs, [])
    yield
    manifest.record(inputs, [target])
    begun.forget()


def _is_done(manifest: Manifest, target: Path, inputs: str) -> bool:
    """Whether the result is there already.

    Raises:
        UserError: Something else is in its place.
    """
    if manifest.is_done(inputs):
        return True
    own = _begun(manifest).read().get("inputs") == inputs
    if target.suffix == ".dcm":
        _refuse_foreign(target.parent, [target] if own else [])
    elif target.exists() and not own:
        raise _foreign(target)
    return False


def _refuse_foreign(folder: Path, own: Sequence[Path]) -> None:
    for suffix in SUFFIXES.values():
        for path in sorted(folder.glob(f"*{suffix}")):
            if path not in own and not path.name.startswith("."):
                raise _foreign(path)


def _foreign(path: Path) -> _ForeignResultError:
    return _ForeignResultError(
        f"the output folder already has results of something else ({path.name}): name another "
        "folder, or remove them."
    )


def _finish(failures: Failures, targets: list[Path]) -> list[Path]:
    failures.check(len(targets))
    return targets
