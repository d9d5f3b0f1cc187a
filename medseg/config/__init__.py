"""The task's config: one YAML file that describes the data, the labels, nnU-Net and the bundle.

* :func:`load_config` reads it, for the fold that it names or for another; every path, and every
  function that is given the config, follows from that fold. :func:`fold_stage` frames a stage.
* :class:`Labels` is what the labels mean: to nnU-Net, in a label map, in a summary.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
