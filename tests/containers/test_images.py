"""The project's images: what is in them, what is not, and how they end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from medseg import __version__
from medseg.deploy.engine import hardened
from medseg.deploy.package import ENVIRONMENT, manifests
from tests.containers.conftest import PROJECT, UID, Images, build_images
from tests.containers.engine import BASE_IMAGE


def run(client: docker.DockerClient, image: str, *command: str, **options: object) -> str:
    output: bytes = client.containers.run(
        image, list(command), remove=True, entrypoint=[""], network_mode="none", **options
    )
    return output.decode()


@pytest.mark.parametrize("name", ["runtime", "builder", "map_dicom", "map_nifti"])
def test_every_image_runs_as_uid_1000_with_labels_and_without_healthcheck(
    engine: docker.DockerClient, images: Images, name: str
) -> None:
    config = engine.images.get(getattr(images, name)).attrs["Config"]
    assert config["User"] == "1000:1000"
    assert not config.get("Healthcheck")
    labels = config["Labels"]
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert re.match(r"[0-9a-f]{12}|unknown", labels["org.opencontainers.image.revision"])
    assert config["Entrypoint"][:3] == ["/usr/bin/tini", "-g", "--"]


def test_the_runtime_image_is_small_and_has_no_build_tools(
    engine: docker.DockerClient, images: Images
) -> None:
    assert engine.images.get(images.runtime).attrs["Size"] <= 3.5e9
    found = run(
        engine,
        images.runtime,
        "sh",
        "-c",
        "for tool in gcc cc make ld pip pip3 git curl; do command -v $tool; done; "
        "python3 -c 'import importlib.util as u; print(u.find_spec(\"pip\"))'",
    )
    assert found.strip() == "None"


def test_the_tag_also_names_the_commit(engine: docker.DockerClient, images: Images) -> None:
    image = engine.images.get(images.runtime)
    revision = image.labels["org.opencontainers.image.revision"]
    assert f"{images.runtime}-{revision}" in image.tags
    known = ["git", "cat-file", "-e", revision.removesuffix("-dirty")]
    assert subprocess.run(known, cwd=PROJECT).returncode == 0


def test_all_stages_are_importable_without_privilege(
    engine: docker.DockerClient, images: Images
) -> None:
    program = (
        "import importlib, medseg.components as c\n"
        "for room in 'dicom nnunet bundle evaluation tracking deploy'.split():\n"
        "    module = importlib.import_module(f'medseg.{room}')\n"
        "    [getattr(module, name) for name in module.__all__]\n"
        "print(len(c.__all__))"
    )
    found = run(engine, images.runtime, "python3", "-c", program, **hardened(UID, UID))
    assert int(found) > 10


def test_a_rebuild_after_a_source_change_makes_one_layer(
    engine: docker.DockerClient, images: Images
) -> None:
    before = engine.images.get(images.runtime).attrs["RootFS"]["Layers"]
    source = PROJECT / "medseg" / "deploy" / "__init__.py"
    text = source.read_bytes()
    try:
        source.write_bytes(text + b"\n# rebuilt by tests/containers\n")
        build_images(BASE_IMAGE, only="runtime")
    finally:
        source.write_bytes(text)
    after = engine.images.get(images.runtime).attrs["RootFS"]["Layers"]
    assert before != after
    assert sum(a != b for a, b in zip(before, after, strict=True)) <= 2  # the source, and its owner


def test_sigterm_ends_a_stage_with_all_its_processes(
    engine: docker.DockerClient, images: Images, tmp_path: Path
) -> None:
    tmp_path.chmod(0o777)
    program = (
        "import time, pathlib\n"
        "from medseg.project import stage\n"
        "with stage('train') as root:\n"
        "    try:\n"
        "        (root.path / 'started').touch()\n"
        "        time.sleep(600)\n"
        "    finally:\n"
        "        (root.path / 'checkpoint').touch()\n"
    )
    options = hardened(UID, UID)
    del options["init"]  # the image's own entry, as on a node
    container = engine.containers.run(
        images.runtime,
        ["sh", "-ec", 'x=$(mktemp -d)\nexec python3 -c "$0"\n', program],  # as KFP's, see platform
        detach=True,
        volumes={str(tmp_path): {"bind": "/mnt/Data"}},
        **options,
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "started").exists():
            assert time.monotonic() < deadline, container.logs()
            time.sleep(0.2)
        started = time.monotonic()
        container.stop(timeout=30)
        assert time.monotonic() - started < 15
        assert container.wait()["StatusCode"] == 143
        assert (tmp_path / "checkpoint").exists()
    finally:
        container.remove(force=True)


@pytest.mark.parametrize("variant", ["dicom", "nifti"])
def test_the_bases_are_application_packages(
    engine: docker.DockerClient, images: Images, variant: str
) -> None:
    image = getattr(images, f"map_{variant}")
    config = engine.images.get(image).attrs["Config"]
    environment = dict(item.split("=", 1) for item in config["Env"])
    assert ENVIRONMENT.items() <= environment.items()
    assert environment["MEDSEG_INPUT_FORMAT"] == variant
    shown = engine.containers.run(image, ["show"], remove=True, network_mode="none").decode()
    app, package = re.split(r"--- \w+\.json\n", shown)[1:]
    expected = manifests("dicom" if variant == "dicom" else "nifti")
    assert json.loads(app) == expected["app.json"]
    assert json.loads(package) == expected["pkg.json"]


def test_dockerfiles_pass_hadolint() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    files = sorted((PROJECT / "images").glob("*/Dockerfile"))
    assert len(files) == 3
    done = subprocess.run([hadolint, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["runtime", "builder", "map-dicom", "map-nifti"])
def test_a_bill_of_materials_lies_beside_every_image(images: Images, name: str) -> None:
    folder = PROJECT / "build/images/sbom"
    python = json.loads((folder / f"{name}-{__version__}.python.cdx.json").read_text())
    debian = json.loads((folder / f"{name}-{__version__}.debian.cdx.json").read_text())
    assert python["bomFormat"] == debian["bomFormat"] == "CycloneDX"
    packages = {item["name"].lower(): item["version"] for item in python["components"]}
    assert packages["pydantic"]
    assert ("torch" in packages) == (name != "builder")
    assert "libc6" in {item["name"] for item in debian["components"]}


def layers(*images: str) -> Iterator[tuple[str, tarfile.TarFile]]:
    """Every layer of the images, once, as an archive that can be read from front to back."""
    with (
        subprocess.Popen(["docker", "save", *images], stdout=subprocess.PIPE) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as archive,
    ):
        for item in archive:
            if item.name.endswith("layer.tar") and item.isreg():
                with tarfile.open(fileobj=archive.extractfile(item), mode="r|") as layer:
                    yield item.name, layer


def test_no_layer_holds_a_secret(
    engine: docker.DockerClient, images: Images, built: tuple[str, str]
) -> None:
    """Names of credential files anywhere; their marks in all that is no library's own file."""
    names = re.compile(
        r"(^|/)(\.netrc|\.pypirc|pip\.conf|auth\.json|id_(rsa|ed25519|ecdsa)|\.git-credentials"
        r"|\.docker/config\.json|\.kube/config|\.aws/credentials)$"
    )
    marks = re.compile(
        rb"-----BEGIN [A-Z ]*PRIVATE KEY-----|PIP_(EXTRA_)?INDEX_URL|_TOKEN=|_PASSWORD="
        rb"|//[^/\s:@]+:[^/\s:@]+@"
    )
    names_of_images = [images.runtime, images.builder, images.map_dicom, images.map_nifti, *built]
    seen = 0
    for layer_name, layer in layers(*names_of_images):
        for item in layer:
            seen += 1
            assert not names.search(item.name), f"{layer_name}: {item.name}"
            own = item.name.startswith(("root", "home", "tmp", "mnt", "etc/pip", "opt/holoscan"))
            if item.isreg() and own and item.size < 1 << 20:
                content = layer.extractfile(item).read()  # type: ignore[union-attr]
                assert not marks.search(content), f"{layer_name}: {item.name}"
    assert seen > 10_000
    private = {name for name in os.environ if re.search("TOKEN|PASSWORD|SECRET|^PIP_", name)}
    for image in names_of_images:
        about = engine.images.get(image)
        text = json.dumps([about.history(), about.attrs["Config"]])
        assert not marks.search(text.encode()), image
        for name in private:
            value = os.environ[name]
            assert len(value) < 5 or value not in text, f"{image}: {name}"
