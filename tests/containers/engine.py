"""A real Docker engine and real registries, started where none is there."""

from __future__ import annotations

import contextlib
import crypt
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import docker

BASE_IMAGE = "medseg-test/base:latest"


@contextlib.contextmanager
def docker_engine(folder: Path) -> Iterator[docker.DockerClient]:
    """The engine of this machine; one is started, and stopped at the end, where none runs."""
    try:
        yield docker.from_env()
        return
    except docker.errors.DockerException:
        pass
    log = (folder / "dockerd.log").open("wb")
    process = subprocess.Popen(["dockerd"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                client = docker.from_env(timeout=900)
                break
            except docker.errors.DockerException:
                assert process.poll() is None, (folder / "dockerd.log").read_text()[-3000:]
                assert time.monotonic() < deadline, "dockerd does not come up"
                time.sleep(0.5)
        yield client
    finally:
        process.terminate()
        process.wait(60)


def base_image(client: docker.DockerClient, folder: Path) -> str:
    """A Debian with Python, of this machine's release: made here, as none can be pulled."""
    with contextlib.suppress(docker.errors.ImageNotFound):
        client.images.get(BASE_IMAGE)
        return BASE_IMAGE
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if line
    )
    archive = folder / "base.tar"
    subprocess.run(
        [
            "mmdebstrap",
            "--variant=minbase",
            "--include=python3,python3-venv,ca-certificates",
            release["VERSION_CODENAME"].strip('"'),
            str(archive),
        ],
        check=True,
        capture_output=True,
    )
    name, _, tag = BASE_IMAGE.partition(":")
    client.api.import_image_from_file(str(archive), repository=name, tag=tag)
    archive.unlink()
    return BASE_IMAGE


class Registry:
    """Debian's ``docker-registry`` on a free port of this machine.

    Attributes:
        host: ``localhost:PORT``.
        log: Its access log.
    """

    def __init__(self, folder: Path, password: str = "") -> None:
        folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.host = f"localhost:{port}"
        self.log = folder / "log.txt"
        access = ""
        if password:
            hashed = crypt.crypt(password, crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=16))
            (folder / "htpasswd").write_text(f"medseg:{hashed}\n")
            access = f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}\n"
        (folder / "config.yml").write_text(
            "version: 0.1\n"
            f"storage: {{filesystem: {{rootdirectory: {folder}/storage}}}}\n"
            f"http: {{addr: '127.0.0.1:{port}', relativeurls: true}}\n{access}"
        )
        program = shutil.which("docker-registry", path=f"{os.environ['PATH']}:/usr/bin:/usr/sbin")
        assert program, "install docker-registry"
        self._process = subprocess.Popen(
            [program, "serve", str(folder / "config.yml")],
            stdout=self.log.open("wb"),
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://{self.host}/", timeout=1)
                break
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)
