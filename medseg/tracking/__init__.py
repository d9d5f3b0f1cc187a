"""MLflow: one run for each fold of a task, continued by every stage that works on the fold.

:func:`open_run` gives a :class:`Tracker`. Without a tracking server the store is embedded in the
data root (``mlflow.db`` and ``mlartifacts``); ``mlflow ui --backend-store-uri
sqlite:///<root>/mlflow.db`` shows it. A server that is away never stops a stage: values wait and
are sent later.
"""

from medseg.tracking.runs import Tracker, is_behind, open_run
from medseg.tracking.store import masked

__all__ = ["Tracker", "is_behind", "masked", "open_run"]
