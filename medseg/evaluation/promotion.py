"""Retraining and promotion: whether to train again, and whether the new model is the better one.

The present model, the one to use, is ``<bundle>/models/model.ts``; a newly packaged
``models/fold_F/model.ts`` is a candidate until it is promoted. ``models/promotions.json`` keeps
every judgement with its numbers; the last one says which cases training has seen.
"""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medseg.bundle import ensemble_file, model_file, present_model
from medseg.bundle.paths import promotions_file
from medseg.config import FROM_A_MODEL, TaskConfig
from medseg.dataset import case_hashes, channel_names, files_of
from medseg.evaluation.held_back import measure_model, test_folder
from medseg.evaluation.summary import case_of, of_cases
from medseg.nnunet import Summary, TrainedFold
from medseg.nnunet.choice import read_choice
from medseg.project import (
    Manifest,
    UserError,
    atomic_file,
    file_hash,
    fingerprint,
    progress,
    read_json,
    result,
    write_json,
)
from medseg.tracking import register

_NOT_TRAINED = {
    *("data_dir", "output_data_dir", "nnunet_root_dir", "bundle_config"),
    *("concat_modalities_flag", "label_dict", "max_failed_cases", "save_every", "device"),
    *("checkpoint_minutes", "num_processes", "continue_training", "run_validation_only"),
}
"""Fields of the config that say where and how, but not what is trained; the content of ``data_dir``
counts case by case."""


def decide_retraining(config: TaskConfig, min_new_cases: int = 1) -> dict[str, Any]:
    """Decides whether enough has changed since the last model was judged to train again.

    A case is new if the training of the last judged model was not given it as it is now. A config
    that would train something else counts as a reason of its own, as does a training that no
    judgement has followed yet.

    Args:
        config: The task's config.
        min_new_cases: New training cases that it takes; 0 retrains always.

    Returns:
        ``retrain``, ``reason``, ``new_cases``, ``known_cases`` (numbers), ``min_new_cases``.

    Raises:
        UserError: ``min_new_cases`` is negative, or ``data_dir`` cannot be read.
    """
    if min_new_cases < 0:
        raise UserError(f"min_new_cases is {min_new_cases}: give 0 or more.")
    hashes = case_hashes(config)
    last = (read_promotions(config) or [{}])[-1]
    seen = last.get("cases", {})
    new = [case for case, digest in hashes.items() if seen.get(case) != digest]
    if not last:
        retrain, reason = True, "no model has been judged yet"
    elif last["config"] != _config_hash(config):
        retrain, reason = True, "the config has changed"
    else:
        retrain = len(new) >= min_new_cases
        reason = f"{len(new)} new cases, {min_new_cases} needed"
    progress(f"{'training' if retrain else 'nothing to train'}: {reason}")
    return {
        "retrain": retrain,
        "reason": reason,
        "new_cases": len(new),
        "known_cases": len(hashes) - len(new),
        "min_new_cases": min_new_cases,
    }


def promote(config: TaskConfig, *, ensemble: bool = False) -> dict[str, Any]:
    """Makes the packaged model of the config's fold the present one, unless it is worse.

    Both are measured on the config's ``test_cases``; the candidate is promoted if its mean
    foreground Dice, over the cases that both could segment, is at least that of the present model,
    and if it fails no case that the present model segments. Without a present model it always is;
    without test cases no present model is replaced.

    The judgement is written before the model is copied: a stage that is killed in between copies
    it when it runs again. A promoted model becomes ``models:/<experiment_name>@champion`` in
    MLflow's registry (:func:`~medseg.tracking.register`).

    Args:
        config: The task's config.
        ensemble: The candidate is the model of a cross-validation, not that of the fold.

    Returns:
        The judgement, as ``models/promotions.json`` keeps it: ``date``, ``promoted``, ``reason``,
        ``candidate`` and ``present`` (``sha256`` and mean foreground ``Dice``), ``test_set`` and
        ``config`` (hashes), ``cases`` (training case to hash).

    Raises:
        UserError: The candidate is not packaged, or was packaged anew while it was judged.
        CasesFailedError: More test cases failed than ``max_failed_cases``.
    """
    candidate = ensemble_file(config) if ensemble else model_file(config)
    present = present_model(config)
    if not candidate.is_file():
        raise UserError(
            f"the packaged model {candidate} does not exist: run convert_pt_to_ts first."
        )
    digest = file_hash(candidate)
    trained = read_choice(config).first(config) if ensemble else config
    basis = {
        "config": _config_hash(config),
        "cases": TrainedFold(trained).cases,
        "test_set": _test_hash(config),
    }
    history = read_promotions(config)
    last = history[-1] if history else {}
    if basis.items() <= last.items() and last["candidate"]["sha256"] == digest:
        progress(f"judged before: {last['reason']}")
        _publish(config, history)
        return last
    # Kept until all is done: after a kill the candidate may already be the present model.
    pending, inputs = Manifest(present.parent, "judgement"), fingerprint(basis, [candidate])
    judgement = pending.result(inputs)
    if judgement is None:
        judgement = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            **basis,
            **_judge(config, candidate, digest, present, test_folder(config, ensemble=ensemble)),
        }
        if file_hash(candidate) != digest:
            raise _changed(candidate)
        pending.record(inputs, [], judgement)
    if judgement["promoted"] and _present_hash(present) != digest:
        with atomic_file(present) as temporary:
            shutil.copyfile(candidate, temporary)
            if file_hash(temporary) != digest:
                raise _changed(candidate)
    write_json(promotions_file(config), [*history, judgement])
    pending.forget()
    progress(judgement["reason"])
    _publish(config, [*history, judgement])
    return judgement


