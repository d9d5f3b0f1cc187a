"""The test set: cases that training never saw, segmented with the packaged model."""

from __future__ import annotations

from pathlib import Path

from medseg.bundle import ensemble_file, model_file, segment
from medseg.config import TaskConfig
from medseg.dataset import files_of
from medseg.evaluation.summary import evaluate_pairs, log_summary, pairs_fingerprint
from medseg.imaging import ENDING, stem
from medseg.nnunet import SUMMARY, Summary, read_summary
from medseg.nnunet.choice import ensembles_folder, read_choice
from medseg.project import (
    CasesFailedError,
    Manifest,
    UserError,
    link_or_copy,
    progress,
    remove_others,
    write_json,
)


def test_folder(config: TaskConfig, *, ensemble: bool = False) -> Path:
    """Where predictions of the held-back cases and their ``summary.json`` go.

    Args:
        config: The task's config.
        ensemble: Those of the model of a cross-validation, not of the fold's.
    """
    return (ensembles_folder(config) if ensemble else config.fold_folder()) / "test"


def evaluate_test_cases(config: TaskConfig, *, ensemble: bool = False) -> Summary:
    """Segments the config's ``test_cases`` with the packaged ``model.ts`` and measures the result.

    Predictions and ``summary.json`` go to ``fold_F/test``, the means to MLflow. What was segmented
    by the same model is kept.

    Args:
        config: The task's config.
        ensemble: Take the model of a cross-validation; its numbers go to the MLflow run of its
            first fold, as those of an ``ensemble``.

    Returns:
        The summary; empty where the config names no test cases.

    Raises:
        UserError: The model is not packaged.
        CasesFailedError: More cases failed than ``max_failed_cases``; the others are kept.
    """
    if not config.test_cases:
        progress("the config names no test_cases: nothing to test")
        return {}
    model = ensemble_file(config) if ensemble else model_file(config)
    if not model.is_file():
        raise UserError(f"the packaged model {model} does not exist: run convert_pt_to_ts first.")
    folder = test_folder(config, ensemble=ensemble)
    summary, fresh = measure_model(config, model, folder)
    if fresh:
        of, part = (read_choice(config).first(config), "ensemble") if ensemble else (config, "test")
        log_summary(of, part, folder / SUMMARY, summary)
    return summary


def measure_model(config: TaskConfig, model: Path, folder: Path) -> tuple[Summary, bool]:
    """Segments the config's ``test_cases`` with any packaged model and measures the result.

    Args:
        config: The task's config; it names at least one test case.
        model: The packaged ``model.ts``.
        folder: Where predictions and ``summary.json`` go. Predictions of the same model are kept;
            a case that fails has none, not even one of an earlier model.

    Returns:
        The summary, and whether it was measured anew.

    Raises:
        CasesFailedError: More cases failed than ``max_failed_cases``; the others are kept.
    """
    sources = {case: files_of(config, case) for case in config.test_cases}
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    placed: dict[str, list[str]] = {}
    for case, files in sources.items():
        if not all(path.is_file() for path in files.images):
            continue  # it is missed below, where predictions are measured
        # nnU-Net's names; a single file may hold all channels, as in the Decathlon.
        several = len(files.images) > 1
        placed[case] = [
            f"{case}{f'_{number:04d}' if several else ''}{path.name.removeprefix(stem(path))}"
            for number, path in enumerate(files.images)
        ]
        for path, name in zip(files.images, placed[case], strict=True):
            link_or_copy(path, images / name)
    # what an earlier model made of a case that is no longer whole must not count for this one
    remove_others(images, [name for names in placed.values() for name in names])
    remove_others(folder, [SUMMARY, *(f"{case}{ENDING}" for case in placed)])
    try:
        segment(model, images, folder, device=config.device, precision=config.precision)
    except CasesFailedError as error:
        for case in error.reasons:
            (folder / f"{case}{ENDING}").unlink(missing_ok=True)
        if len(error.reasons) > config.max_failed_cases:
            raise
    pairs = {case: (folder / f"{case}{ENDING}", files.label) for case, files in sources.items()}
    record = Manifest(folder, "evaluate")
    inputs = pairs_fingerprint(pairs, config.label_set)
    if record.is_done(inputs):
        return read_summary(folder / SUMMARY), False
    summary = evaluate_pairs(pairs, config.label_set, allowed=config.max_failed_cases)
    write_json(folder / SUMMARY, summary)
    record.record(inputs, [folder / SUMMARY])
    return summary, True
