"""Inference from the packaged model."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from medseg.bundle.formats import SUFFIXES, Format
from medseg.bundle.members import Members
from medseg.bundle.probabilities import probability_files, write_probabilities
from medseg.bundle.torchscript import PackagedModel, load_packaged
from medseg.dicom import (
    FolderSource,
    image_series,
    is_dicom_file,
    read_image,
)
from medseg.imaging import ENDINGS, Volume, is_nifti, stem, to_zyx, write_nifti
from medseg.nnunet.devices import choose_device, choose_precision
from medseg.nnunet.plans import settings_of
from medseg.nnunet.postprocessing import Postprocessed
from medseg.nnunet.prediction import CasePredictor, EnsemblePredictor, Predictor
from medseg.project import Failures, Manifest, UserError, fingerprint, progress

CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")
"""nnU-Net's file names: ``CASE_0000.nii.gz`` is the first channel of CASE."""


@dataclass(frozen=True)
class Case:
    """What is segmented at once.

    Attributes:
        name: The case identifier; the result is named after it.
        images: One path a channel, or one 4D NIfTI file, or one folder with a DICOM series.
        format: What the images are.
    """

    name: str
    images: tuple[Path, ...]
    format: Format


def segment(
    model: str | Path,
    input: str | Path,  # noqa: A002 - the word on the command line and in the pipeline
    output: str | Path,
    *,
    output_format: str = "",
    test_time_augmentation: bool = True,
    device: str = "auto",
    precision: str = "auto",
    probabilities: bool = False,
) -> list[Path]:
    """Segments images with a packaged model, with nnU-Net's preprocessing and its inverse.

    Args:
        model: The packaged model (``model.ts``).
        input: A NIfTI file; a folder of NIfTI files (``CASE.nii.gz``, or ``CASE_0000.nii.gz``,
            ``CASE_0001.nii.gz``, … for the channels; without a ``CASE_0000.nii.gz`` each file is a
            case); a DICOM series folder; or a folder of DICOM
            series folders, each of which is a case.
        output: A file (``.nii``, ``.nii.gz`` or ``.dcm``; for one case), or a folder in which each
            result has the name of its case. Existing results are replaced; in a folder, results of
            the same model, images and settings are kept.
        output_format: ``nifti`` or ``dicom`` (a DICOM SEG that refers to the source series; its
            segments have the names in the model's metadata). Default: that of the input.
        test_time_augmentation: Average over mirrored copies, as nnU-Net does by default.
        device: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.
        precision: ``float32``, ``bfloat16`` (on a CPU only where it has units for it), or
            ``auto``: float16 autocast on a GPU, as nnU-Net has it; on a CPU bfloat16 where it has
            units for it and the model records that its results are those of float32, else float32.
        probabilities: Write the probability of each label too, as ``CASE_prob_VALUE.nii.gz``
            beside the result, on the grid of the image (see
            :func:`medseg.bundle.probabilities.write_probabilities`).

    Returns:
        The segmentations, in the order of the cases. NIfTI label maps lie on the grid of their
        image.

    Raises:
        UserError: The model, the input or a setting is unusable; the message says what to do.
        CasesFailedError: Of several cases some failed; the others are finished.
    """
    model, output = Path(model), Path(output)
    cases = find_cases(Path(input))
    targets = _targets(cases, output, output_format)
    packaged = load_packaged(model)
    predictor = build_predictor(packaged, test_time_augmentation, device, precision)
    if probabilities:
        _check_names(targets, predictor)

    if len(cases) == 1 and targets[0] == output:
        started = time.monotonic()
        _segment_case(cases[0], output, packaged, predictor, probabilities)
        progress(f"{cases[0].name} segmented in {time.monotonic() - started:.1f} s", 1, 1)
        return targets
    settings = [fingerprint({}, [model]), test_time_augmentation, device, precision]
    settings += ["probabilities"] * probabilities
    segment_each(
        {
            case.name: partial(
                _segment_once, case, target, packaged, predictor, settings, probabilities
            )
            for case, target in zip(cases, targets, strict=True)
        }
    )
    return targets


def segment_each(cases: Mapping[str, Callable[[], bool]]) -> None:
    """Segments one case after the other; none that fails loses the others.

    Args:
        cases: Each case's name and what segments it; that returns whether there was anything to
            do, for its result may be there already.

    Raises:
        CasesFailedError: A case failed; the others are finished.
    """
    failures = Failures(private=True)
    for number, (case, segment_case) in enumerate(cases.items(), start=1):
        started = time.monotonic()
        with failures.case(case):
            if segment_case():
                message = f"{case} segmented in {time.monotonic() - started:.1f} s"
            else:
                message = f"{case} is segmented already"
            progress(message, number, len(cases))
    failures.check(len(cases))


