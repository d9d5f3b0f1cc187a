"""From a packaged model to an image that runs anywhere, and running such images.

* :func:`create_docker_context` writes the build contexts of the two inference images.
* :func:`docker_build` adds a context's one layer to its base image and pushes the result, without
  privilege and without unpacking the base.
* :func:`infer` runs an inference image with Docker.
* ``application`` is what such an image runs; ``manifests`` is how it describes itself.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medseg.deploy.build import docker_build
    from medseg.deploy.containers import build_with_docker, infer
    from medseg.deploy.context import create_docker_context, write_context
    from medseg.deploy.task import SegmentationTask, load_segmentation_task

_HOME = {
    "SegmentationTask": "task",
    "build_with_docker": "containers",
    "create_docker_context": "context",
    "docker_build": "build",
    "infer": "containers",
    "load_segmentation_task": "task",
    "write_context": "context",
}

__all__ = [
    "SegmentationTask",
    "build_with_docker",
    "create_docker_context",
    "docker_build",
    "infer",
    "load_segmentation_task",
    "write_context",
]


def __getattr__(name: str) -> Any:  # PEP 562: each function's imports load with its first use
    if name in _HOME:
        return getattr(import_module(f"medseg.deploy.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
