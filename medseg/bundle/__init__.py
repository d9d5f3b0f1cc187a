"""The MONAI bundle: layout, metadata, checkpoints, TorchScript, and inference from that.

* :func:`prepare_bundle` lays out the bundle: metadata, inference configuration, documentation.
* :func:`export_checkpoint` brings a trained fold into it.
* :func:`convert_pt_to_ts` packages a fold as one ``model.ts``, checked against the original.
* :func:`segment` segments images with such a file; it needs nothing else of the bundle.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
