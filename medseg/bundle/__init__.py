"""The MONAI bundle: layout, metadata, checkpoints, TorchScript, and inference from that.

* :func:`prepare_bundle` lays out the bundle: metadata, inference configuration, documentation.
* :func:`export_checkpoint` brings a trained fold into it.
* :func:`convert_pt_to_ts` packages a fold as one ``model.ts``, checked against the original.
* :func:`segment` segments images with such a file; it needs nothing else of the bundle.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medseg.bundle.checkpoints import export_checkpoint
    from medseg.bundle.layout import prepare_bundle
    from medseg.bundle.segmentation import segment
    from medseg.bundle.torchscript import convert_pt_to_ts

_HOME = {
    "convert_pt_to_ts": "torchscript",
    "export_checkpoint": "checkpoints",
    "prepare_bundle": "layout",
    "segment": "segmentation",
}

__all__ = ["convert_pt_to_ts", "export_checkpoint", "prepare_bundle", "segment"]


def __getattr__(name: str) -> Any:  # PEP 562: each function's imports load with its first use
    if name in _HOME:
        return getattr(import_module(f"medseg.bundle.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
