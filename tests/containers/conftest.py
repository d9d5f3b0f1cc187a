"""The images, built once for all tests of this folder, and a trained model to put into them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml

from medseg import __version__
from medseg.bundle import export_checkpoint
from medseg.config import load_config
from medseg.kubeflow.settings import PlatformSettings
from medseg.project import DataRoot
from tests.containers.engine import Registry, base_image, docker_engine
from tests.hippocampus import CONFIG, copy_cases, write_project
from tests.pipelines.harness import newest_log, run_pipeline
from tests.unit.bundle.conftest import balance_classes

PROJECT = Path(__file__).resolve().parents[2]
HELD_BACK = 2
UID = 1000
MODEL = "MONet_Bundle/Task04/MONetBundle/models/fold_0/model.ts"

SEGMENT = {
    "segmented_property_category": {
        "code": "123037004",
        "scheme": "SCT",
        "meaning": "Anatomical Structure",
    },
    "algorithm_name": "Segmentation-Hippocampus",
}


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[docker.DockerClient]:
    with docker_engine(tmp_path_factory.mktemp("engine")) as client:
        yield client


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    server = Registry(tmp_path_factory.mktemp("registry") / "open")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def closed_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """One that wants user ``medseg`` and password ``right``."""
    server = Registry(tmp_path_factory.mktemp("registry") / "closed", password="right")
    yield server
    server.stop()


@dataclass(frozen=True)
class Images:
    """Names of the built images; the two bases also as they are called in the registry."""

    runtime: str
    builder: str
    map_dicom: str
    map_nifti: str
    _pushes: tuple[Future[str], Future[str]]

    @property
    def pushed_dicom(self) -> str:
        return self._pushes[0].result()

    @property
    def pushed_nifti(self) -> str:
        return self._pushes[1].result()


@pytest.fixture(scope="session")
def images(
    engine: docker.DockerClient, registry: Registry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Images]:
    build_images(base_image(engine, tmp_path_factory.mktemp("base")))
    names = map(PlatformSettings().image, ("runtime", "builder", "map-dicom", "map-nifti"))
    with ThreadPoolExecutor(1) as pool:  # a minute, which the training need not wait for
        pushes = [pool.submit(push, engine, registry, n) for n in ("map-dicom", "map-nifti")]
        yield Images(*names, (pushes[0], pushes[1]))


def push(engine: docker.DockerClient, registry: Registry, name: str) -> str:
    """Pushes an image of the project; returns what it is called in the registry."""
    target = f"{registry.host}/kfp-medseg/{name}"
    engine.images.get(PlatformSettings().image(name)).tag(target, __version__)
    for line in engine.images.push(target, __version__, stream=True, decode=True):
        assert "error" not in line, line
    return f"{target}:{__version__}"


def build_images(base: str, only: str = "") -> None:
    done = subprocess.run(
        [PROJECT / "images/build.sh", "--base", base, *(["--only", only] if only else [])],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def project(images: Images, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root after ``lifecycle`` in containers: DICOM in, a packaged model out."""
    root = tmp_path_factory.mktemp("containers")
    names = copy_cases(shared_data, root / "decathlon", 6 + HELD_BACK)
    write_project(root, names[-HELD_BACK:], num_epochs=1, iterations_per_epoch=2, num_processes=1)
    (root / "task.yaml").write_text(yaml.safe_dump({"tasks": {"Hippocampus": hippocampus_task()}}))
    give_away(root)
    run_docker(root, "nifti_to_dicom", images, input_folder="decathlon", output="DICOM/Task04")
    run_docker(
        root,
        "lifecycle",
        images,
        studies="file:///mnt/Data/DICOM/Task04",
        config_file_path=CONFIG,
    )
    foreign = [path for path in root.rglob("*") if path.stat().st_uid != root.stat().st_uid]
    assert foreign == []  # nothing of root's is left on the volume
    # a training as short as this one segments nothing: shift the last layer's biases
    config = load_config(CONFIG, DataRoot.at(root))
    balance_classes(config)
    export_checkpoint(config)
    give_away(root)
    run_docker(root, "convert_pt_to_ts", images, config_file_path=CONFIG)
    return root


def give_away(root: Path) -> None:
    """Makes uid 1000 the owner, where the tests run as root."""
    if os.getuid() == 0:
        for path in (root, *root.rglob("*")):
            os.chown(path, UID, UID)


def run_docker(root: Path, name: str, images: Images, **arguments: object) -> str:
    """Runs a compiled pipeline in containers."""
    return run_pipeline(
        name, root, options=("--runner", "docker"), **{"image": images.runtime, **arguments}
    )


def hippocampus_task() -> dict[str, object]:
    """A segmentation task in MAIA's format."""
    kind = {"code": "5366008", "scheme": "SCT", "meaning": "Hippocampus"}
    return {
        "Modalities": {
            "image": {
                "File_Pattern": ".nii.gz",
                "Rules_Text": '{"selections": [{"name": "MR", "conditions": '
                '{"StudyDescription": "(.*?)", "Modality": "(?i)MR", '
                '"SeriesDescription": "(.*?)"}}]}',
            }
        },
        "Segments": [
            {"segment_label": name, "segmented_property_type": kind, **SEGMENT}
            for name in ("Anterior", "Posterior")
        ],
    }


def model_file(root: Path) -> Path:
    return root / MODEL


def arguments(registry: Registry, images: Images, **changes: Any) -> dict[str, Any]:
    """Of a run of docker_build."""
    return {
        "context": "docker/Hippocampus",
        "destination": f"{registry.host}/hippocampus:1.0",
        "destination_nifti": f"{registry.host}/hippocampus:1.0-nifti",
        "segmentation_task_file": "task.yaml",
        "model_file": MODEL,
        "base_dicom": images.pushed_dicom,
        "base_nifti": images.pushed_nifti,
        "image": images.runtime,
        "builder_image": images.builder,
        **changes,
    }


@pytest.fixture(scope="session")
def built(
    engine: docker.DockerClient, project: Path, images: Images, registry: Registry
) -> tuple[str, str]:
    """Both inference images, pulled back from the registry."""
    given = arguments(registry, images)
    run_docker(project, "docker_build", images, **given)
    outputs = newest_log(project)
    names = (given["destination"], given["destination_nifti"])
    for name in names:
        (digest,) = engine.images.pull(name).attrs["RepoDigests"]
        assert f"Output: '{digest.partition('@')[2]}'" in outputs  # what KFP hands on
    return names
