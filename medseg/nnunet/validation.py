"""Predictions of a fold's validation split."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from medseg.config import TaskConfig
from medseg.imaging import ENDING, from_zyx, read_nifti, write_nifti
from medseg.nnunet.devices import threads
from medseg.nnunet.fold_network import FoldNetwork
from medseg.nnunet.paths import environment
from medseg.nnunet.plans import load_plans, plans_path, read_plans
from medseg.nnunet.preprocessing import preprocessed, split_of
from medseg.nnunet.previous_stage import NextStages
from medseg.nnunet.resume import require_final
from medseg.nnunet.summary_file import SUMMARY
from medseg.project import Failures, Manifest, fingerprint, progress, remove_others


def predict_validation(config: TaskConfig) -> Path:
    """Predicts the validation split of a fold with its final checkpoint.

    The counterpart of nnU-Net's ``perform_actual_validation``: sliding window with half a patch as
    step, Gaussian weights, mirroring; logits resampled to the original grid. Unlike it, each case
    is written whole or not at all, and is not predicted again with the same checkpoint. Where the
    configuration is the first stage of a cascade, and that is preprocessed, it gets its input, too.

    Args:
        config: The task's config.

    Returns:
        ``fold_F/validation``, with ``<case>.nii.gz``: label values on the grid of the case's
        image. :func:`medseg.evaluation.evaluate` measures them.

    Raises:
        UserError: The dataset is not preprocessed, or the fold's training is not finished.
        CasesFailedError: More cases failed than ``max_failed_cases``.
    """
    split = split_of(config)
    cases = sorted(preprocessed(config).cases if split == "all" else split.val)
    folder = config.fold_folder() / "validation"
    inputs = validation_inputs(config)
    folder.mkdir(exist_ok=True)

    plans = load_plans(plans_path(config))
    configuration = plans.get_configuration(config.configuration)
    stages = NextStages(config, plans, configuration, read_plans(config)[1])
    to_do = [
        case
        for case in cases
        if not (Manifest(folder, case).is_done(inputs) and stages.are_done(case, inputs))
    ]
    failures = Failures()
    if to_do:
        (folder / SUMMARY).unlink(missing_ok=True)  # it describes other predictions
        with environment(config):
            _predict(config, stages, folder, to_do, len(cases), inputs, failures)
    failures.check(len(cases), config.max_failed_cases)
    predicted = [case for case in cases if case not in failures.reasons]
    remove_others(folder, [SUMMARY, *(f"{case}{ENDING}" for case in predicted)])
    remove_others(folder / ".medseg", [f"{record}.json" for record in ("evaluate", *predicted)])
    return folder


def validation_inputs(config: TaskConfig) -> str:
    """What the config's fold is validated with, as a fingerprint.

    Raises:
        UserError: The dataset is not preprocessed, or the fold's training is not finished.
    """
    data = preprocessed(config)
    return fingerprint(
        {"data": data.dataset_hash, "plans": data.plans_hash}, [require_final(config)]
    )


def _predict(
    config: TaskConfig,
    stages: NextStages,
    folder: Path,
    cases: list[str],
    total: int,
    inputs: str,
    failures: Failures,
) -> None:
    network = FoldNetwork.open(config)
    references = config.preprocessed_folder / "gt_segmentations"

    def write(number: int, case: str, logits: torch.Tensor, properties: dict[str, Any]) -> None:
        with failures.case(case):
            target = folder / f"{case}{ENDING}"
            grid = read_nifti(references / target.name).affine
            write_nifti(from_zyx(network.predictor.labels(logits, properties)), grid, target)
            stages.write(case, logits, properties, inputs)
            Manifest(folder, case).record(inputs, [target])
            progress(f"{case} predicted", number, total)

    # A case is resampled and written beside the prediction of the next, so that a GPU need not
    # wait; by all CPUs, for nothing else keeps them busy then.
    with threads("cpu"), ThreadPoolExecutor(1) as pool:
        writing: Future[None] | None = None
        for number, case in enumerate(cases, start=total - len(cases) + 1):
            with failures.case(case):
                logits, properties = network.logits(case)
                if writing is not None:
                    writing.result()  # more than two cases at once only cost memory
                writing = pool.submit(write, number, case, logits, properties)
        if writing is not None:
            writing.result()
