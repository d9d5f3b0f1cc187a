"""NIfTI datasets: how the files of a case are laid out, and a table of their quality."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
