"""Where a pipeline's stages run: the platform parameters, and what each stage asks for."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from kfp import dsl, kubernetes
from kfp.dsl import pipeline_context
from kfp.dsl.base_component import BaseComponent
from kfp.dsl.pipeline_task import PipelineTask
from kfp.dsl.structures import ResourceSpec

from medseg.kubeflow.settings import PlatformSettings, load_settings
from medseg.project import MOUNT_PATH, UserError
from medseg.project.stages import RUN_ID_VARIABLE


@dataclass(frozen=True)
class Needs:
    """What a stage asks of the cluster beside the volume.

    Attributes:
        gpu: It computes on a GPU where there is one.
        shared_memory: Its worker processes exchange arrays through ``/dev/shm``.
        secrets: The Secrets it reads, by the first word of their parameter (``mlflow``, …).
        image: The parameter that names its image.
    """

    gpu: bool = False
    shared_memory: bool = False
    secrets: tuple[str, ...] = ()
    image: str = "image"

    @property
    def variables(self) -> list[str]:
        """The environment variables that its Secrets become."""
        return [name for kind in self.secrets for name in SECRET_KEYS[kind].values()]

    @property
    def network(self) -> bool:
        """Whether it talks to a server; all that do may need a Secret for it."""
        return bool(self.secrets)


IMAGES = {"image": "runtime", "builder_image": "builder"}
"""Parameters that name images, and the images of the project that are their defaults."""

NEEDS: dict[str, Needs] = {
    "nifti-to-dicom": Needs(secrets=("dicomweb",)),
    "list-studies": Needs(secrets=("dicomweb",)),
    "convert-studies": Needs(secrets=("dicomweb",)),
    "plan-and-preprocess": Needs(shared_memory=True),
    "train": Needs(gpu=True, shared_memory=True, secrets=("mlflow", "s3")),
    "validate": Needs(gpu=True, shared_memory=True, secrets=("mlflow", "s3")),
    "segment": Needs(gpu=True, shared_memory=True),
    "test-model": Needs(gpu=True, shared_memory=True, secrets=("mlflow", "s3")),
    "promote": Needs(gpu=True, shared_memory=True),
    "report": Needs(secrets=("mlflow", "s3")),
    "notify": Needs(secrets=("notify",)),
    "docker-build": Needs(secrets=("registry",), image="builder_image"),
    "inference": Needs(gpu=True, shared_memory=True),
}
"""Stages (by component name) that need more than the volume."""

SECRET_KEYS: dict[str, dict[str, str]] = {
    "dicomweb": {
        "username": "MEDSEG_DICOMWEB_USERNAME",
        "password": "MEDSEG_DICOMWEB_PASSWORD",
        "token": "MEDSEG_DICOMWEB_TOKEN",
    },
    "mlflow": {
        "username": "MLFLOW_TRACKING_USERNAME",
        "password": "MLFLOW_TRACKING_PASSWORD",
        "token": "MLFLOW_TRACKING_TOKEN",
    },
    "s3": {
        "access_key": "AWS_ACCESS_KEY_ID",
        "secret_key": "AWS_SECRET_ACCESS_KEY",
        "endpoint": "MLFLOW_S3_ENDPOINT_URL",
    },
    "notify": {"url": "MEDSEG_WEBHOOK_URL"},
    "registry": {".dockerconfigjson": "MEDSEG_REGISTRY_AUTH"},
}
"""The keys of each Secret and the environment variables that they become."""

_ARGS = """pvc_name: Claim of the project volume, mounted at the data root.
image: Image that the stages run in.
cpu: CPU limit of a stage, such as 2 or 500m.
memory: Memory limit of a stage, such as 8Gi.
gpu_count: GPUs of a stage that uses one ({gpu}).
gpu_type: Resource name of the GPUs, such as nvidia.com/gpu.
node_selector: Labels that a node must have to run the stages.
"""

_GROUPS = {
    "for-loop": "dsl.ParallelFor",
    "condition": "dsl.If",
    "exit-handler": "dsl.ExitHandler",
}

_current: ContextVar[dict[str, Any]] = ContextVar("platform arguments")


def platform_pipeline(
    *, name: str, display_name: str = "", secrets: tuple[str, ...] = (), gpu: str = ""
) -> Callable[[Callable[..., Any]], BaseComponent]:
    """Makes a KFP pipeline that takes the platform parameters beside its own.

    Every task in it gets the volume, the image, limits, Secrets and the site's settings; a task
    that is itself a pipeline passes them on (see :func:`platform_arguments`). What a task has
    already stays: an image that is not the project's own, CPU, memory, GPUs, retries.

    Args:
        name: The pipeline's name inside KFP.
        display_name: The name that the UI shows.
        secrets: The Secrets that its stages use, each a parameter ``<name>_secret``.
        gpu: Its stages that use a GPU, for the parameter's description.

    Raises:
        UserError: A stage reads a Secret that ``secrets`` does not name, or stands directly inside
            a loop, a condition or an exit handler.
    """

    def decorate(function: Callable[..., Any]) -> BaseComponent:
        settings = load_settings()
        defaults = settings.parameters()
        secret_names = {f"{kind}_secret": getattr(settings, f"{kind}_secret") for kind in secrets}
        signature = inspect.signature(function)
        # a pipeline may take one of these as a parameter of its own, such as a required image
        own = {key: defaults.pop(key) for key in list(defaults) if key in signature.parameters}
        extra = [
            inspect.Parameter(
                key,
                inspect.Parameter.KEYWORD_ONLY,
                default=value,
                annotation=dict if isinstance(value, dict) else str,
            )
            for key, value in {**defaults, **secret_names}.items()
        ]

        @functools.wraps(function)
        def body(*args: Any, **kwargs: Any) -> Any:
            bound = dict(zip(body.__signature__.parameters, args, strict=False)) | kwargs  # type: ignore[attr-defined]
            platform = dict(bound)
            token = _current.set({item.name: bound.pop(item.name) for item in extra})
            try:
                outputs = function(**bound)
                pipeline = pipeline_context.Pipeline.get_default_pipeline()
                for task in pipeline.tasks.values():
                    task.set_caching_options(load_settings().caching)
                    if task.component_spec.implementation.graph is None:
                        _check_group(name, task, pipeline.groups[0])
                        place(task, platform)
            finally:
                _current.reset(token)
            return outputs

        body.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*signature.parameters.values(), *extra]
        )
        lines = [
            line
            for line in _ARGS.format(gpu=gpu or "no stage of this pipeline does").splitlines()
            if line.partition(":")[0] not in own
        ]
        lines += [
            f"{key}: {PlatformSettings.model_fields[key].description}." for key in secret_names
        ]
        doc = inspect.getdoc(function) or ""
        body.__doc__ = doc.rstrip() + "\n" + "".join(f"    {line}\n" for line in lines)
        return dsl.pipeline(name=name, display_name=display_name or None)(body)

    return decorate


def platform_arguments(*secrets: str) -> dict[str, Any]:
    """The platform parameters of the pipeline under construction, to pass to a nested one.

    A nested pipeline is needed as the body of a loop, a condition or an exit handler: KFP 2.17 does
    not pass a parameter into those that is used there in a resource setting or as a claim's name
    only (kubeflow/pipelines#12617).

    Args:
        secrets: The Secrets that the nested pipeline takes.

    Raises:
        UserError: It is called outside a platform pipeline, or that does not take such a Secret.
    """
    current = _current.get(None)
    if current is None:
        raise UserError("platform_arguments() gives something only inside a platform_pipeline.")
    names = {f"{kind}_secret" for kind in secrets}
    for kind in secrets:
        if f"{kind}_secret" not in current:
            raise UserError(
                f"platform_arguments({kind!r}): the pipeline around it does not take this Secret: "
                f"add {kind!r} to the secrets of its platform_pipeline."
            )
    return {
        key: value for key, value in current.items() if not key.endswith("_secret") or key in names
    }


def place(task: PipelineTask, platform: dict[str, Any]) -> None:
    """Gives one task its place on the cluster, but for what it has already.

    Args:
        task: A task of a component.
        platform: The platform parameters by name.

    Raises:
        UserError: The stage reads a Secret that is no parameter of the pipeline.
    """
    settings = load_settings()
    name = task.component_spec.name
    needs = NEEDS.get(name, Needs())
    stage = settings.stage(name)
    _let_signals_through(task)
    if task.container_spec.image == settings.image(IMAGES[needs.image]) and needs.image in platform:
        task.set_container_image(platform[needs.image])
    given = task.container_spec.resources or ResourceSpec()
    # beside a limit of the task's own ours may be too much; Kubernetes then asks for the limit
    if not (given.cpu_request or given.cpu_limit):
        task.set_cpu_request(stage.cpu_request)
    if not given.cpu_limit:
        task.set_cpu_limit(platform["cpu"])
    if not (given.memory_request or given.memory_limit):
        task.set_memory_request(stage.memory_request)
    if not given.memory_limit:
        task.set_memory_limit(platform["memory"])
    if stage.retries and task._task_spec.retry_policy is None:
        task.set_retry(stage.retries, backoff_duration=settings.retry_backoff)
    if settings.mount_path != str(MOUNT_PATH):
        task.set_env_variable("MEDSEG_DATA_ROOT", settings.mount_path)
    kubernetes.mount_pvc(task, pvc_name=platform["pvc_name"], mount_path=settings.mount_path)
    kubernetes.add_node_selector_json(task, node_selector_json=platform["node_selector"])
    kubernetes.set_timeout(task, stage.time_limit_s)
    kubernetes.set_security_context(task, **settings.security_context.model_dump())
    kubernetes.set_image_pull_policy(task, settings.image_pull_policy)
    kubernetes.use_field_path_as_env(
        task, env_name=RUN_ID_VARIABLE, field_path="metadata.labels['pipeline/runid']"
    )
    if settings.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, settings.image_pull_secrets)
    # /tmp is writable where the image's root is not
    kubernetes.empty_dir_mount(task, volume_name="tmp", mount_path="/tmp")  # noqa: S108
    if needs.shared_memory:
        kubernetes.empty_dir_mount(
            task,
            volume_name="shm",
            mount_path="/dev/shm",  # noqa: S108
            medium="Memory",
            size_limit=stage.shared_memory,
        )
    if needs.gpu and not given.accelerator_count:
        task.set_accelerator_type(platform["gpu_type"]).set_accelerator_limit(platform["gpu_count"])
    # on every stage: the node selector leads them all to the same nodes
    for toleration in settings.tolerations:
        kubernetes.add_toleration(task, **toleration.model_dump(exclude_none=True))
    for kind in needs.secrets:
        secret = platform.get(f"{kind}_secret")
        if secret is None:
            raise UserError(
                f"the stage {name} reads the Secret {kind}: add {kind!r} to the argument secrets "
                "of the platform_pipeline that it stands in."
            )
        kubernetes.use_secret_as_env(
            task,
            secret_name=secret,
            secret_key_to_env=SECRET_KEYS[kind],
            optional=True,
        )


def _check_group(pipeline: str, task: PipelineTask, root: Any) -> None:
    group = task.parent_task_group
    if group is not root:
        kind = _GROUPS.get(group.group_type.value, group.group_type.value)
        raise UserError(
            f"pipeline {pipeline}: {task.name} stands directly inside {kind}, where KFP loses the "
            "platform's parameters: put it into a platform_pipeline of its own, and call that "
            "there with **platform_arguments()."
        )


def _let_signals_through(task: PipelineTask) -> None:
    """Makes Python take the place of the shell that KFP starts it from.

    The shell would die of SIGTERM, and with it the container, before a stage can end cleanly.
    """
    container = task.container_spec
    container.command = [
        part.replace(" python3 -m kfp.dsl.executor_main", " exec python3 -m kfp.dsl.executor_main")
        if isinstance(part, str)
        else part
        for part in container.command or ()
    ]
