"""The task's config: one YAML file that describes the data, the labels, nnU-Net and the bundle."""

from medseg.config.task import BundleConfig, TaskConfig, load_config

__all__ = ["BundleConfig", "TaskConfig", "load_config"]
