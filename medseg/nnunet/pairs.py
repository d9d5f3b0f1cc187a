"""Pairs of configurations that vote on the cases that neither of them has seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from medseg.config import TaskConfig
from medseg.imaging import ENDING, from_zyx, read_nifti, write_nifti
from medseg.nnunet.choice import ensembles_folder
from medseg.nnunet.devices import threads
from medseg.nnunet.fold_network import FoldNetwork
from medseg.nnunet.paths import environment
from medseg.nnunet.prediction import set_aside
from medseg.nnunet.preprocessing import split_of
from medseg.nnunet.validation import validation_inputs
from medseg.project import Failures, Manifest, fingerprint, progress

Pair = tuple[str, str]


def pair_folder(config: TaskConfig, pair: Pair) -> Path:
    """Where the label maps of a pair lie, ``<case>.nii.gz``.

    Args:
        config: The task's config.
        pair: Two configurations.
    """
    return ensembles_folder(config) / "___".join(pair)


def predict_pairs(config: TaskConfig, pairs: Sequence[Pair], folds: Sequence[int]) -> None:
    """Lets pairs of configurations vote on the validation cases of each fold.

    As nnU-Net's ``ensemble_crossvalidations``, which averages the softmax volumes that the
    validations have kept on the disk. Here each network computes again, once a case for all pairs,
    and the mean is made some slices at a time: nothing large is kept. A case is not predicted again
    with the same checkpoints.

    Args:
        config: The task's config.
        pairs: Pairs of configurations.
        folds: Folds that all of them have.

    Raises:
        UserError: A fold's training is not finished.
        CasesFailedError: More cases failed than ``max_failed_cases``.
    """
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    total = 0
    failures = Failures()
    for fold in folds:
        configs = {name: config.of(configuration=name, fold=fold) for name in names}
        inputs = fingerprint({name: validation_inputs(each) for name, each in configs.items()})
        split = split_of(configs[names[0]])
        cases = [] if split == "all" else sorted(split.val)
        total += len(cases)
        to_do = {
            case: missing
            for case in cases
            if (missing := [p for p in pairs if not _record(config, p, case).is_done(inputs)])
        }
        if not to_do:
            continue
        with environment(config), threads("cpu"):
            networks = {name: FoldNetwork.open(each) for name, each in configs.items()}
            for number, (case, missing) in enumerate(to_do.items(), 1):
                with failures.case(case):
                    _predict(config, networks, missing, case, inputs)
                progress(
                    f"fold {fold}: {case} predicted by {len(missing)} pairs", number, len(to_do)
                )
    failures.check(total, config.max_failed_cases)


def _predict(
    config: TaskConfig,
    networks: Mapping[str, FoldNetwork],
    pairs: Sequence[Pair],
    case: str,
    inputs: str,
) -> None:
    reference = config.preprocessed_folder / "gt_segmentations" / f"{case}{ENDING}"
    with ExitStack() as scratch:
        found = {}
        for name, network in networks.items():
            if any(name in pair for pair in pairs):
                logits, properties = network.logits(case)
                found[name] = (scratch.enter_context(set_aside(logits)), properties)
        for pair in pairs:
            exporters = [networks[name].predictor.exporter for name in pair]
            blocks = [
                exporter.blocks(*found[name])
                for exporter, name in zip(exporters, pair, strict=True)
            ]
            labels = np.concatenate([block.labels for block in exporters[0].average(blocks)])
            target = pair_folder(config, pair) / f"{case}{ENDING}"
            target.parent.mkdir(parents=True, exist_ok=True)
            write_nifti(from_zyx(labels), read_nifti(reference).affine, target)
            _record(config, pair, case).record(inputs, [target])


def _record(config: TaskConfig, pair: Pair, case: str) -> Manifest:
    return Manifest(pair_folder(config, pair), case)
