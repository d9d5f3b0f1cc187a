"""The contract of each stage: one typed KFP component a module, in the module of its name.

A component is loaded when it is asked for: ``from medseg.components import train`` costs one
component beside KFP itself, ``import medseg.components`` nothing.
"""

from typing import TYPE_CHECKING

from medseg.kubeflow.discovery import discover

if TYPE_CHECKING:
    from kfp.dsl.base_component import BaseComponent

    def __getattr__(name: str) -> BaseComponent: ...


__all__ = discover(__name__)
