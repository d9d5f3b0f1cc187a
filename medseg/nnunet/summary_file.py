"""``summary.json``: what nnU-Net writes about predictions, and what is written in its schema."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from medseg.project import UserError

SUMMARY = "summary.json"

Summary = dict[str, Any]


def read_summary(path: Path) -> Summary:
    """Reads a summary, nnU-Net's own or one of ours (:mod:`medseg.evaluation.summary`).

    Args:
        path: The ``summary.json``.

    Returns:
        Its content, with None in place of NaN: ``metric_per_case``, ``mean``,
        ``foreground_mean``.

    Raises:
        UserError: It is missing or is no summary.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run the stage validate first.") from None
    except ValueError:
        content = None
    kinds = {"metric_per_case": list, "mean": dict, "foreground_mean": dict}
    sound = isinstance(content, dict) and all(
        isinstance(content.get(key), kind) for key, kind in kinds.items()
    )
    if not sound or not all(isinstance(means, dict) for means in content["mean"].values()):
        raise UserError(f"{path} is not a summary of nnU-Net: remove it, then run validate again.")
    summary: Summary = _without_nan(content)
    return summary


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
