"""How a model of MLflow's registry is named. Imports nothing: every ``segment`` asks."""

from __future__ import annotations

from pathlib import Path


def is_registered(model: str | Path) -> bool:
    """Whether a model is named by an address of the registry, ``models:/…``."""
    return str(model).startswith("models:/")
