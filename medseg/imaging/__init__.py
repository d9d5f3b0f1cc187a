"""Images apart from where they come from: volumes, NIfTI files, grids.

* :class:`Volume` is an image or label map with its affine.
* :func:`read_nifti` and :func:`write_nifti` read and write one.

Conventions: arrays are indexed ``[i, j, k]`` as in NIfTI; affines map such an index to millimetres
in **RAS**.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
