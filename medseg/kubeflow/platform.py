"""Where a pipeline's stages run: the platform parameters, and what each stage asks for."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import PurePosixPath
from typing import Any

from kfp import dsl, kubernetes
from kfp.dsl import pipeline_context
from kfp.dsl.base_component import BaseComponent
from kfp.dsl.pipeline_task import PipelineTask
from kfp.dsl.structures import ComponentSpec, ResourceSpec

from medseg.kubeflow.nesting import merge_wrappers
from medseg.kubeflow.settings import PlatformSettings, StageSettings, load_settings
from medseg.kubeflow.stage import Needs, needs_of, secret_kinds, stage_name
from medseg.project import MOUNT_PATH, UserError, variables

NO_NETWORK = ("io.github.kfp-medseg/network", "none")
"""The label of pods that need no network: a local run gives them none, a site's policy may."""

_GROUPS = {
    "for-loop": "dsl.ParallelFor",
    "condition": "dsl.If",
    "exit-handler": "dsl.ExitHandler",
}

_current: ContextVar[dict[str, Any]] = ContextVar("platform arguments")

_gpu_stages: dict[int, tuple[ComponentSpec, tuple[str, ...]]] = {}
"""The stages of each pipeline that use a GPU, by the identity of its specification."""


def platform_pipeline(
    *, name: str, display_name: str = "", secrets: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], BaseComponent]:
    """Makes a KFP pipeline that takes the platform parameters beside its own.

    Every task in it gets the volume, the image, limits, Secrets and the site's settings; a task
    that is itself a pipeline passes them on (see :func:`platform_arguments`). What a task has
    already stays: an image that is not the project's own, CPU, memory, GPUs, retries.

    Args:
        name: The pipeline's name inside KFP.
        display_name: The name that the UI shows.
        secrets: The kinds of Secret that its stages use, each a parameter ``<kind>_secret``; what
            the site has fixed is a constant in their place.

    Raises:
        UserError: A stage reads a Secret that ``secrets`` does not name, mounts two things of one
            name, stands directly inside a loop, a condition or an exit handler, or asks for more
            than the limit.
    """

    def decorate(function: Callable[..., Any]) -> BaseComponent:
        settings = load_settings()
        defaults = settings.parameters() | {
            row.parameter: getattr(settings, row.parameter) for row in secret_kinds(secrets)
        }
        signature = inspect.signature(function)
        constants = {
            key: value
            for key, value in defaults.items()
            if key in settings.fixed and key not in signature.parameters
        }
        # a pipeline may take one of these as a parameter of its own, such as a required image
        extra = [
            inspect.Parameter(
                key,
                inspect.Parameter.KEYWORD_ONLY,
                default=value,
                annotation=dict if isinstance(value, dict) else str,
            )
            for key, value in defaults.items()
            if key not in signature.parameters and key not in constants
        ]
        gpu_stages: dict[str, None] = {}

        @functools.wraps(function)
        def body(*args: Any, **kwargs: Any) -> Any:
            bound = dict(zip(body.__signature__.parameters, args, strict=False)) | kwargs  # type: ignore[attr-defined]
            platform = bound | constants
            token = _current.set({item.name: bound.pop(item.name) for item in extra})
            try:
                outputs = function(**bound)
                pipeline = pipeline_context.Pipeline.get_default_pipeline()
                for task in pipeline.tasks.values():
                    task.set_caching_options(settings.caching)
                    gpu_stages.update(dict.fromkeys(stages_with_gpu(task.component_spec)))
                    if task.component_spec.implementation.graph is None:
                        _check_group(name, task, pipeline.groups[0])
                        place_task(task, platform)
            finally:
                _current.reset(token)
            return outputs

        body.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*signature.parameters.values(), *extra]
        )
        doc = inspect.getdoc(function) or name
        if "\nArgs:\n" not in doc:
            doc = f"{doc}\n\nArgs:"
        lines = (f"    {item.name}: {description(item.name)}\n" for item in extra)
        body.__doc__ = f"{doc.rstrip()}\n{''.join(lines)}"
        pipeline = dsl.pipeline(name=name, display_name=display_name or None)(body)
        merge_wrappers(pipeline.component_spec.implementation.graph)
        _describe(pipeline.component_spec, tuple(gpu_stages))
        return pipeline

    return decorate


