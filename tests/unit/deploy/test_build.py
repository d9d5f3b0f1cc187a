"""Contexts and images as far as they need neither a registry nor Docker."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker
import pytest

from medseg.deploy import build, create_docker_context, docker_build
from medseg.deploy.engine import STOP_S, run_container
from medseg.project import DataRoot, UserError, write_json


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"destinations": {"destination": "a.org/x:1", "destination_nifti": "a.org/x:1"}},
            "destination_nifti: a.org/x:1 is destination too",
        ),
        (
            {"destinations": {"destination": "u/x:1", "destination_nifti": "docker.io/u/x:1"}},
            "destination_nifti: docker.io/u/x:1 is destination too",
        ),
        ({"destinations": {"destination_nifti": "X"}}, "destination_nifti: 'X' is no image name"),
        ({"base_dicom": "a.org/map dicom"}, "base_dicom: 'a.org/map dicom' is no image name"),
        (
            {"base_nifti": "kfp-medseg/map-nifti:1"},
            "base_nifti: kfp-medseg/map-nifti:1 is in no registry: set registry in the platform",
        ),
    ],
)
def test_names_are_checked_before_any_work(
    root: DataRoot, changes: dict[str, Any], message: str
) -> None:
    given = {"base_dicom": "a.org/dicom:1", "base_nifti": "a.org/nifti:1", **changes}
    with pytest.raises(UserError) as caught:
        create_docker_context(root, "docker", "model.ts", "task.yaml", **given)
    assert message in str(caught.value)
    assert not (root.path / "docker").exists()


@pytest.mark.parametrize(
    ("base", "insecure"), [("a.org/map-dicom:1", True), ("b.org/map-dicom:1", False)]
)
def test_insecure_is_the_destinations_registry_alone(
    root: DataRoot, monkeypatch: pytest.MonkeyPatch, base: str, insecure: bool
) -> None:
    asked: dict[str, bool] = {}

    def remote_digest(name: Any, options: Any, **given: bool) -> None:
        asked[str(name)] = given["insecure"]

    monkeypatch.setattr(build, "remote_digest", remote_digest)
    (root.path / "context" / "rootfs").mkdir(parents=True)
    write_json(root.path / "context" / "image.json", {"base": base})
    images = root.path / ".medseg" / "images"
    killed = images / ".partial-0a1b2c3d-work"
    killed.mkdir(parents=True)
    with pytest.raises(UserError, match=f"the base image {base} does not exist"):
        docker_build(root, "context", "a.org/spleen:1", insecure_registry=True)
    assert asked == {"a.org/spleen:1": True, base: insecure}
    assert list(images.iterdir()) == []  # nor what a killed one has left


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_container_is_stopped_with_its_run(error: type[BaseException]) -> None:
    calls: list[Any] = []

    def logs(**_: bool) -> Any:
        yield b"working\n"
        raise error

    container = SimpleNamespace(
        start=lambda: calls.append("start"),
        logs=logs,
        stop=lambda timeout: calls.append(("stop", timeout)),
        remove=lambda force: calls.append("remove"),
    )
    client = SimpleNamespace(
        images=SimpleNamespace(get=lambda name: name),
        containers=SimpleNamespace(create=lambda *_, **__: container),
    )
    with pytest.raises(error):
        run_container(client, "a.org/x:1", ["train"])  # type: ignore[arg-type]
    assert calls == ["start", ("stop", STOP_S), "remove"]


def test_a_container_has_the_threads_of_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, str]] = []

    def create(*_: Any, environment: dict[str, str], **__: Any) -> Any:
        asked.append(environment)
        raise docker.errors.APIError("enough")

    client = SimpleNamespace(
        images=SimpleNamespace(get=lambda name: name), containers=SimpleNamespace(create=create)
    )
    for threads in ("3", None):
        if threads:
            monkeypatch.setenv("OMP_NUM_THREADS", threads)
        else:
            monkeypatch.delenv("OMP_NUM_THREADS")
        for given in ({}, {"environment": {"OMP_NUM_THREADS": "1", "A": "x"}}):
            with pytest.raises(UserError, match="enough"):
                run_container(client, "a.org/x:1", ["train"], **given)  # type: ignore[arg-type]
    own = {"OMP_NUM_THREADS": "1", "A": "x"}
    assert asked == [{"OMP_NUM_THREADS": "3"}, own, {}, own]


def test_an_image_that_cannot_be_had() -> None:
    def missing(name: str) -> Any:
        raise docker.errors.ImageNotFound("no such image")

    client = SimpleNamespace(images=SimpleNamespace(get=missing, pull=missing))
    with pytest.raises(UserError, match=r"the image a\.org/x:1 cannot be had: no such image"):
        run_container(client, "a.org/x:1", ["train"])  # type: ignore[arg-type]


def test_unfinished_work_is_the_writers_own(tmp_path: Path) -> None:
    from medseg.project import scratch_folder

    with scratch_folder(tmp_path / "work") as one, scratch_folder(tmp_path / "work") as other:
        assert one != other
        assert one.is_dir()  # a second writer leaves it alone
    assert list(tmp_path.iterdir()) == []
