"""Which configuration, or which two of them, to use: nnU-Net's rule on the cross-validation.

Every case is in the validation split of one fold, so that the folds together give each
configuration a Dice on all cases. The rule is that of nnU-Net's ``find_best_configuration``: the
highest mean Dice of all configurations and of all pairs that vote wins, the simpler one where two
are level; then the largest component alone is kept, of all structures together or of one, where
that helps.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.config import TaskConfig
from medseg.evaluation.metrics import overlap
from medseg.evaluation.summary import mean_of_defined
from medseg.imaging import ENDING, check_same_grid, read_label_map
from medseg.nnunet.choice import Choice, check_folds, choice_file, ensembles_folder, remedy
from medseg.nnunet.pairs import pair_folder, predict_pairs
from medseg.nnunet.postprocessing import Step, keep_largest
from medseg.nnunet.preprocessing import split_of
from medseg.nnunet.validation import validation_inputs
from medseg.project import Manifest, UserError, fingerprint, progress, write_json

Scores = dict[str, float | None]
"""nnU-Net's key of each structure to a Dice; None where it is undefined."""


def find_best_configuration(
    config: TaskConfig, configurations: Sequence[str] = (), folds: Sequence[int] = range(5)
) -> tuple[Choice, Path]:
    """Compares trained configurations, and each pair of them, on the cross-validation.

    Args:
        config: The task's config.
        configurations: Configurations of its plans; none, or empty names: the config's own.
        folds: Folds that each of them has.

    Returns:
        The choice, and its record ``ensembles/…/best_configuration.json`` beside the folders of
        the configurations.

    Raises:
        UserError: No folds are named; a fold is not trained or not validated, or with other plans,
            channels or labels than the others; the message names it and the command.
        CasesFailedError: More cases failed than ``max_failed_cases``.
    """
    names = list(dict.fromkeys(name or config.configuration for name in configurations))
    names = names or [config.configuration]
    numbers = sorted(set(folds))
    if not numbers or numbers[0] < 0:
        raise UserError(f"folds: {list(folds)} are no folds: name their numbers, such as [0, 1].")
    check_folds(config, names, numbers)
    singles: dict[tuple[str, ...], dict[str, Path]] = {
        (name,): _validated(config, name, numbers) for name in names
    }
    basis = {
        "configurations": names,
        "folds": numbers,
        "labels": [config.label_set.structures, config.label_set.ignore],
        "validated": {
            f"{name} {fold}": validation_inputs(config.of(configuration=name, fold=fold))
            for name in names
            for fold in numbers
        },
    }
    record, inputs = (
        Manifest(ensembles_folder(config), "find_best_configuration"),
        fingerprint(basis),
    )
    before = record.result(inputs)
    if before is not None:
        progress("compared already")
        return Choice.from_json(before), choice_file(config)
    pairs = list(itertools.combinations(names, 2))
    if pairs:
        predict_pairs(config, pairs, numbers)
    cases = singles[(names[0],)]
    candidates = singles | {pair: _of_pair(config, pair, cases) for pair in pairs}
    choice = _choose(config, candidates, numbers)
    write_json(choice_file(config), choice.to_json())
    record.record(inputs, [choice_file(config)], choice.to_json())
    return choice, choice_file(config)


def determine_postprocessing(
    config: TaskConfig, predictions: Mapping[str, Path]
) -> tuple[tuple[Step, ...], Scores]:
    """Which components to take out, by the rule of nnU-Net's function of this name.

    Of all structures together, where the mean Dice rises and that of no structure falls; then of
    each structure where its own Dice rises. Each case is read once for all structures (of regions,
    which share voxels, once for each).

    Args:
        config: The task's config.
        predictions: Cases to label maps; their references are those of the preprocessed dataset.

    Returns:
        The steps that help, in their order, and the Dice of each structure with them.
    """
    labels = config.label_set
    keys = list(labels.structures)
    foreground = tuple(value for value in labels.values if value not in (0, labels.ignore))
    before, (whole,) = _after_steps(config, predictions, (), [(foreground, keys)])
    steps: tuple[Step, ...] = ()
    scores = before
    rises = _rises(_mean(whole), _mean(before))
    if rises and not any(_rises(before[key], whole[key]) for key in keys):
        steps, scores = (foreground,), whole
    if len(keys) == 1:
        return steps, scores
    each = [(labels.structures[key].values, [key]) for key in keys]
    rounds = [[item] for item in each] if labels.has_regions else [each]
    for tried in rounds:
        present, results = _after_steps(config, predictions, steps, tried)
        helping = [
            (step, own)
            for (step, (key,)), own in zip(tried, results, strict=True)
            if _rises(own[key], present[key])
        ]
        steps += tuple(step for step, _ in helping)
        scores = dict(present)
        for _, own in helping:
            scores |= own
    if labels.has_regions:  # a step for one may have changed another
        scores, _ = _after_steps(config, predictions, steps, [])
    return steps, scores


