"""Images apart from where they come from: volumes, NIfTI files, grids.

* :class:`Volume` is an image or label map with its affine.
* :func:`read_nifti`, :func:`read_label_map` and :func:`write_nifti` are the only ways by which this
  project reads and writes NIfTI; :func:`is_nifti`, :func:`stem` and ``ENDING`` are all that knows
  the files' names.
* :func:`check_same_grid` (or :func:`same_grid`) says when two volumes have the same voxels,
  :func:`resampled_onto` makes it so.
* :func:`to_zyx` and :func:`from_zyx` turn arrays into nnU-Net's order and back.

Conventions: arrays are indexed ``[i, j, k]`` as in NIfTI; affines map such an index to millimetres
in **RAS**.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
