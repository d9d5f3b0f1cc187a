"""The task's config: one YAML file that describes the data, the labels, nnU-Net and the bundle."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
