"""Predictions of a fold's validation split."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseg.config import TaskConfig
from medseg.imaging import ENDING, from_zyx, read_nifti, write_nifti
from medseg.nnunet.checkpoints import load_checkpoint
from medseg.nnunet.console import quiet
from medseg.nnunet.devices import (
    choose_device,
    choose_precision,
    threads,
    use_bfloat16,
)
from medseg.nnunet.paths import environment
from medseg.nnunet.plans import read_plans
from medseg.nnunet.precision import bfloat16_dice
from medseg.nnunet.prediction import CasePredictor
from medseg.nnunet.preprocessing import example_patches, preprocessed, split_of
from medseg.nnunet.resume import require_final
from medseg.nnunet.summary_file import SUMMARY
from medseg.nnunet.trainer_classes import find_trainer_class
from medseg.project import Failures, Manifest, fingerprint, progress, remove_others


def predict_validation(config: TaskConfig) -> Path:
    """Predicts the validation split of a fold with its final checkpoint.

    The counterpart of nnU-Net's ``perform_actual_validation``: sliding window with half a patch as
    step, Gaussian weights, mirroring; logits resampled to the original grid. Unlike it, each case
    is written whole or not at all, and is not predicted again with the same checkpoint.

    Args:
        config: The task's config.

    Returns:
        ``fold_F/validation``, with ``<case>.nii.gz``: label values on the grid of the case's
        image. :func:`medseg.evaluation.evaluate` measures them.

    Raises:
        UserError: The dataset is not preprocessed, or the fold's training is not finished.
        CasesFailedError: More cases failed than ``max_failed_cases``.
    """
    data = preprocessed(config)
    checkpoint = require_final(config)
    split = split_of(config)
    cases = sorted(data.cases if split == "all" else split.val)
    folder = config.fold_folder() / "validation"
    folder.mkdir(exist_ok=True)

    inputs = fingerprint({"data": data.dataset_hash, "plans": data.plans_hash}, [checkpoint])
    to_do = [case for case in cases if not Manifest(folder, case).is_done(inputs)]
    failures = Failures()
    if to_do:
        (folder / SUMMARY).unlink(missing_ok=True)  # it describes other predictions
        with environment(config):
            _predict(config, checkpoint, folder, to_do, len(cases), inputs, failures)
    failures.check(len(cases), config.max_failed_cases)
    predicted = [case for case in cases if case not in failures.reasons]
    remove_others(folder, [SUMMARY, *(f"{case}{ENDING}" for case in predicted)])
    remove_others(folder / ".medseg", [f"{record}.json" for record in ("evaluate", *predicted)])
    return folder


def _predict(
    config: TaskConfig,
    checkpoint: Path,
    folder: Path,
    cases: list[str],
    total: int,
    inputs: str,
    failures: Failures,
) -> None:
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    predictor, data_folder = _predictor(config, checkpoint)
    dataset = infer_dataset_class(str(data_folder))(str(data_folder), list(cases))
    references = config.preprocessed_folder / "gt_segmentations"

    def write(number: int, case: str, logits: torch.Tensor, properties: dict[str, Any]) -> None:
        with failures.case(case):
            target = folder / f"{case}{ENDING}"
            grid = read_nifti(references / target.name).affine
            write_nifti(from_zyx(predictor.labels(logits, properties)), grid, target)
            Manifest(folder, case).record(inputs, [target])
            progress(f"{case} predicted", number, total)

    # A case is resampled and written beside the prediction of the next, so that a GPU need not
    # wait; by all CPUs, for nothing else keeps them busy then.
    with threads("cpu"), ThreadPoolExecutor(1) as pool:
        writing: Future[None] | None = None
        for number, case in enumerate(cases, start=total - len(cases) + 1):
            with failures.case(case):
                image, _, _, properties = dataset.load_case(case)
                logits = predictor.logits(torch.from_numpy(np.array(image[:])))
                if writing is not None:
                    writing.result()  # more than two cases at once only cost memory
                writing = pool.submit(write, number, case, logits, properties)
        if writing is not None:
            writing.result()


def _predictor(config: TaskConfig, checkpoint: Path) -> tuple[CasePredictor, Path]:
    """The fold's final network, and the folder of its preprocessed cases."""
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    content = load_checkpoint(checkpoint)
    _, dataset = read_plans(config)
    plans = content["init_args"]["plans"]
    with quiet():
        manager = PlansManager(plans)
        configuration = manager.get_configuration(config.configuration)
        network = find_trainer_class(content["trainer_name"]).build_network_architecture(
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
            determine_num_input_channels(manager, configuration, dataset),
            manager.get_label_manager(dataset).num_segmentation_heads,
            enable_deep_supervision=False,
        )
    network.load_state_dict(content["network_weights"])
    network.eval()
    device = choose_device(config.device).type

    def dice() -> float:
        patches = example_patches(config.preprocessed_folder, plans, config.configuration)
        regions = manager.get_label_manager(dataset).has_regions
        return bfloat16_dice(network, patches, regions=regions)

    precision = choose_precision(config.precision, device, dice)
    if (device, precision) == ("cpu", "bfloat16"):
        use_bfloat16(network)  # the same arithmetic, in the order of memory that training has
        precision = "float32"
    predictor = CasePredictor(
        [network],
        plans,
        dataset,
        configuration=config.configuration,
        mirror_axes=content["inference_allowed_mirroring_axes"] or (),
        device=device,
        precision=precision,
    )
    return predictor, config.preprocessed_folder / configuration.data_identifier
