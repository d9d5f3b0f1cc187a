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

from medseg.deploy.manifests import ENVIRONMENT, TASK_FILE
from medseg.deploy.task import SegmentationTask, load_segmentation_task
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
    from medseg.dicom import Volume
    from medseg.dicom.sources import FolderSource, Series
    from medseg.nnunet.prediction import CasePredictor

NO_RESULT = "no-segmentation.txt"
"""What lies in the output folder in place of a result: why there is none."""

SUFFIXES = {"dicom": ".dcm", "nifti": ".nii.gz"}


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
        from medseg.bundle.segmentation import segment_names
        from medseg.bundle.torchscript import load_packaged

        model = load_packaged(self.model_file)
        channels = len(model.dataset["channel_names"])
        self.task.check_model(segment_names(model), channels, "the segmentation task file")
        return model

    @cached_property
    def predictor(self) -> CasePredictor:
        """The network with nnU-Net's steps around it."""
        from medseg.bundle.segmentation import build_predictor

        return build_predictor(self.model)

    @cached_property
    def identity(self) -> str:
        """Changes with all that decides a result but the images."""
        return fingerprint([self.model_file], self.task.model_dump())

    def segment(self, volumes: Mapping[str, Volume]) -> np.ndarray[Any, Any]:
        """Segments one case.

        Args:
            volumes: Modality to volume; all on one grid.

        Returns:
            Label values ``[i, j, k]`` on the reference's grid.

        Raises:
            UserError: The volumes lie on different grids, or hold more than one channel each.
        """
        from medseg.dicom.volume import check_same_grid

        reference = volumes[self.task.reference]
        arrays = []
        for name in self.task.modalities:
            check_same_grid(reference, volumes[name])
            array = volumes[name].array
            if array.ndim != 3:
                raise UserError(f"{volumes[name].name} is 4D: give one 3D file a modality.")
            arrays.append(array.transpose(2, 1, 0))
        return self.predictor.segment(np.stack(arrays), reference.spacing[::-1]).transpose(2, 1, 0)


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
    from medseg.bundle.segmentation import segment_names
    from medseg.dicom import write_segmentation
    from medseg.dicom.series import volume_from_instances
    from medseg.dicom.sources import FolderSource

    with _explained(output):
        source = FolderSource(input_folder)
    studies = source.studies()
    folders = _study_folders(source, input_folder)
    name = f"{package.model_file.parent.name}{SUFFIXES['dicom']}"
    targets = {
        study.uid: (output / folders[study.uid] if len(studies) > 1 else output) / name
        for study in studies
    }
    failures = Failures("inference", private=True)
    for number, study in enumerate(studies, start=1):
        case = folders[study.uid] if len(studies) > 1 else "the study"
        target = targets[study.uid]
        with failures.case(case), _explained(target.parent):
            chosen = _choose(source, study.uid, package.task, selected.get(study.uid, {}), case)
            inputs = fingerprint(
                [], {"package": package.identity, **{k: v.state for k, v in chosen.items()}}
            )
            if _is_done(target, inputs):
                progress(f"{case} is segmented already", number, len(studies))
                continue
            volumes = {
                modality: volume_from_instances(source.fetch(series), f"{case}, {modality}")
                for modality, series in chosen.items()
            }
            mask = package.segment(volumes)
            write_segmentation(
                mask,
                volumes[package.task.reference],
                target,
                segment_names(package.model),
                segments=[segment.model_dump() for segment in package.task.segments],
                description=package.task.name,
            )
            Manifest(target.parent, "inference").record(inputs, [target])
            progress(f"{case} segmented", number, len(studies))
    return _finish(failures, list(targets.values()))


