from .build import docker_build as docker_build
from .context import create_docker_context as create_docker_context
from .context import write_context as write_context
from .engine import build_with_docker as build_with_docker
from .engine import infer as infer
from .task_file import SegmentationTask as SegmentationTask
from .task_file import load_segmentation_task as load_segmentation_task