def _publish(config: TaskConfig, history: list[dict[str, Any]]) -> None:
    """Names the present model, and sees to it that it is the registry's champion.

    Args:
        config: The task's config.
        history: Every judgement, the present model's among them.
    """
    present = present_model(config)
    digest = _present_hash(present)
    if not digest:
        return
    result("promoted model", present)
    promoted = [
        each for each in history if each["promoted"] and each["candidate"]["sha256"] == digest
    ]
    if not promoted:  # put there by hand
        return
    judgement = promoted[-1]
    dice = judgement["candidate"].get("Dice")
    known = {
        "task": config.experiment_name,
        "configuration": config.configuration,
        "labels": ", ".join(config.label_set.per_class),
        "channels": ", ".join(channel_names(config)),
        "dataset_hash": fingerprint(judgement["cases"]),
        "test_set_hash": judgement["test_set"],
        "config_hash": judgement["config"],
        "training_cases": len(judgement["cases"]),
        "promoted": judgement["date"],
        "reason": judgement["reason"],
        **({} if dice is None else {"test_Dice": f"{dice:.4f}"}),
    }
    register(config, present, {f"medseg.{key}": str(value) for key, value in known.items()})


def read_promotions(config: TaskConfig) -> list[dict[str, Any]]:
    """Every judgement so far, the oldest first.

    Raises:
        UserError: The record is damaged.
    """
    path = promotions_file(config)
    history: list[Any] = read_json(path, [], remedy="Restore it, or remove it to judge anew.")
    parts = {"candidate", "config", "cases", "reason"}
    if not all(isinstance(entry, dict) and parts <= entry.keys() for entry in history):
        raise UserError(
            f"{path} is not the record of promotions: restore it, or remove it to judge anew."
        )
    return history


def promotion_measures(judgement: dict[str, Any]) -> dict[str, float]:
    """A judgement as numbers: ``promoted`` (1 or 0), and the mean Dice of each model measured."""
    measures = {"promoted": float(judgement["promoted"])}
    for name in ("candidate", "present"):
        dice = (judgement[name] or {}).get("Dice")
        if dice is not None:
            measures[f"{name}_Dice"] = dice
    return measures


def describe_promotion(judgement: dict[str, Any]) -> str:
    """A judgement as Markdown, for people."""

    def row(name: str) -> str:
        model = judgement.get(name) or {}
        dice = model.get("Dice")
        shown = "–" if dice is None else f"{dice:.4f}"
        return f"| {name} | {shown} | `{model.get('sha256', '–')[:12]}` |"

    verdict = "promoted" if judgement["promoted"] else "not promoted"
    return (
        f"**{verdict}**: {judgement['reason']}\n\n"
        "| model | mean Dice on the test set | SHA-256 |\n|---|---|---|\n"
        f"{row('candidate')}\n{row('present')}\n"
    )


def _judge(
    config: TaskConfig, candidate: Path, digest: str, present: Path, folder: Path
) -> dict[str, Any]:
    scores: dict[str, Any] = {"candidate": {"sha256": digest}, "present": None}
    new: Summary = {}
    if config.test_cases:
        new, _ = measure_model(config, candidate, folder)
        scores["candidate"]["Dice"] = _dice(new)
    before = _present_hash(present)
    if not before:
        return {**scores, "promoted": True, "reason": "there was no model before"}
    scores["present"] = {"sha256": before}
    if before == digest:
        scores["present"] = dict(scores["candidate"])
        return {**scores, "promoted": True, "reason": "it is the present model already"}
    if not config.test_cases:
        reason = "nothing to compare on: name held-back cases in test_cases of the config"
        return {**scores, "promoted": False, "reason": reason}
    old, _ = measure_model(config, present, config.results_folder / "present_model")
    cases = {name: _cases(summary) for name, summary in (("new", new), ("old", old))}
    lost = sorted(cases["old"] - cases["new"])
    if lost:
        scores["present"]["Dice"] = _dice(old)
        reason = f"it fails on {', '.join(lost)}, which the present model can segment"
        return {**scores, "promoted": False, "reason": reason}
    both = (cases["old"] & cases["new"]) or cases["new"]
    for name, summary in (("candidate", new), ("present", old)):
        scores[name]["Dice"] = _dice(of_cases(summary, both))
    mine, theirs = scores["candidate"]["Dice"], scores["present"]["Dice"]
    promoted = mine is not None and (theirs is None or mine >= theirs)
    compared = " against ".join("undefined" if v is None else f"{v:.4f}" for v in (mine, theirs))
    reason = f"mean Dice {compared} of the present model on {len(both)} test cases"
    return {**scores, "promoted": promoted, "reason": reason}


def _cases(summary: Summary) -> set[str]:
    return {case_of(entry) for entry in summary["metric_per_case"]}


def _dice(summary: Summary) -> float | None:
    value = summary["foreground_mean"].get("Dice")
    return None if value is None else float(value)


def _present_hash(present: Path) -> str:
    return file_hash(present) if present.is_file() else ""


def _changed(candidate: Path) -> UserError:
    return UserError(f"{candidate} was packaged anew while it was judged: run promote again.")


def _test_hash(config: TaskConfig) -> str:
    """Over images and labels of the test cases, each by its case's name."""
    cases = {name: files_of(config, name) for name in config.test_cases}
    return fingerprint(
        {
            name: fingerprint({}, [p for p in (*case.images, case.label) if p.is_file()])
            for name, case in cases.items()
        }
    )


def _config_hash(config: TaskConfig) -> str:
    unused = set() if config.pretrained_weights else set(FROM_A_MODEL)
    return fingerprint(config.model_dump(mode="json", exclude=_NOT_TRAINED | unused))
