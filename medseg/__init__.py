"""kfp-medseg: the life of a medical-image segmentation model as Kubeflow Pipelines components."""

__version__ = "0.1.0"
