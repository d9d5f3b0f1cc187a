"""kfp-medseg: the life of a medical-image segmentation model as Kubeflow Pipelines components.

The rooms, each of which knows only those before it: ``project`` (the data root), ``config`` (the
task), ``imaging`` (volumes), ``dataset`` (cases), ``tracking`` (MLflow), ``dicom``, ``nnunet``,
``demo``, ``bundle`` (the packaged model), ``evaluation``, ``deploy`` (images of a model),
``kubeflow``, ``check`` (is a site ready?), ``cli``. ``docs/architecture.md`` is the map.
"""

import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the folders beside this one, which become packages in it when it is installed
    from typing import Any

    components: Any
    pipelines: Any

__version__ = "0.1.0"

if os.environ.get("_KFP_RUNTIME") == "true":
    # KFP's executor logs from INFO on, and so would every library, into the pod's log and the
    # artifact executor-logs. Ours is the first of a stage's imports, and its lines are prints.
    _root = logging.getLogger()
    _root.setLevel(logging.WARNING)
    for _handler in _root.handlers:  # for loggers that have a level of their own
        _handler.setLevel(logging.WARNING)
