"""nnU-Net's trainer classes by their names."""

from __future__ import annotations

import importlib
import pkgutil
from contextlib import suppress
from typing import Any

from medseg.project import UserError, hint


def find_trainer_class(name: str) -> Any:
    """nnU-Net's trainer class of that name, from its own tree of trainers.

    Other than nnU-Net's ``recursive_find_python_class`` it passes over modules that cannot be
    imported: one of them needs torchvision, which not every build of torch has a match for.

    Raises:
        UserError: nnU-Net has none; the message names the nearest.
    """
    import nnunetv2.training.nnUNetTrainer as package  # noqa: N813
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    if name == nnUNetTrainer.__name__:
        return nnUNetTrainer
    prefix = f"{package.__name__}."
    for module in pkgutil.walk_packages(package.__path__, prefix, onerror=lambda _name: None):
        with suppress(Exception):
            importlib.import_module(module.name)  # noqa: TID251 - of nnU-Net
    found = {nnUNetTrainer.__name__: nnUNetTrainer}
    classes = [nnUNetTrainer]
    while classes:
        below = [
            each
            for each in classes.pop().__subclasses__()
            if not each.__module__.startswith("medseg.")
        ]
        classes += below
        found.update((each.__name__, each) for each in below)
    if name in found:
        return found[name]
    raise UserError(
        f"trainer_class_name: nnU-Net has no trainer {name!r}{hint(name, sorted(found))}."
    )
