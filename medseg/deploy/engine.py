"""Docker on this machine: running inference images, building one from a context."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import docker
from docker import DockerClient
from docker.models.images import Image

from medseg.deploy.context import read_context
from medseg.deploy.package import ENVIRONMENT, STACK
from medseg.deploy.registry import ImageName
from medseg.project import UserError, progress

STOP_S = 60
"""Seconds that a container has after SIGTERM to end cleanly: to write a checkpoint, say."""

THREADS = "OMP_NUM_THREADS"


def docker_client() -> DockerClient:
    """The Docker engine of this machine.

    Raises:
        UserError: It cannot be reached.
    """
    try:
        client = docker.from_env()
        client.ping()
    except docker.errors.DockerException as error:
        raise UserError(
            f"Docker cannot be reached ({error}): start it, and check that you may use it "
            "(docker info)."
        ) from None
    return client


def hardened(user: int, group: int) -> dict[str, Any]:
    """Arguments of docker-py's ``containers.run`` for a container with no more than it needs.

    Its root is read-only, ``/tmp`` is a tmpfs, capabilities are dropped; signals reach all of its
    processes.

    Args:
        user: The user that it runs as.
        group: Its group.
    """
    return {
        "user": f"{user}:{group}",
        "read_only": True,
        "tmpfs": {"/tmp": "exec,mode=1777"},  # noqa: S108 - the container's own
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "init": True,
        "ulimits": [docker.types.Ulimit(name="stack", soft=STACK, hard=STACK)],
    }


def find_image(client: DockerClient, name: str) -> Image:
    """An image of this machine; pulled where it is not there.

    Args:
        client: The engine.
        name: The image.

    Raises:
        UserError: It cannot be had.
    """
    try:
        with contextlib.suppress(docker.errors.ImageNotFound):
            return client.images.get(name)
        progress(f"pulling {name}")
        return client.images.pull(name)
    except docker.errors.APIError as error:
        raise UserError(
            f"the image {name} cannot be had: {error.explanation or error}. Check its name, and "
            "that you may pull it (docker login)."
        ) from None


def run_container(
    client: DockerClient,
    image: str,
    command: Sequence[str],
    volumes: dict[str, Any] | None = None,
    **options: Any,
) -> int:
    """Runs a container to its end and passes its output on.

    Where this process is told to end (Ctrl-C, SIGTERM), the container is too, and waited for. Where
    this process may compute with so many threads only (``OMP_NUM_THREADS``), the container may too.

    Args:
        client: The engine.
        image: The image; pulled where it is not there.
        command: What to run; empty for what the image starts.
        volumes: docker-py's mounts.
        options: More of docker-py's arguments.

    Returns:
        The exit status.

    Raises:
        UserError: There is no such image, or it cannot be started.
    """
    find_image(client, image)
    threads = {THREADS: os.environ[THREADS]} if THREADS in os.environ else {}
    environment = {**threads, **options.pop("environment", {})}
    try:
        container = client.containers.create(
            image,
            list(command) or None,
            volumes=volumes or {},
            environment=environment,
            detach=True,
            **options,
        )
    except docker.errors.APIError as error:
        raise UserError(f"Docker cannot run {image}: {error.explanation or error}.") from None
    try:
        container.start()
        for line in container.logs(stream=True, follow=True):
            print(line.decode(errors="replace"), end="", flush=True)
        return int(container.wait()["StatusCode"])
    except docker.errors.APIError as error:
        raise UserError(f"Docker cannot run {image}: {error.explanation or error}.") from None
    except BaseException:
        with contextlib.suppress(docker.errors.APIError):
            container.stop(timeout=STOP_S)
        raise
    finally:
        container.remove(force=True)


def infer(image: str, input_path: Path, output_folder: Path, *, gpu: bool = False) -> int:
    """Runs an inference image on this machine's Docker, without network and privileges.

    Args:
        image: The inference image.
        input_path: A study's folder, a folder of studies, a folder of NIfTI files, or one file.
            It is mounted read-only.
        output_folder: Where the results go; made if needed. The container runs as its owner.
        gpu: Give it the machine's GPUs.

    Returns:
        The container's exit status; its messages went to the standard output.

    Raises:
        UserError: The input does not exist, the image is none of this kind, or Docker cannot run
            it.
    """
    if not input_path.exists():
        raise UserError(f"the input {input_path} does not exist.")
    if output_folder.exists() and not output_folder.is_dir():
        raise UserError(f"the output {output_folder} is a file: name a folder.")
    output_folder.mkdir(parents=True, exist_ok=True)
    client = docker_client()
    places = _environment(client, image)
    source, target = input_path.resolve(), places["HOLOSCAN_INPUT_PATH"].rstrip("/")
    if source.is_file():
        target = f"{target}/{source.name}"
    owner = output_folder.stat()
    options = hardened(owner.st_uid, owner.st_gid)
    if gpu:
        options["device_requests"] = [docker.types.DeviceRequest(count=-1, capabilities=[["gpu"]])]
    del options["init"]  # these images bring their own
    return run_container(
        client,
        image,
        [],
        network_mode="none",
        mounts=[
            docker.types.Mount(target, str(source), type="bind", read_only=True),
            docker.types.Mount(
                places["HOLOSCAN_OUTPUT_PATH"], str(output_folder.resolve()), type="bind"
            ),
        ],
        **options,
    )


def _environment(client: DockerClient, image: str) -> dict[str, str]:
    about = find_image(client, image).attrs["Config"]
    pairs = dict(item.partition("=")[::2] for item in about["Env"] or [])
    if "HOLOSCAN_INPUT_PATH" not in pairs:
        raise UserError(
            f"{image} is no inference image (it sets no HOLOSCAN_INPUT_PATH): name one that "
            "docker_build made."
        )
    return {**ENVIRONMENT, **pairs}


def build_with_docker(
    context: Path, name: str, *, push: bool = False, overwrite: bool = False
) -> str:
    """Builds the image of a context with Docker, as ``docker build`` does.

    Args:
        context: A build context of :func:`medseg.deploy.create_docker_context`.
        name: Name of the image.
        push: Push it too.
        overwrite: Replace an image of this name that differs in the registry.

    Returns:
        The image's identifier.

    Raises:
        UserError: The context, the name or the base image is wrong, the name is taken in the
            registry, or the push fails.
    """
    read_context(context)
    if push:
        ImageName.parse(name, "image")
    client = docker_client()
    try:
        image, _ = client.images.build(path=str(context), tag=name, rm=True)
        if push and not (overwrite or _may_push(client, image, name)):
            raise UserError(
                f"{name} exists in its registry and is another image: choose a new tag, or give "
                "--overwrite."
            )
        for line in client.images.push(name, stream=True, decode=True) if push else ():
            if "error" in line:
                raise UserError(f"pushing {name} failed: {line['error']}")
    except docker.errors.BuildError as error:
        raise UserError(f"building {name} failed: {error.msg}") from None
    except docker.errors.APIError as error:
        raise UserError(f"building {name} failed: {error.explanation or error}") from None
    return str(image.id)


def _may_push(client: DockerClient, image: Image, name: str) -> bool:
    """Whether the registry has no image of this name, or this one."""
    try:
        digest = client.images.get_registry_data(name).id
    except docker.errors.APIError:  # there is none, or the push will say what is wrong
        return True
    return any(known.endswith(f"@{digest}") for known in image.attrs["RepoDigests"])
