"""The contract of each stage: one typed KFP component a module.

A component is loaded when it is asked for: ``from medseg.components import train`` costs one
component beside KFP itself, ``import medseg.components`` nothing.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

__all__ = [
    "collect_dataset",
    "convert_pt_to_ts",
    "convert_studies",
    "create_docker_context",
    "decide_retraining",
    "docker_build",
    "inference",
    "list_studies",
    "nifti_to_dicom",
    "notify",
    "plan_and_preprocess",
    "prepare_bundle",
    "prepare_dataset",
    "promote",
    "report",
    "segment",
    "test_model",
    "train",
    "validate",
]


class _Components(ModuleType):
    """The package, whose names are the components and never the modules that hold them."""

    def __getattr__(self, name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        importlib.import_module(f"{__name__}.{name}")
        return self.__dict__[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in __all__ and isinstance(value, ModuleType):
            value = getattr(value, name)  # what the import system binds is the module
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Components
