"""Predictions of a fold's validation split, and nnU-Net's ``summary.json``."""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from medseg.config import TaskConfig
from medseg.imaging import ENDING
from medseg.nnunet.checkpoints import load_checkpoint
from medseg.nnunet.console import quiet
from medseg.nnunet.devices import processes, threads
from medseg.nnunet.paths import environment
from medseg.nnunet.preprocessing import preprocessed, split_of
from medseg.nnunet.resume import require_final
from medseg.project import (
    Failures,
    Manifest,
    atomic_file,
    check_written,
    fingerprint,
    progress,
    remove_others,
)


def predict_validation(config: TaskConfig) -> Path:
    """Predicts the validation split of a fold with its final checkpoint.

    The counterpart of nnU-Net's ``perform_actual_validation``: sliding window with half a patch as
    step, Gaussian weights, mirroring; logits resampled to the original grid. Unlike it, each case
    is written whole or not at all, and is not predicted again with the same checkpoint.

    Args:
        config: The task's config.

    Returns:
        ``fold_F/validation``, with ``<case>.nii.gz`` (label values on the grid of the case's
        image) and ``summary.json`` in nnU-Net's schema.

    Raises:
        UserError: The dataset is not preprocessed, or the fold's training is not finished.
        CasesFailedError: More cases failed than ``max_failed_cases``.
    """
    data = preprocessed(config)
    checkpoint = require_final(config)
    split = split_of(config)
    cases = sorted(data["cases"] if split == "all" else split.val)
    folder = config.fold_folder() / "validation"
    folder.mkdir(exist_ok=True)

    inputs = fingerprint({"data": data["dataset_hash"], "plans": data["plans_hash"]}, [checkpoint])
    to_do = [case for case in cases if not Manifest(folder, case).is_done(inputs)]
    failures = Failures()
    if to_do:
        (folder / "summary.json").unlink(missing_ok=True)  # it describes other predictions
        with environment(config):
            _predict(config, checkpoint, folder, to_do, len(cases), inputs, failures)
    failures.check(len(cases), config.max_failed_cases)
    predicted = [case for case in cases if case not in failures.reasons]
    done = Manifest(folder, "summary")
    all_inputs = fingerprint({"checkpoint": inputs, "cases": predicted})
    if not done.is_done(all_inputs) or not (folder / "summary.json").is_file():
        remove_others(folder, [f"{case}{ENDING}" for case in predicted])
        remove_others(folder / ".medseg", [f"{case}.json" for case in predicted])
        with environment(config):
            _summarise(config, folder)
        done.record(all_inputs, [folder / f"{case}{ENDING}" for case in predicted])
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
    import torch
    from nnunetv2.inference.export_prediction import export_prediction_from_logits
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    predictor = _predictor(config, checkpoint)
    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    data_folder = str(config.preprocessed_folder / configuration.data_identifier)
    dataset = infer_dataset_class(data_folder)(data_folder, list(cases))

    def export(case: str, logits: Any, properties: dict[str, Any]) -> None:
        target = folder / f"{case}{ENDING}"
        with atomic_file(target) as temporary:
            export_prediction_from_logits(
                logits,
                properties,
                configuration,
                plans,
                predictor.dataset_json,
                str(temporary).removesuffix(ENDING),
                num_threads_torch=torch.get_num_threads(),
            )
            check_written(temporary)
        Manifest(folder, case).record(inputs, [target])

    count = total - len(cases)
    # Resampling runs beside the next prediction; more than two cases at once only cost memory.
    with (
        threads(predictor.device.type),
        ThreadPoolExecutor(min(2, processes(config))) as pool,
    ):
        exports: list[tuple[str, Future[None]]] = []

        def finish(case: str, future: Future[None]) -> None:
            nonlocal count
            with failures.case(case):
                future.result()
                count += 1
                progress(f"{case} predicted", count, total)

        for case in cases:
            with failures.case(case):
                image, _, _, properties = dataset.load_case(case)
                with quiet():
                    logits = predictor.predict_sliding_window_return_logits(
                        torch.from_numpy(image[:].copy())
                    ).cpu()
                exports.append((case, pool.submit(export, case, logits, properties)))
            if len(exports) >= 2:
                finish(*exports.pop(0))
        for case, future in exports:
            finish(case, future)


def _predictor(config: TaskConfig, checkpoint: Path) -> Any:
    """nnU-Net's predictor with the fold's final weights, as its own validation sets it up."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from medseg.nnunet.devices import choose_bfloat16, choose_device, use_bfloat16
    from medseg.nnunet.trainer import find_trainer_class

    content = load_checkpoint(checkpoint)
    dataset = json.loads((config.preprocessed_folder / "dataset.json").read_text(encoding="utf-8"))
    plans = PlansManager(content["init_args"]["plans"])
    configuration = plans.get_configuration(config.configuration)
    network = find_trainer_class(content["trainer_name"]).build_network_architecture(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        determine_num_input_channels(plans, configuration, dataset),
        plans.get_label_manager(dataset).num_segmentation_heads,
        enable_deep_supervision=False,
    )
    network.load_state_dict(content["network_weights"])
    device = choose_device(config)
    if choose_bfloat16(config.precision, device.type):
        use_bfloat16(network)
    with quiet():
        predictor = nnUNetPredictor(
            perform_everything_on_device=device.type == "cuda", device=device, allow_tqdm=False
        )
        predictor.manual_initialization(
            network,
            plans,
            configuration,
            None,
            dataset,
            content["trainer_name"],
            content["inference_allowed_mirroring_axes"],
        )
    return predictor


def _summarise(config: TaskConfig, folder: Path) -> None:
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    base = config.preprocessed_folder
    dataset = json.loads((base / "dataset.json").read_text(encoding="utf-8"))
    plans = PlansManager(str(base / f"{config.nnunet_plans_name}.json"))
    labels = plans.get_label_manager(dataset)
    with atomic_file(folder / "summary.json") as temporary:
        compute_metrics_on_folder(
            str(base / "gt_segmentations"),
            str(folder),
            str(temporary),
            plans.image_reader_writer_class(),
            ENDING,
            labels.foreground_regions if labels.has_regions else labels.foreground_labels,
            labels.ignore_label,
            processes(config),
        )