def description(parameter: str) -> str:
    """What a platform parameter means, as a sentence."""
    if parameter == "image":
        return "Image that the stages run in."
    text = str(PlatformSettings.model_fields[parameter].description)
    return f"{text[0].upper()}{text[1:]}."


def stages_with_gpu(spec: ComponentSpec) -> tuple[str, ...]:
    """The stages of a component or a pipeline that use a GPU, by name."""
    if spec.implementation.graph is None:
        return (stage_name(spec),) if needs_of(spec).gpu else ()
    return _gpu_stages[id(spec)][1] if id(spec) in _gpu_stages else ()


def _describe(spec: ComponentSpec, stages: tuple[str, ...]) -> None:
    """Makes each parameter's description a line, and names the stages that use a GPU."""
    _gpu_stages[id(spec)] = (spec, stages)
    # known once all tasks are there, and said where a person reads how many GPUs to ask for
    which = ", ".join(stages) or "no stage of this pipeline does"
    for inputs in (spec.inputs, spec.implementation.graph.root.input_definitions.parameters):
        for name, value in (inputs or {}).items():
            value.description = " ".join((value.description or "").split())
            if name == "gpu_count" and value.description == description(name):
                value.description = f"{value.description[:-1]} ({which})."


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
    fixed = load_settings().fixed
    rows = [row for row in secret_kinds(secrets) if row.parameter not in fixed]
    for row in rows:
        if row.parameter not in current:
            raise UserError(
                f"platform_arguments({row.kind!r}): the pipeline around it does not take this "
                f"Secret: add {row.kind!r} to the secrets of its platform_pipeline."
            )
    others = {row.parameter for row in variables.SECRETS.values() if row not in rows}
    return {key: value for key, value in current.items() if key not in others}


def place_task(task: PipelineTask, platform: dict[str, Any]) -> None:
    """Gives one task its place on the cluster, but for what it has already.

    Args:
        task: A task of a component.
        platform: The platform parameters by name.

    Raises:
        UserError: The stage reads a Secret that is no parameter of the pipeline, or asks for more
            than the limit.
    """
    settings = load_settings()
    needs = needs_of(task.component_spec)
    asked = settings.stage(stage_name(task.component_spec), needs.asks)
    _let_signals_through(task)
    _set_image(task, needs, settings, platform)
    _set_resources(task, needs, asked, platform)
    _set_volumes(task, needs, asked, settings, platform)
    _set_pod(task, needs, asked, settings, platform)
    _set_secrets(task, needs, platform)


def _set_image(
    task: PipelineTask, needs: Needs, settings: PlatformSettings, platform: dict[str, Any]
) -> None:
    is_own = task.container_spec.image == settings.image(needs.image)
    if is_own and needs.image_parameter in platform:
        task.set_container_image(platform[needs.image_parameter])


def _set_resources(
    task: PipelineTask, needs: Needs, asked: StageSettings, platform: dict[str, Any]
) -> None:
    own = task.container_spec.resources or ResourceSpec()
    # beside a limit of the task's own our request may be too much; Kubernetes then asks for the
    # limit
    for present, setter, value in (
        (own.cpu_request or own.cpu_limit, task.set_cpu_request, asked.cpu_request),
        (own.cpu_limit, task.set_cpu_limit, platform["cpu"]),
        (own.memory_request or own.memory_limit, task.set_memory_request, asked.memory_request),
        (own.memory_limit, task.set_memory_limit, platform["memory"]),
    ):
        if not present:
            setter(value)
    if needs.gpu and not own.accelerator_count:
        task.set_accelerator_type(platform["gpu_type"]).set_accelerator_limit(platform["gpu_count"])


