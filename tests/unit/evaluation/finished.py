"""A project whose training is over: everything that evaluation reads, made without training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, save_summary_json
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from scipy.ndimage import binary_dilation, binary_erosion, shift

from medseg.config import TaskConfig, load_config
from medseg.demo import write_demo_config
from medseg.evaluation.summary import evaluate_pairs
from medseg.imaging import read_nifti, write_nifti
from medseg.project import DataRoot, Manifest, write_json

EPOCHS = 12


def finished_project(root: DataRoot, source: Path, name: str, validated: int = 3) -> TaskConfig:
    """Lays out a project after training and validation, from a Decathlon dataset.

    Predictions are the references, moved and eroded a little more from case to case.
    """
    config_file = root.path / "configs" / f"{name}_config.yaml"
    write_demo_config(config_file, source, name)
    content = yaml.safe_load(config_file.read_text()) | {"num_epochs": EPOCHS}
    config_file.write_text(yaml.safe_dump(content, sort_keys=False))
    config = load_config(f"configs/{name}_config.yaml", root)

    references = config.preprocessed_folder / "gt_segmentations"
    folder = config.fold_folder() / "validation"
    folder.mkdir(parents=True)
    cases = sorted(path.name for path in (source / "labelsTr").glob("*.nii.gz"))
    for case in sorted({*cases, *(path.name for path in (source / "labelsTs").glob("*.nii.gz"))}):
        part = "Tr" if case in cases else "Ts"
        stem = case.removesuffix(".nii.gz")
        for kind in ("image", "label"):
            volume = read_nifti(source / f"{kind}s{part}" / case)
            write_nifti(
                volume.array,
                volume.affine,
                config.data_folder / stem / f"{stem}_{kind}.nii.gz",
            )
            if kind == "label" and part == "Tr":
                write_nifti(volume.array, volume.affine, references / case)
                write_nifti(volume.array, volume.affine, config.raw_folder / "labelsTr" / case)
            elif part == "Tr":
                raw = config.raw_folder / "imagesTr" / f"{stem}_0000.nii.gz"
                write_nifti(volume.array, volume.affine, raw)
    for number, case in enumerate(cases[:validated]):  # the first ones
        label = read_nifti(references / case)
        write_nifti(worsened(label.array, number), label.affine, folder / case)
    labels = [value for value in config.labels.values() if value]
    summarise_as_nnunet(folder, references, labels)
    write_training(config)
    stems = [case.removesuffix(".nii.gz") for case in cases if case not in held_back(config)]
    split = {"train": stems[validated:], "val": stems[:validated]}
    (config.preprocessed_folder / "splits_final.json").write_text(json.dumps([split]))
    Manifest(config.raw_folder, "prepare_dataset").record("x", [], {"dataset_hash": "ab" * 32})
    return config


def held_back(config: TaskConfig) -> set[str]:
    return {f"{case}.nii.gz" for case in config.test_cases}


def write_test_results(config: TaskConfig) -> None:
    """Predictions of the held-back cases with their summary, as evaluate_test_cases leaves them."""
    folder = config.fold_folder() / "test"
    pairs = {}
    for number, case in enumerate(config.test_cases):
        path = config.data_folder / case / f"{case}_label.nii.gz"
        label = read_nifti(path)
        target = folder / f"{case}.nii.gz"
        write_nifti(worsened(label.array, number + 1), label.affine, target)
        pairs[case] = (target, path)
    write_json(folder / "summary.json", evaluate_pairs(pairs, config.label_set))


def write_quality_table(config: TaskConfig) -> None:
    """What collect_dataset leaves after a conversion from DICOM."""
    rows = []
    for path in sorted(config.data_folder.glob("*/*_image.nii.gz")):
        image, label = (
            read_nifti(path),
            read_nifti(path.with_name(path.name.replace("_image", "_label"))),
        )
        millilitres = float(np.prod(image.spacing)) / 1000
        rows.append(
            {
                "case": path.parent.name,
                "size": list(image.shape),
                "spacing": list(image.spacing),
                "orientation": "LPS",
                "intensity": [float(image.array.min()), float(image.array.max())],
                "labels": {name: value for name, value in config.labels.items() if value},
                "volumes_ml": {
                    name: float((label.array == value).sum()) * millilitres
                    for name, value in config.labels.items()
                    if value
                },
                "warnings": ["slices <b>overlap</b> & differ"] if not rows else [],
            }
        )
    (config.data_folder / "dataset.json").write_text(json.dumps({"quality": rows}))


def worsened(label: np.ndarray, amount: int) -> np.ndarray:
    """A prediction that is a little wrong, and more so with ``amount``."""
    result = np.zeros_like(label)
    for value in np.unique(label[label > 0]):
        mask = label == value
        for _ in range(amount // 2):
            mask = binary_erosion(mask)
        if amount % 2:
            mask = binary_dilation(mask)
        moved = shift(mask.astype(np.uint8), (min(amount, 3) % 2, amount // 3, 0), order=0)
        result[moved > 0] = value
    return result


def summarise_as_nnunet(folder: Path, references: Path, labels: Sequence[int]) -> None:
    """nnU-Net's own summary.json, NaN and all."""
    cases = [
        compute_metrics(str(references / path.name), str(path), SimpleITKIO(), list(labels))
        for path in sorted(folder.glob("*.nii.gz"))
    ]
    names = cases[0]["metrics"][labels[0]].keys()
    mean = {
        label: {
            name: float(np.nanmean([float(case["metrics"][label][name]) for case in cases]))
            for name in names
        }
        for label in labels
    }
    for case in cases:
        for metrics in case["metrics"].values():
            for name, value in metrics.items():
                metrics[name] = value.item() if hasattr(value, "item") else value
    overall = {name: float(np.mean([mean[label][name] for label in labels])) for name in names}
    save_summary_json(
        {"metric_per_case": cases, "mean": mean, "foreground_mean": overall},
        str(folder / "summary.json"),
    )