# --- how ---


def _validated(config: TaskConfig, name: str, folds: Sequence[int]) -> dict[str, Path]:
    """The validation predictions of all folds of a configuration; each is of its checkpoint."""
    found: dict[str, Path] = {}
    for fold in folds:
        each = config.of(configuration=name, fold=fold)
        split, inputs = split_of(each), validation_inputs(each)
        folder = each.fold_folder() / "validation"
        cases = [] if isinstance(split, str) else split.val
        done = [case for case in cases if Manifest(folder, case).is_done(inputs)]
        if len(cases) - len(done) > config.max_failed_cases or not done:
            raise UserError(
                f"fold {fold} of {name} is not validated with its final checkpoint: "
                f"{remedy(config, [each])}"
            )
        found |= {case: folder / f"{case}{ENDING}" for case in done}
    return found


def _of_pair(
    config: TaskConfig, pair: tuple[str, str], cases: Mapping[str, Path]
) -> dict[str, Path]:
    paths = {case: pair_folder(config, pair) / f"{case}{ENDING}" for case in cases}
    return {case: path for case, path in paths.items() if path.is_file()}


def _choose(
    config: TaskConfig,
    candidates: Mapping[tuple[str, ...], Mapping[str, Path]],
    folds: Sequence[int],
) -> Choice:
    scores = {}
    for number, (names, paths) in enumerate(candidates.items(), 1):
        scores[names], _ = _after_steps(config, paths, (), [])
        dice = _mean(scores[names])
        shown = "undefined" if dice is None else f"{dice:.4f}"
        progress(f"{' + '.join(names)}: mean Dice {shown}", number, len(candidates))
    best = max(scores, key=lambda names: _order(_mean(scores[names])))  # the first of level ones
    steps, after = determine_postprocessing(config, candidates[best])
    titles = config.label_set.names
    progress(
        f"{' + '.join(best)} is the best; the largest component alone is kept of "
        + (", ".join(" + ".join(map(str, step)) for step in steps) or "nothing")
    )
    return Choice(
        configurations=best,
        folds=tuple(folds),
        postprocessing=steps,
        dice=_mean(after),
        structures={titles[key]: value for key, value in after.items()},
        candidates=[
            {
                "configurations": list(names),
                "dice": _mean(own),
                "structures": {titles[key]: value for key, value in own.items()},
            }
            for names, own in scores.items()
        ],
    )


def _after_steps(
    config: TaskConfig,
    predictions: Mapping[str, Path],
    steps: Sequence[Step],
    tried: Sequence[tuple[Step, Sequence[str]]],
) -> tuple[Scores, list[Scores]]:
    """Mean Dice over the cases with some steps, and with one more; each case is read once.

    Args:
        config: The task's config.
        predictions: Cases to label maps.
        steps: What is done in any case.
        tried: Further steps, each by itself, and the structures to measure after it.

    Returns:
        The Dice of all structures, and those that each further step gives.
    """
    keys = list(config.label_set.structures)
    without: list[Scores] = []
    after: list[list[Scores]] = [[] for _ in tried]
    for case, path in predictions.items():
        reference = read_label_map(config.preprocessed_folder / "gt_segmentations" / path.name)
        prediction = read_label_map(path)
        check_same_grid(reference, prediction)
        labels = keep_largest(prediction.array, steps)
        without.append(_dice(config, labels, reference.array, keys))
        for results, (step, wanted) in zip(after, tried, strict=True):
            changed = keep_largest(labels, [step])
            results.append(_dice(config, changed, reference.array, wanted))
        progress(f"{case} measured", len(without), len(predictions))
    return _means(without, keys), [
        _means(results, wanted) for results, (_, wanted) in zip(after, tried, strict=True)
    ]


def _dice(
    config: TaskConfig,
    prediction: NDArray[np.integer],
    truth: NDArray[np.integer],
    keys: Sequence[str],
) -> Scores:
    labels = config.label_set
    counted = True if labels.ignore is None else truth != labels.ignore
    return {
        key: overlap(
            np.isin(prediction, labels.structures[key].values) & counted,
            np.isin(truth, labels.structures[key].values) & counted,
            truth.size,
        )["Dice"]
        for key in keys
    }


def _means(cases: Sequence[Scores], keys: Sequence[str]) -> Scores:
    return {
        key: mean_of_defined(case[key] for case in cases if case[key] is not None) for key in keys
    }


def _mean(scores: Scores) -> float | None:
    return None if None in scores.values() else mean_of_defined(scores.values())


def _order(dice: float | None) -> float:
    return -1.0 if dice is None else dice


def _rises(after: float | None, before: float | None) -> bool:
    return after is not None and before is not None and after > before
