"""Kubeflow Pipelines: the platform's settings, compiling, and running compiled YAML.

``settings`` and ``platform`` say where stages run; ``compiled`` writes and reads the YAML;
``local`` runs it on this machine.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