def write_training(config: TaskConfig) -> None:
    """A checkpoint with curves and the plans, as nnU-Net leaves them."""
    structures = len(config.labels) - 1
    fade = np.exp(-np.arange(EPOCHS) / 4)
    logging = {
        "mean_fg_dice": list(0.9 - 0.8 * fade),
        "ema_fg_dice": list(0.85 - 0.8 * fade),
        "dice_per_class_or_region": [
            [np.float32(0.9 - 0.8 * value - 0.05 * index) for index in range(structures)]
            for value in fade
        ],
        "train_losses": list(0.4 * fade - 0.8),
        "val_losses": list(0.5 * fade - 0.75),
        "lrs": list(0.01 * (1 - np.arange(EPOCHS) / EPOCHS) ** 0.9),
        "epoch_start_timestamps": [1.0e9 + 10 * epoch for epoch in range(EPOCHS)],
        "epoch_end_timestamps": [1.0e9 + 10 * epoch + 9 for epoch in range(EPOCHS)],
    }
    torch.save(
        {"network_weights": {}, "logging": logging, "current_epoch": EPOCHS},
        config.fold_folder() / "checkpoint_final.pth",
    )
    plans = {
        "dataset_name": config.dataset_name,
        "plans_name": "nnUNetPlans",
        "configurations": {
            "3d_fullres": {
                "patch_size": [24, 32, 40],
                "batch_size": 2,
                "spacing": [4.7, 4.7, 4.7],
                "normalization_schemes": ["CTNormalization"],
                "architecture": {"arch_kwargs": {"features_per_stage": [32, 64, 128, 256]}},
            }
        },
    }
    (config.results_folder / "plans.json").write_text(json.dumps(plans))
    (config.results_folder / "dataset.json").write_text(json.dumps({"labels": config.labels}))
