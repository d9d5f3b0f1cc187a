"""The demo: synthetic CT cases, a config for a short training on them, and the walk through both.

* :func:`generate_phantoms` writes a dataset in the Decathlon layout; no patient was imaged for it.
* :func:`write_demo_config` writes a config for any dataset of that layout.
* :mod:`medseg.demo.walkthrough` says which pipelines the demo runs on them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