def _study_folders(source: FolderSource, input_folder: Path) -> dict[str, str]:
    """A name for each study: the top folder that it lies in, where that is one of its own."""
    names: dict[str, str] = {}
    for number, study in enumerate(source.studies(), start=1):
        tops = {
            path.relative_to(input_folder).parts[0]
            for path in source.paths(study.uid)
            if len(path.relative_to(input_folder).parts) > 1
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
    from medseg.dicom.sources import IMAGE_MODALITIES, describe

    images = [item for item in source.series(study_uid) if item.modality in IMAGE_MODALITIES]
    chosen = {}
    for modality in task.modalities:
        fits = [item for item in images if item.uid in fitting.get(modality, ())]
        if len(fits) == 1:
            chosen[modality] = fits[0]
            continue
        found = ", ".join(map(describe, fits or images)) or "none"
        if fits:
            raise UserError(
                f"{case} has {len(fits)} series that fit the rules of modality {modality} "
                f"({found}): narrow its Rules_Text, or give a folder with one of them."
            )
        raise UserError(
            f"{case} has no series that fits the rules of modality {modality}; its image series: "
            f"{found}. Check the Rules_Text in the segmentation task file."
        )
    return chosen


# --- NIfTI ---


def segment_files(package: Package, input_folder: Path, output: Path) -> list[Path]:
    """Segments every case of a folder of NIfTI files.

    A case is one file a modality, with the modality's ``File_Pattern`` after the case's name. They
    lie in the folder itself, or in one folder a case.

    Args:
        package: Model and task.
        input_folder: The input folder.
        output: The output folder; the result of a case is ``CASE.nii.gz``.

    Returns:
        The results.

    Raises:
        UserError: No file fits, or one of a case is missing; the output folder says so too.
            Results of something else lie in the output folder.
        CasesFailedError: Of several cases some failed.
    """
    from medseg.dicom import read_image, write_nifti

    with _explained(output):
        cases = _find_cases(package.task, input_folder)
    failures = Failures("inference", private=True)
    targets = [output / f"{case}{SUFFIXES['nifti']}" for case in cases]
    _refuse_foreign(output, targets)
    for number, ((case, files), target) in enumerate(zip(cases.items(), targets, strict=True), 1):
        with failures.case(case), _explained(output, case if len(cases) > 1 else ""):
            missing = [name for name in package.task.modalities if name not in files]
            if missing:
                pattern = package.task.modalities[missing[0]].file_pattern
                raise UserError(
                    f"{case} has no file of modality {missing[0]}: "
                    f"{case}{pattern} is missing in the input folder."
                )
            inputs = fingerprint(files.values(), {"package": package.identity})
            if _is_done(target, inputs):
                progress(f"{case} is segmented already", number, len(cases))
                continue
            volumes = {name: read_image(path) for name, path in files.items()}
            mask = package.segment(volumes)
            write_nifti(mask, volumes[package.task.reference].affine, target)
            Manifest(output, f"inference-{target.name}").record(inputs, [target])
            progress(f"{case} segmented", number, len(cases))
    return _finish(failures, targets)


def _find_cases(task: SegmentationTask, folder: Path) -> dict[str, dict[str, Path]]:
    patterns = {name: item.file_pattern for name, item in task.modalities.items()}
    if len(set(patterns.values())) < len(patterns) or not all(patterns.values()):
        raise UserError(
            "the segmentation task file needs a File_Pattern for every modality, and no two alike."
        )
    cases: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in sorted(folder.rglob("*")):
        fitting = [name for name, pattern in patterns.items() if path.name.endswith(pattern)]
        if not fitting or not path.is_file() or path.name.startswith("."):
            continue
        modality = max(fitting, key=lambda name: len(patterns[name]))  # the most specific suffix
        case = path.name.removesuffix(patterns[modality]) or path.parent.name
        if modality in cases[case]:
            raise UserError(
                f"two files are modality {modality} of {case}: {cases[case][modality].name} and "
                f"{path.name}; keep one of them in the input folder."
            )
        cases[case][modality] = path
    if not cases:
        raise UserError(
            "the input folder holds no file that fits the File_Pattern of a modality "
            f"({', '.join(patterns.values())}): check the folder and the segmentation task file."
        )
    return dict(cases)


# --- both ---


class _ForeignResultError(UserError):
    """The output folder holds results that are not this run's; nothing is written there."""


@contextmanager
def _explained(folder: Path, case: str = "") -> Iterator[None]:
    """Leaves the reason in the output folder where there is no result, and none where there is."""
    path = folder / (f"{case}-{NO_RESULT}" if case else NO_RESULT)
    try:
        yield
        path.unlink(missing_ok=True)
    except _ForeignResultError:
        raise
    except UserError as error:
        write_text(path, f"{error}\n")
        raise


def _is_done(target: Path, inputs: str) -> bool:
    """Whether the result is there already.

    Raises:
        UserError: Something else is in its place.
    """
    name = "inference" if target.suffix == ".dcm" else f"inference-{target.name}"
    if Manifest(target.parent, name).is_done(inputs):
        return True
    if target.suffix == ".dcm":
        _refuse_foreign(target.parent, [])
    elif target.exists():
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
    if len(targets) == 1 and failures.reasons:
        raise UserError(next(iter(failures.reasons.values())))
    failures.check(len(targets))
    return targets
