"""Packages whose names are what their modules are named after, found by the folder."""

from __future__ import annotations

import importlib
import sys
from pkgutil import iter_modules
from types import ModuleType
from typing import Any


class _Folder(ModuleType):
    """A package: ``package.train`` is what ``train.py`` calls ``train``, never the module."""

    __all__: list[str]

    def __getattr__(self, name: str) -> Any:
        if name not in self.__all__:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        importlib.import_module(f"{self.__name__}.{name}")
        return self.__dict__[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__all__ and isinstance(value, ModuleType):
            value = getattr(value, name)  # what the import system binds is the module
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return [*self.__dict__, *self.__all__]


def discover(package: str) -> list[str]:
    """Makes each module of a package stand for its namesake, loaded when it is asked for.

    However a module was imported before, ``from package import name`` then gives the object.

    Args:
        package: The package's name, as its ``__init__`` knows it.

    Returns:
        The names, for the package's ``__all__``.
    """
    module = sys.modules[package]
    names = sorted(each.name for each in iter_modules(module.__path__))
    module.__dict__["__all__"] = names
    module.__class__ = _Folder
    return names
