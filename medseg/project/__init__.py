"""The project data root: where files may lie, and how a stage works on them without losing any.

* :class:`DataRoot` resolves a parameter's path and keeps it inside the root.
* :func:`atomic_file`, :func:`atomic_folder` write beside the target and rename;
  :func:`scratch_folder` is for work whose result goes elsewhere.
* :class:`Manifest` remembers what a stage has finished, so that a second run repeats nothing.
* :func:`secret` reads a Secret, and :func:`own_authorities` trusts the site's own certificates.
* :func:`lock` and :func:`stage` frame a stage: one writer at a time, one sentence for an error.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
