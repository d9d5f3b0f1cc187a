"""Running the stages of a local run in containers, through KFP's Docker runner."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import Any

import docker
from kfp import local
from kfp.local import docker_task_handler

from medseg.deploy.engine import STOP_S, docker_client, hardened, run_container
from medseg.kubeflow.platform import NO_NETWORK
from medseg.project import DataRoot, UserError
from medseg.project.variables import CA_FILE, DATA_ROOT, EVENTS, SECRETS, secret_environment

_PLACEHOLDER = re.compile(r"\{\{\$\.inputs\.parameters\['(?P<name>[^']+)'\]\}\}")
LABEL = "io.github.kfp-medseg.run"
_MARK = "MEDSEG_EXECUTOR"


def resolve_images(spec: dict[str, Any], arguments: Mapping[str, Any]) -> None:
    """Puts the values of pipeline parameters in place of image placeholders.

    A cluster's driver does this for each task; ``kfp.local`` hands the placeholder to Docker.

    Args:
        spec: The compiled pipeline; its executors' images are replaced.
        arguments: Values of the pipeline's parameters by name.

    Raises:
        UserError: An image is the output of another stage, or one component runs in two images.
    """
    executors = spec["deploymentSpec"]["executors"]
    resolved: dict[str, str] = {}

    def visit(component: dict[str, Any], given: Mapping[str, Any]) -> None:
        values = {**_defaults(component), **given}
        for task in component["dag"]["tasks"].values():
            inputs = {
                key: value
                for key, source in task.get("inputs", {}).get("parameters", {}).items()
                if (value := _value(source, values)) is not None
            }
            target = spec["components"][task["componentRef"]["name"]]
            if "dag" in target:
                visit(target, inputs)
                continue
            label = target["executorLabel"]
            image = executors[label].get("container", {}).get("image", "")
            if not _PLACEHOLDER.search(image):
                continue
            found = _filled(image, {**_defaults(target), **inputs})
            if found is None:
                raise UserError(
                    f"the image of stage {label.removeprefix('exec-')} is only known while the "
                    "pipeline runs: give it as a parameter."
                )
            if resolved.setdefault(label, found) != found:
                raise UserError(
                    f"{label.removeprefix('exec-')} runs in two images at once "
                    f"({resolved[label]}, {found}): run them one after the other."
                )

    visit(spec["root"], arguments)
    for label, image in resolved.items():
        executors[label]["container"]["image"] = image


def _value(source: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
    if "componentInputParameter" in source:
        return values.get(source["componentInputParameter"])
    constant = source.get("runtimeValue", {}).get("constant")
    return _filled(constant, values) if isinstance(constant, str) else constant


def _defaults(component: Mapping[str, Any]) -> dict[str, Any]:
    defined = component.get("inputDefinitions", {}).get("parameters", {})
    return {name: item["defaultValue"] for name, item in defined.items() if "defaultValue" in item}


def _filled(text: str, values: Mapping[str, Any]) -> str | None:
    """A text with values in place of its placeholders; None where one has no value."""
    if any(name not in values for name in _PLACEHOLDER.findall(text)):
        return None
    return _PLACEHOLDER.sub(lambda match: str(values[match["name"]]), text)


@dataclass(frozen=True)
class StageAccess:
    """What a stage of a compiled pipeline may reach.

    Attributes:
        secrets: The kinds of Secret that it reads.
        network: Whether it is on a network. Of one that is not a platform pipeline's only its
            author knows whether it needs that.
    """

    secrets: frozenset[str] = frozenset()
    network: bool = True


def stage_access(documents: Sequence[Mapping[str, Any]]) -> dict[str, StageAccess]:
    """What each stage may reach, as the compiled pipeline says it to the cluster.

    Args:
        documents: The pipeline's specification and the platform's, if it has one.

    Returns:
        By the stage's executor in the specification.
    """
    spec, *platforms = documents
    access = dict.fromkeys(spec["deploymentSpec"]["executors"], StageAccess())
    for platform in platforms:
        kubernetes = platform["platforms"].get("kubernetes", {})
        for label, settings in kubernetes.get("deploymentSpec", {}).get("executors", {}).items():
            mounted = {secret["mountPath"] for secret in settings.get("secretAsVolume", ())}
            key, value = NO_NETWORK
            access[label] = StageAccess(
                frozenset(kind for kind, row in SECRETS.items() if row.mount_path in mounted),
                network=settings.get("podMetadata", {}).get("labels", {}).get(key) != value,
            )
    return access


def mark_stages(spec: dict[str, Any]) -> None:
    """Puts each executor's name among its variables, as KFP tells Docker no other.

    Args:
        spec: The compiled pipeline; its executors are changed.
    """
    for label, executor in spec["deploymentSpec"]["executors"].items():
        if "container" in executor:
            marked = [*executor["container"].get("env", ()), {"name": _MARK, "value": label}]
            executor["container"]["env"] = marked


@contextlib.contextmanager
def docker_runner(
    root: DataRoot, run: str, scratch: Path, access: Mapping[str, StageAccess]
) -> Iterator[Any]:
    """KFP's Docker runner with the data root where the pipeline mounts its volume.

    Stages run as the data root's owner, with a read-only root and without capabilities. Each gets
    the variables of its own Secrets; those that talk to servers are on the host's network (as the
    stages of a run without containers are), the others on none. Where the run is told to end, its
    stages are too, and waited for.

    Args:
        root: The data root.
        run: The run's name.
        scratch: A temporary folder that the containers write their outputs to.
        access: What the stages may reach, by the mark of :func:`mark_stages`.

    Yields:
        The runner for ``kfp.local.init``.

    Raises:
        UserError: Docker cannot be reached.
    """
    client = docker_client()
    owner = root.path.stat()
    for name in ("outputs", "workspace"):  # else Docker makes them, for root
        (scratch / name).mkdir()
    if os.getuid() == 0:  # what root made here must be writable for the stages
        for path in (scratch, *scratch.rglob("*"), *_run_files(root, run)):
            os.chown(path, owner.st_uid, owner.st_gid)
    options: dict[str, Any] = {
        **hardened(owner.st_uid, owner.st_gid),
        "shm_size": "8g",
        "entrypoint": [""],  # as on a cluster, where a stage's command replaces it
        "labels": {LABEL: run},
    }
    if "nvidia" in client.info().get("Runtimes", {}):
        options["device_requests"] = [docker.types.DeviceRequest(count=-1, capabilities=[["gpu"]])]

    def run_stage(
        client: Any, image: str, command: Sequence[str], volumes: dict[str, Any], **given: Any
    ) -> int:
        environment = dict(given.pop("environment", None) or {})
        reach = access.get(environment.pop(_MARK, ""), StageAccess())
        return run_container(
            client,
            image,
            command,
            volumes,
            **given,
            **_stage_options(root, run, reach, environment),
        )

    def stop_stages() -> None:
        for container in client.containers.list(filters={"label": f"{LABEL}={run}"}):
            with contextlib.suppress(docker.errors.APIError):  # it has ended by itself
                container.kill("SIGTERM")

    # KFP's own function removes a container before it asks for its exit status, and then takes a
    # stage that failed quickly for one that succeeded (kfp 2.17).
    original = docker_task_handler.run_docker_container
    docker_task_handler.run_docker_container = run_stage
    try:
        with _before_the_end(stop_stages):
            yield local.DockerRunner(**options)
    finally:
        docker_task_handler.run_docker_container = original
        for container in client.containers.list(filters={"label": f"{LABEL}={run}"}):
            with contextlib.suppress(docker.errors.APIError):
                container.stop(timeout=STOP_S)
        client.close()


def _stage_options(
    root: DataRoot, run: str, access: StageAccess, environment: Mapping[str, str]
) -> dict[str, Any]:
    """What is one stage's own: its network, its volume, and variables with its Secrets."""
    volume = PurePosixPath(environment.get(DATA_ROOT.name, DATA_ROOT.default))
    mounts = [docker.types.Mount(str(volume), str(root.path), type="bind")]
    if Path(CA_FILE.value).is_file():
        own = str(Path(CA_FILE.value).resolve())
        mounts.append(docker.types.Mount(CA_FILE.default, own, type="bind", read_only=True))
    return {
        "network_mode": "host" if access.network else "none",
        "mounts": mounts,
        "environment": {
            **environment,
            **secret_environment(access.secrets),
            EVENTS.name: str(volume / "runs" / run / "events.jsonl"),
        },
    }


@contextlib.contextmanager
def _before_the_end(action: Callable[[], None]) -> Iterator[None]:
    """Does something at Ctrl-C and SIGTERM before what is done there anyway.

    KFP waits for the threads of a loop before it lets an exception through, so that the stages in
    them must have been told by then.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        action()
        following = before[signal.Signals(number)]
        if callable(following):
            following(number, frame)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_files(root: DataRoot, run: str) -> Iterator[Path]:
    folder = root.path / "runs" / run
    yield from (folder.parent, folder, *folder.iterdir())
    locks = root.path / ".medseg"
    yield from (locks, *locks.rglob("*"))
