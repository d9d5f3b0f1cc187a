"""Retraining and promotion: whether to train again, and whether the new model is the better one.

The present model, the one to use, is ``<bundle>/models/model.ts``; a newly packaged
``models/fold_F/model.ts`` is a candidate until it is promoted. ``models/promotions.json`` keeps
every judgement with its numbers; the last one says which cases training has seen.
"""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medseg.config import TaskConfig
from medseg.evaluation.held_back import case_files, measure_model
from medseg.evaluation.summary import Summary
from medseg.project import (
    Manifest,
    UserError,
    atomic_file,
    fingerprint,
    progress,
    result,
    write_json,
)


def decide_retraining(config: TaskConfig, min_new_cases: int = 1) -> dict[str, Any]:
    """Decides whether enough has changed since the last model was judged to train again.

    A case is new if the last judged model was not trained on it as it is now. A changed config
    counts as a reason of its own, as does a training that no judgement has followed yet.

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
    hashes = _training_hashes(config)
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


def promote(config: TaskConfig) -> dict[str, Any]:
    """Makes the packaged model of the config's fold the present one, unless it is worse.

    Both are measured on the config's ``test_cases``; the candidate is promoted if its mean
    foreground Dice is at least that of the present model. Without a present model it always is;
    without test cases no present model is replaced.

    Args:
        config: The task's config.

    Returns:
        The judgement, as ``models/promotions.json`` keeps it: ``date``, ``promoted``, ``reason``,
        ``candidate`` and ``present`` (``sha256`` and mean foreground ``Dice``), ``test_set`` and
        ``config`` (hashes), ``cases`` (training case to hash).

    Raises:
        UserError: The candidate is not packaged.
        CasesFailedError: More test cases failed than ``max_failed_cases``.
    """
    candidate, present = config.model_file, present_model(config)
    if not candidate.is_file():
        raise UserError(
            f"the packaged model {candidate} does not exist: run convert_pt_to_ts first."
        )
    basis = {
        "config": _config_hash(config),
        "cases": _training_hashes(config),
        "test_set": _test_hash(config),
    }
    digest = fingerprint([candidate])
    history = read_promotions(config)
    if history:
        last = history[-1]
        if last["candidate"]["sha256"] == digest and basis.items() <= last.items():
            progress(f"judged before: {last['reason']}")
            result("promoted model", present)
            return last
    # Kept until all is done: after a kill the candidate may already be the present model.
    pending, inputs = Manifest(present.parent, "judgement"), fingerprint([candidate], basis)
    judgement: dict[str, Any] = {}
    if pending.is_done(inputs):
        judgement = pending.read()["result"]
    else:
        judgement = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            **basis,
            **_judge(config, candidate, present),
        }
        judgement["candidate"]["sha256"] = digest
        pending.record(inputs, [], judgement)
    if judgement["promoted"]:
        with atomic_file(present) as temporary:
            shutil.copyfile(candidate, temporary)
    write_json(_history_file(config), [*history, judgement])
    pending.path.unlink()
    progress(judgement["reason"])
    result("promoted model", present)
    return judgement


def present_model(config: TaskConfig) -> Path:
    """The model to use: the last one that was promoted."""
    return config.bundle_folder / "models" / "model.ts"


def read_promotions(config: TaskConfig) -> list[dict[str, Any]]:
    """Every judgement so far, the oldest first.

    Raises:
        UserError: The record is damaged.
    """
    path = _history_file(config)
    if not path.is_file():
        return []
    try:
        return list(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise UserError(
            f"{path} is not the record of promotions: restore it, or remove it to judge anew."
        ) from None


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


def _judge(config: TaskConfig, candidate: Path, present: Path) -> dict[str, Any]:
    scores: dict[str, Any] = {"candidate": {}, "present": None}
    if config.test_cases:
        summary, _ = measure_model(config, candidate, config.fold_folder() / "test")
        scores["candidate"]["Dice"] = _dice(summary)
    if not present.is_file():
        return {**scores, "promoted": True, "reason": "there was no model before"}
    scores["present"] = {"sha256": fingerprint([present])}
    if not config.test_cases:
        reason = "nothing to compare on: name held-back cases in test_cases of the config"
        return {**scores, "promoted": False, "reason": reason}
    summary, _ = measure_model(config, present, config.results_folder / "present_model")
    new, old = scores["candidate"]["Dice"], _dice(summary)
    scores["present"]["Dice"] = old
    promoted = new is not None and (old is None or new >= old)
    shown = " against ".join("undefined" if v is None else f"{v:.4f}" for v in (new, old))
    reason = f"mean Dice {shown} of the present model on {len(config.test_cases)} test cases"
    return {**scores, "promoted": promoted, "reason": reason}


def _dice(summary: Summary) -> float | None:
    value = summary["foreground_mean"]["Dice"]
    return None if value is None else float(value)


def _training_hashes(config: TaskConfig) -> dict[str, str]:
    from medseg.nnunet.dataset import training_cases

    return {case: fingerprint(files) for case, files in training_cases(config).items()}


def _test_hash(config: TaskConfig) -> str:
    files = [path for case in config.test_cases for path in (case_files(config, case)[1],)]
    return fingerprint(path for path in files if path.is_file())


def _config_hash(config: TaskConfig) -> str:
    return fingerprint([], config.model_dump(mode="json"))


def _history_file(config: TaskConfig) -> Path:
    return config.bundle_folder / "models" / "promotions.json"
