"""Is this site ready? What a cluster and its servers must give, looked at one by one.

Each look tells rows of one table: what it is about, ``ok``, ``warning`` or ``failed``, what was
found, and what to do. A look never ends the others: an error is a row. Nothing is written but on
the volume and in MLflow, unless the person asks for it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
