"""Compositions of components: one pipeline a module, in the module of its name."""

from typing import TYPE_CHECKING

from medseg.kubeflow.discovery import discover

if TYPE_CHECKING:
    from kfp.dsl.base_component import BaseComponent

    def __getattr__(name: str) -> BaseComponent: ...


__all__ = discover(__name__)
