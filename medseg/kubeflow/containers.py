"""Running the stages of a local run in containers, through KFP's Docker runner."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medseg.deploy.containers import docker_client, hardened, run_container
from medseg.kubeflow.platform import SECRET_KEYS
from medseg.project import MOUNT_PATH, DataRoot, UserError
from medseg.project.stages import EVENTS_VARIABLE

_PLACEHOLDER = re.compile(r"^\{\{\$\.inputs\.parameters\['(?P<name>[^']+)'\]\}\}$")
LABEL = "io.github.kfp-medseg.run"


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
        defined = component.get("inputDefinitions", {}).get("parameters", {})
        defaults = {k: v["defaultValue"] for k, v in defined.items() if "defaultValue" in v}
        values = {**defaults, **given}
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
            match = _PLACEHOLDER.match(image)
            if match is None:
                continue
            if match["name"] not in inputs:
                raise UserError(
                    f"the image of stage {target['executorLabel'].removeprefix('exec-')} is only "
                    "known while the pipeline runs: give it as a parameter."
                )
            found = str(inputs[match["name"]])
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
    match = _PLACEHOLDER.match(constant) if isinstance(constant, str) else None
    return values.get(match["name"]) if match else constant


@contextlib.contextmanager
def docker_runner(root: DataRoot, run: str, scratch: Path) -> Iterator[Any]:
    """KFP's Docker runner with the data root at ``/mnt/Data``.

    Stages run as the data root's owner, with a read-only root, without capabilities, on the host's
    network (as the stages of a run without containers do). Those still running at the end are
    stopped.

    Args:
        root: The data root.
        run: The run's name.
        scratch: A temporary folder that the containers write their outputs to.

    Yields:
        The runner for ``kfp.local.init``.

    Raises:
        UserError: Docker cannot be reached.
    """
    import docker
    from kfp import local
    from kfp.local import docker_task_handler

    client = docker_client()
    owner = root.path.stat()
    for name in ("outputs", "workspace"):  # else Docker makes them, for root
        (scratch / name).mkdir()
    if os.getuid() == 0:  # what root made here must be writable for the stages
        for path in (scratch, *scratch.rglob("*"), *_run_files(root, run)):
            os.chown(path, owner.st_uid, owner.st_gid)
    names = {name for keys in SECRET_KEYS.values() for name in keys.values()}
    options: dict[str, Any] = {
        **hardened(owner.st_uid, owner.st_gid),
        "network_mode": "host",
        "shm_size": "8g",
        "mounts": [docker.types.Mount(str(MOUNT_PATH), str(root.path), type="bind")],
        "environment": {
            **{name: os.environ[name] for name in names if os.environ.get(name)},
            EVENTS_VARIABLE: str(MOUNT_PATH / "runs" / run / "events.jsonl"),
        },
        "entrypoint": [""],  # as on a cluster, where a stage's command replaces it
        "labels": {LABEL: run},
    }
    if "nvidia" in client.info().get("Runtimes", {}):
        options["device_requests"] = [docker.types.DeviceRequest(count=-1, capabilities=[["gpu"]])]
    # KFP's own function removes a container before it asks for its exit status, and then takes a
    # stage that failed quickly for one that succeeded (kfp 2.17).
    original = docker_task_handler.run_docker_container
    docker_task_handler.run_docker_container = run_container
    try:
        yield local.DockerRunner(**options)
    finally:
        docker_task_handler.run_docker_container = original
        for container in client.containers.list(filters={"label": f"{LABEL}={run}"}):
            with contextlib.suppress(docker.errors.APIError):
                container.stop(timeout=60)
        client.close()


def _run_files(root: DataRoot, run: str) -> Iterator[Path]:
    folder = root.path / "runs" / run
    yield from (folder.parent, folder, *folder.iterdir())
    locks = root.path / ".medseg"
    yield from (locks, *locks.rglob("*"))
