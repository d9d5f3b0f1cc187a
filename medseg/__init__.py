"""kfp-medseg: the life of a medical-image segmentation model as Kubeflow Pipelines components."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the folders beside this one, which become packages in it when it is installed
    from typing import Any

    components: Any
    pipelines: Any

__version__ = "0.1.0"
