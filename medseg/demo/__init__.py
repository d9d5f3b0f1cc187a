"""The demo: synthetic CT cases, a config for a short training on them, and the walk through both.

* :func:`generate_phantoms` writes a dataset in the Decathlon layout; no patient was imaged for it.
* :func:`write_demo_config` writes a config for any dataset of that layout.
* :mod:`medseg.demo.walkthrough` says which pipelines the demo runs on them.
"""

from medseg.demo.config import demo_config, write_demo_config
from medseg.demo.phantoms import generate_phantoms

__all__ = ["demo_config", "generate_phantoms", "write_demo_config"]