def find_cases(path: Path) -> list[Case]:
    """The cases at ``path``: a file, a series, or a folder of either.

    Args:
        path: What the user named.

    Returns:
        The cases, by name.

    Raises:
        UserError: There is nothing, or neither NIfTI nor DICOM.
    """
    if not path.exists():
        raise UserError(f"the input {path} does not exist: name a NIfTI file or a DICOM folder.")
    if path.is_file():
        if is_nifti(path):
            if CHANNEL.match(stem(path)) is None:
                return [Case(stem(path), (path,), "nifti")]
            return [case for case in _nifti_cases(path.parent) if path in case.images]
        if is_dicom_file(path):
            return [Case(path.stem, (path,), "dicom")]
        raise UserError(f"the input {path} is neither a NIfTI file (.nii, .nii.gz) nor DICOM.")
    cases = _nifti_cases(path)
    if cases:
        return cases
    return [Case(name, (folder,), "dicom") for name, folder in _dicom_folders(path).items()]


def _dicom_folders(path: Path) -> dict[str, Path]:
    """The folders that are a case each: its name to the folder.

    A folder with DICOM files of its own is a case, else each folder in it; one of these that holds
    several studies, as a CD has its patients below one folder, is looked into in turn.
    """
    source = FolderSource(path, may_be_empty=True)
    files = source.instances()
    if not files:
        reasons = "; ".join(f"{item.what}: {item}" for item in source.left_out()[:3])
        raise UserError(
            f"the folder {path} holds no NIfTI files (.nii, .nii.gz) and no DICOM"
            f"{f' ({reasons})' if reasons else ''}: name a folder of NIfTI files, of one DICOM "
            "series, or of folders with one DICOM series each."
        )
    if any(file.parent == path for file in files):
        return {path.resolve().name: path}
    images = {series.study_uid for series in image_series(source)}

    def below(folder: Path) -> list[Path]:
        folders = []
        for child in sorted(item for item in folder.iterdir() if item.is_dir()):
            inside = [file for file in files if file.is_relative_to(child)]
            studies = {files[file] for file in inside} & images
            if len(studies) > 1 and not any(file.parent == child for file in inside):
                folders += below(child)
            elif inside:
                folders.append(child)
        return folders

    folders = below(path)
    for item in source.left_out():
        if not any((path / item.what).is_relative_to(folder) for folder in folders):
            progress(f"warning: {item.what} was left out: {item}")
    unique = len({folder.name for folder in folders}) == len(folders)
    return {
        folder.name if unique else "_".join(folder.relative_to(path).parts): folder
        for folder in folders
    }


def _nifti_cases(folder: Path) -> list[Case]:
    files = [file for file in sorted(folder.iterdir()) if is_nifti(file) and file.is_file()]
    names = {stem(file) for file in files}
    channels: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        match = CHANNEL.match(stem(file))
        # four digits are a channel only beside channel 0000; else they number cases, as in AMOS
        is_channel = match is not None and f"{match['case']}_0000" in names
        channels[match["case"] if match and is_channel else stem(file)].append(file)
    return [Case(name, tuple(images), "nifti") for name, images in sorted(channels.items())]


def _targets(cases: list[Case], output: Path, wanted: str) -> list[Path]:
    if wanted not in ("", *SUFFIXES):
        raise UserError(f"output_format: {wanted!r} is unknown: use nifti or dicom.")
    name = output.name.lower()
    suffix = next((each for each in ENDINGS if name.endswith(each)), output.suffix.lower())
    of_suffix: dict[str, Format] = {**dict.fromkeys(ENDINGS, "nifti"), ".dcm": "dicom"}
    is_file = suffix in of_suffix and not output.is_dir()
    if is_file and len(cases) > 1:
        raise UserError(
            f"output: {output} is one file, but the input holds {len(cases)} cases: name a folder."
        )
    if is_file and wanted and of_suffix[suffix] != wanted:
        raise UserError(f"output: {output} does not agree with output_format {wanted}.")
    if output.is_file() and not is_file:
        raise UserError(f"output: {output} is a file: name a folder, or a .nii.gz or .dcm file.")
    targets = []
    for case in cases:
        form = of_suffix[suffix] if is_file else (wanted or case.format)
        if form == "dicom" and case.format != "dicom":
            raise UserError(
                f"output_format: a DICOM SEG refers to a DICOM series, but {case.images[0]} is "
                "NIfTI: use nifti, or segment the DICOM series."
            )
        target = output if is_file else output / f"{case.name}{SUFFIXES[form]}"  # type: ignore[index]
        if target.resolve() in {image.resolve() for image in case.images}:
            raise UserError(f"output: {target} is the input image itself: name another place.")
        targets.append(target)
    return targets


