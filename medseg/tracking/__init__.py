"""MLflow: one run for each fold of a task, continued by every stage that works on the fold.

:func:`open_run` gives a :class:`Tracker`. Without a tracking server the store is embedded in the
data root (``mlflow.db`` and ``mlartifacts``); ``mlflow ui --backend-store-uri
sqlite:///<root>/mlflow.db`` shows it. A server that is away never stops a stage: values wait and
are sent later.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