def _set_volumes(
    task: PipelineTask,
    needs: Needs,
    asked: StageSettings,
    settings: PlatformSettings,
    platform: dict[str, Any],
) -> None:
    settings.check_mounts(stage_name(task.component_spec), needs.secrets)
    if settings.mount_path != str(MOUNT_PATH):
        task.set_env_variable(variables.DATA_ROOT.name, settings.mount_path)
    kubernetes.mount_pvc(task, pvc_name=platform["pvc_name"], mount_path=settings.mount_path)
    kubernetes.use_config_map_as_volume(
        task,
        config_map_name=platform["ca_config_map"],
        mount_path=str(PurePosixPath(variables.CA_FILE.default).parent),
        optional=True,
    )
    # /tmp is writable where the image's root is not
    kubernetes.empty_dir_mount(task, volume_name="tmp", mount_path="/tmp")  # noqa: S108
    if needs.shared_memory:
        kubernetes.empty_dir_mount(
            task,
            volume_name="shm",
            mount_path="/dev/shm",  # noqa: S108
            medium="Memory",
            size_limit=asked.shared_memory,
        )


def _set_pod(
    task: PipelineTask,
    needs: Needs,
    asked: StageSettings,
    settings: PlatformSettings,
    platform: dict[str, Any],
) -> None:
    if asked.retries and not _has_retry(task):
        task.set_retry(asked.retries, backoff_duration=settings.retry_backoff)
    for name, value in settings.proxies().items():
        task.set_env_variable(name, value)
    selector = platform["node_selector"]
    if isinstance(selector, dict):  # fixed
        for key, value in selector.items():
            kubernetes.add_node_selector(task, label_key=key, label_value=value)
    else:
        kubernetes.add_node_selector_json(task, node_selector_json=selector)
    for term, weight in settings.node_affinity.terms:
        kubernetes.add_node_affinity(task, **term.model_dump(), weight=weight)
    # on every stage: the node selector leads them all to the same nodes
    for toleration in settings.tolerations:
        kubernetes.add_toleration(task, **toleration.model_dump(exclude_none=True))
    kubernetes.set_timeout(task, asked.time_limit_s)
    kubernetes.set_security_context(task, **settings.security_context.model_dump())
    kubernetes.set_image_pull_policy(task, settings.image_pull_policy)
    if settings.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, settings.image_pull_secrets)
    kubernetes.use_field_path_as_env(
        task, env_name=variables.RUN_ID.name, field_path="metadata.labels['pipeline/runid']"
    )
    for key, value in settings.labels.items():
        kubernetes.add_pod_label(task, key, value)
    for key, value in settings.annotations.items():
        kubernetes.add_pod_annotation(task, key, value)
    if not needs.network:
        kubernetes.add_pod_label(task, *NO_NETWORK)


def _set_secrets(task: PipelineTask, needs: Needs, platform: dict[str, Any]) -> None:
    for kind in needs.secrets:
        row = variables.SECRETS[kind]
        if row.parameter not in platform:
            raise UserError(
                f"the stage {stage_name(task.component_spec)} reads the Secret {kind}: add "
                f"{kind!r} to the argument secrets of the platform_pipeline that it stands in."
            )
        # not as variables: before 2.15 KFP knows no optional ones, and a pod would wait for ever
        kubernetes.use_secret_as_volume(
            task,
            secret_name=platform[row.parameter],
            mount_path=row.mount_path,
            optional=True,
        )


def _has_retry(task: PipelineTask) -> bool:
    return task._task_spec.retry_policy is not None  # KFP has no reader of it


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

    In containers on one machine the shell would die of SIGTERM, and the container with it, before
    a stage can end cleanly. (On a cluster KFP's launcher dies so, and the container within a
    second.)
    """
    container = task.container_spec
    container.command = [
        part.replace(" python3 -m kfp.dsl.executor_main", " exec python3 -m kfp.dsl.executor_main")
        if isinstance(part, str)
        else part
        for part in container.command or ()
    ]