def build_predictor(
    packaged: PackagedModel,
    test_time_augmentation: bool = True,
    device: str = "auto",
    precision: str = "auto",
) -> Predictor:
    """A predictor for a packaged model; arguments and errors as those of :func:`segment`."""
    kind = choose_device(device).type
    chosen = choose_precision(precision, kind, partial(_bfloat16_dice, packaged))
    members = packaged.members or Members.single(packaged.checkpoint)

    def of(name: str) -> CasePredictor:
        folds = members.of(name)
        if not folds:
            raise UserError(
                f"the model {packaged.path} lacks {name}, the first stage of its cascade: make it "
                "anew with find_best_configuration and convert_pt_to_ts."
            )
        stage = settings_of(packaged.plans, name).get("previous_stage")
        return CasePredictor(
            packaged.networks(name),
            packaged.plans,
            packaged.dataset,
            configuration=name,
            mirror_axes=folds[0].mirror_axes if test_time_augmentation else (),
            device=kind,
            precision=chosen,
            previous=of(stage) if stage else None,
        )

    voting = [of(name) for name in members.votes]
    predictor = voting[0] if len(voting) == 1 else EnsemblePredictor(voting)
    if not members.postprocessing:
        return predictor
    return Postprocessed(predictor, members.postprocessing)


def _bfloat16_dice(packaged: PackagedModel) -> float | None:
    dice = packaged.bfloat16_dice
    if dice is None:
        progress(
            "the model does not record whether bfloat16 gives its results, so it computes in "
            "float32: package it anew (convert_pt_to_ts) to have it faster on this CPU"
        )
    return dice


def _segment_once(
    case: Case,
    target: Path,
    packaged: PackagedModel,
    predictor: Predictor,
    settings: Sequence[object],
    probabilities: bool,
) -> bool:
    """Segments a case; false where the same model has made its result of the same images."""
    inputs = fingerprint({"settings": settings, "target": target.name}, _files(case))
    manifest = Manifest(target.parent, f"segment-{case.name}")
    if manifest.is_done(inputs):
        return False
    before = {target.parent / name for name in manifest.read().get("outputs", {})}
    written = _segment_case(case, target, packaged, predictor, probabilities)
    for path in before.difference(written):  # of other settings, or another model
        path.unlink(missing_ok=True)
    manifest.record(inputs, written)
    return True


def _segment_case(
    case: Case, target: Path, packaged: PackagedModel, predictor: Predictor, probabilities: bool
) -> list[Path]:
    volumes = [read_image(path) for path in case.images]
    _check_channels(case, volumes, predictor.channels)
    written = [target]
    if probabilities:
        files = probability_files(target, predictor)
        blocks = predictor.probabilities(to_zyx(volumes), volumes[0].spacing[::-1])
        mask = predictor.postprocess(write_probabilities(blocks, files, volumes[0]))
        written += files
    else:
        mask = predictor.segment_volumes(volumes)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix.lower() == SUFFIXES["dicom"]:
        from medseg.dicom import write_segmentation  # highdicom takes a second

        write_segmentation(mask, volumes[0], target, packaged.segments)
    else:
        write_nifti(mask, volumes[0].affine, target)
    return written


def _check_names(targets: Sequence[Path], predictor: Predictor) -> None:
    """Refuses cases whose segmentations have the names of other cases' probabilities."""
    for target in targets:
        taken = set(probability_files(target, predictor)).intersection(targets)
        if taken:
            raise UserError(
                f"{min(taken)} would be the segmentation of one case and a probability of "
                f"{target.name}: rename one of the cases, or leave out the probabilities."
            )


def _check_channels(case: Case, volumes: Sequence[Volume], needed: int) -> None:
    """Refuses a case with other channels than the model's.

    Raises:
        UserError: Their number differs, or a file between is missing.
    """
    count = sum(len(volume.channels) for volume in volumes)
    names = [CHANNEL.match(stem(path)) for path in case.images]
    numbers = [int(name["channel"]) for name in names if name]
    gap = len(case.images) > 1 and numbers != list(range(len(numbers)))
    if count != needed or gap:
        files = ", ".join(path.name for path in case.images)
        raise UserError(
            f"{case.name}: the model needs {needed} channel{'s' * (needed != 1)}, but {files} "
            f"{'hold' if len(case.images) > 1 else 'holds'} {count}: give NIfTI files "
            f"{case.name}_0000.nii.gz to {case.name}_{needed - 1:04d}.nii.gz (the last four "
            "digits of a name are the number of the channel; where they number cases, add _0000 "
            "to each name)."
        )


def _files(case: Case) -> list[Path]:
    if case.format == "nifti":
        return list(case.images)
    return [file for image in case.images for file in [image, *image.rglob("*")] if file.is_file()]
