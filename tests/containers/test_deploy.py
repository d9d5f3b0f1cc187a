"""From DICOM to a model, from it to two images, from these to segmentations: in containers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
import nibabel
import numpy as np
import pytest
import yaml
from pydicom import dcmread
from pydicom.uid import generate_uid

from medseg.bundle import segment
from medseg.deploy.context import LABEL
from medseg.dicom import read_image
from tests.containers.conftest import (
    UID,
    Images,
    hippocampus_task,
    model_file,
    run_docker,
)
from tests.containers.engine import Registry
from tests.pipelines.harness import medseg, newest_log, run_arguments

MODEL = "MONet_Bundle/Task04/MONetBundle/models/fold_0/model.ts"


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
    names = (given["destination"], given["destination_nifti"])
    for name in names:
        engine.images.pull(name)
    return names


def study(project: Path) -> Path:
    """The series of a case that the training never saw."""
    config = yaml.safe_load((project / "configs/Task04_config.yaml").read_text())
    folder = project / "DICOM/Task04" / config["test_cases"][0]
    return next(path for path in folder.iterdir() if path.name != "SEG")


@pytest.fixture
def writable(tmp_path: Path) -> Path:
    """A folder that uid 1000 may write to."""
    folder = tmp_path / "out"
    folder.mkdir()
    if os.getuid() == 0:
        os.chown(folder, UID, UID)
    return folder


def infer(image: str, source: Path, output: Path) -> subprocess.CompletedProcess[str]:
    return medseg("infer", "--image", image, source, "-o", output)


@pytest.fixture(scope="session")
def expected(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``medseg segment`` makes of the held-back case."""
    target = tmp_path_factory.mktemp("expected") / "case.nii.gz"
    segment(model_file(project), study(project), target, output_format="nifti")
    assert np.asarray(nibabel.load(target).dataobj).any(), "train longer: nothing was segmented"
    return target


def same_voxels(found: Path, expected: Path) -> None:
    """Both on the same grid, whatever the order of their axes."""
    one, other = (nibabel.as_closest_canonical(nibabel.load(path)) for path in (found, expected))
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-3)
    np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(other.dataobj))


def test_lifecycle_in_containers_leaves_a_packaged_model(project: Path) -> None:
    assert model_file(project).is_file()
    assert list((project / "reports").rglob("report.html"))


def test_dicom_image_equals_medseg_segment(
    built: tuple[str, str], project: Path, expected: Path, writable: Path
) -> None:
    done = infer(built[0], study(project), writable)
    assert done.returncode == 0, done.stdout + done.stderr
    result = writable / "Hippocampus.dcm"
    segmentation = dcmread(result)
    source = read_image(study(project))
    assert segmentation.StudyInstanceUID == source.instances[0].StudyInstanceUID
    referenced = segmentation.ReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == source.instances[0].SeriesInstanceUID
    assert {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence} <= {
        item.SOPInstanceUID for item in source.instances
    }
    first = segmentation.SegmentSequence[0]
    assert first.SegmentLabel == "Anterior"
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeValue == "5366008"
    assert first.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == (
        "Segmentation-Hippocampus"
    )
    program = Path(sys.executable).with_name("segimage2itkimage")
    command = [program, "--inputDICOM", result, "--outputDirectory", writable]
    command += ["--outputType", "nii", "--prefix", "read", "--mergeSegments"]
    back = subprocess.run(command, capture_output=True, text=True)
    assert back.returncode == 0, back.stderr
    same_voxels(next(writable.glob("read*.nii.gz")), expected)


def test_nifti_image_equals_medseg_segment(
    built: tuple[str, str], project: Path, expected: Path, writable: Path, tmp_path: Path
) -> None:
    config = yaml.safe_load((project / "configs/Task04_config.yaml").read_text())
    case = config["test_cases"][0]
    image = project / "NIFTI/Task04" / case / f"{case}_image.nii.gz"
    done = infer(built[1], image, writable)
    assert done.returncode == 0, done.stdout + done.stderr
    same_voxels(writable / f"{case}_image.nii.gz", expected)


def test_an_inference_image_adds_one_layer_and_says_where_it_comes_from(
    engine: docker.DockerClient, built: tuple[str, str], images: Images, project: Path
) -> None:
    for name, base in zip(built, (images.map_dicom, images.map_nifti), strict=True):
        image, below = engine.images.get(name), engine.images.get(base)
        layers = image.attrs["RootFS"]["Layers"]
        assert layers[:-1] == below.attrs["RootFS"]["Layers"]
        assert (
            image.attrs["Size"] - below.attrs["Size"]
            < 1.01 * model_file(project).stat().st_size + 1e5
        )
        labels = image.attrs["Config"]["Labels"]
        assert labels["org.opencontainers.image.version"] == labels[f"{LABEL}.model-version"]
        assert len(labels[f"{LABEL}.data-hash"]) == 64
        assert len(labels[f"{LABEL}.mlflow-run"]) == 32
        shown = engine.containers.run(name, ["show"], remove=True, network_mode="none").decode()
        assert '"name": "Hippocampus"' in shown
        assert f'"version": "{labels["org.opencontainers.image.version"]}"' in shown


def test_docker_builds_the_same_image_of_the_context(
    engine: docker.DockerClient, built: tuple[str, str], project: Path, images: Images
) -> None:
    context = project / "docker/Hippocampus/dicom"
    done = medseg("deploy", "build", context, "-t", "medseg-test/hippocampus:1.0")
    assert done.returncode == 0, done.stderr
    ours, theirs = (
        engine.images.get(name).attrs["Config"]
        for name in (built[0], "medseg-test/hippocampus:1.0")
    )
    for key in ("Env", "Labels", "Entrypoint", "User", "WorkingDir"):
        assert ours[key] == theirs[key], key
    listing = "find /opt/holoscan /etc/holoscan -type f | sort | xargs sha256sum | sha256sum"
    found = {
        engine.containers.run(name, ["-c", listing], entrypoint="sh", remove=True)
        for name in (built[0], "medseg-test/hippocampus:1.0")
    }
    assert len(found) == 1


def test_building_again_is_small_and_gives_the_same_digest(
    engine: docker.DockerClient,
    built: tuple[str, str],
    project: Path,
    images: Images,
    registry: Registry,
) -> None:
    """With the base cached, in 512 MiB; base layers are mounted in the registry, not pushed."""
    name = f"{registry.host}/other/hippocampus:1.0"
    program = (
        "import json\nfrom medseg.deploy import docker_build\nfrom medseg.project import stage\n"
        "with stage('docker_build') as root:\n"
        f"    print(json.dumps(docker_build(root, 'docker/Hippocampus/dicom', '{name}')))\n"
    )
    before = len(registry.log.read_text())
    started = time.monotonic()
    output = engine.containers.run(
        images.builder,
        ["python3", "-c", program],
        remove=True,
        network_mode="host",
        mem_limit="512m",
        volumes={str(project): {"bind": "/mnt/Data"}},
        user=f"{UID}:{UID}",
        read_only=True,
        tmpfs={"/tmp": ""},
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
    )
    seconds = time.monotonic() - started
    print(f"built and pushed in {seconds:.1f} s")  # target: 15 s
    result = json.loads(output.decode().splitlines()[-1])
    assert engine.images.get(built[0]).attrs["RepoDigests"][0].endswith(result["digest"])
    log = registry.log.read_text()[before:]
    layers = len(engine.images.get(images.map_dicom).attrs["RootFS"]["Layers"])
    mounts = [line for line in log.splitlines() if "mount=sha256" in line and " 201 " in line]
    assert len(mounts) >= layers - 1, log[-3000:]


def test_infer_tells_when_inference_starts_and_how_long_it_took(
    engine: docker.DockerClient,
    built: tuple[str, str],
    project: Path,
    expected: Path,
    writable: Path,
    tmp_path: Path,
) -> None:
    started = time.monotonic()
    reference = medseg(
        "segment", study(project), "--model", model_file(project), "-o", tmp_path / "s.dcm"
    )
    alone = time.monotonic() - started
    assert reference.returncode == 0, reference.stderr
    started = time.monotonic()
    process = subprocess.Popen(
        [
            Path(sys.executable).with_name("medseg"),
            "infer",
            "--image",
            built[0],
            study(project),
            "-o",
            writable,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = None
    for line in process.stdout:
        if "starting inference" in line:
            first = time.monotonic() - started
    assert process.wait() == 0
    total = time.monotonic() - started
    assert first is not None
    assert list(writable.rglob("*.dcm"))
    print(  # targets: inference within 10 s, end within 1.3 times
        f"medseg segment {alone:.1f} s; container: inference after {first:.1f} s, end {total:.1f} s"
    )


def test_inference_pipeline_one_folder_a_case(
    built: tuple[str, str], project: Path, images: Images, expected: Path
) -> None:
    config = yaml.safe_load((project / "configs/Task04_config.yaml").read_text())
    folder = project / "new"
    for case in config["test_cases"]:
        source = next(p for p in (project / "DICOM/Task04" / case).iterdir() if p.name != "SEG")
        shutil.copytree(source, folder / case)
    given = {"input_folder_path": "new", "output_folder_path": "SEG", "image": built[0]}
    run_docker(project, "inference", images, **given)
    results = sorted(
        path.relative_to(project / "SEG").as_posix() for path in (project / "SEG").rglob("*.dcm")
    )
    assert results == [f"{case}/Hippocampus.dcm" for case in config["test_cases"]]
    before = {path: path.stat().st_mtime_ns for path in (project / "SEG").rglob("*.dcm")}
    run_docker(project, "inference", images, **given)  # what is done is not repeated
    assert before == {path: path.stat().st_mtime_ns for path in (project / "SEG").rglob("*.dcm")}


# --- bad input ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"destination": "{registry}/Hippocampus:1"}, "is no image name"),
        ({"destination": "{registry}/hippocampus"}, "has no tag"),
        ({"destination": "localhost:1/hippocampus:1"}, "localhost:1 cannot be reached"),
        ({"model_file": "task.yaml"}, "truncated, damaged or not TorchScript"),
        ({"segmentation_task_file": "other.yaml"}, "do not match the model's labels"),
        ({"base_dicom": "{registry}/no-such/base:1"}, "does not exist"),
        ({"destination": "{registry}/kfp-medseg/map-dicom:{tag}"}, "exists and is another image"),
    ],
)
def test_docker_build_refuses(
    built: tuple[str, str],
    project: Path,
    images: Images,
    registry: Registry,
    changes: dict[str, str],
    message: str,
) -> None:
    task = hippocampus_task()
    task["Segments"] = [{**item, "segment_label": "Liver"} for item in task["Segments"][:1]]  # type: ignore[index]
    (project / "other.yaml").write_text(yaml.safe_dump({"tasks": {"Hippocampus": task}}))
    places = {"registry": registry.host, "tag": images.pushed_dicom.rpartition(":")[2]}
    given = arguments(registry, images, context="docker/bad")
    given |= {key: value.format(**places) for key, value in changes.items()}
    done = medseg(*run_arguments("docker_build", project, **given), "--runner", "docker")
    assert done.returncode == 1, done.stdout
    assert message in done.stdout, done.stdout + newest_log(project)
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize(("password", "accepted"), [("right", True), ("wrong", False), ("", False)])
def test_credentials_come_from_the_secret(
    built: tuple[str, str],
    project: Path,
    images: Images,
    registry: Registry,
    closed_registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    password: str,
    accepted: bool,
) -> None:
    if password:
        auth = {"username": "medseg", "password": password}
        content = {"auths": {closed_registry.host: auth}}
        import base64

        auth["auth"] = base64.b64encode(f"medseg:{password}".encode()).decode()
        monkeypatch.setenv("MEDSEG_REGISTRY_AUTH", json.dumps(content))
    given = arguments(registry, images, context="docker/closed")
    given["destination"] = f"{closed_registry.host}/hippocampus:1.0"
    done = medseg(*run_arguments("docker_build", project, **given), "--runner", "docker")
    assert (done.returncode == 0) == accepted, done.stdout
    if not accepted:
        assert "denies access to hippocampus" in done.stdout
    log = newest_log(project)
    assert password == "" or f"medseg:{password}" not in done.stdout + log


def change_series(source: Path, target: Path, **values: Any) -> None:
    """Copies a series with other values in its headers."""
    target.mkdir(parents=True)
    series = generate_uid()
    for path in source.glob("*.dcm"):
        dataset = dcmread(path)
        for keyword, value in {"SeriesInstanceUID": series, **values}.items():
            setattr(dataset, keyword, value)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.save_as(target / path.name)


def none_fits(folder: Path, source: Path) -> None:
    change_series(source, folder / "a", Modality="CT")


def two_fit(folder: Path, source: Path) -> None:
    shutil.copytree(source, folder / "a")
    change_series(source, folder / "b", SeriesDescription="again")


def no_dicom(folder: Path, source: Path) -> None:
    folder.mkdir()
    (folder / "readme.txt").write_text("nothing here")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (none_fits, "has no series that fits the rules of modality image; its image series: CT"),
        (two_fit, "has 2 series that fit the rules of modality image"),
        (no_dicom, "holds no DICOM files"),
    ],
)
def test_a_study_that_cannot_be_segmented_is_explained_in_the_output_folder(
    built: tuple[str, str],
    project: Path,
    writable: Path,
    tmp_path: Path,
    make: Callable[[Path, Path], None],
    message: str,
) -> None:
    make(tmp_path / "in", study(project))
    done = infer(built[0], tmp_path / "in", writable)
    assert done.returncode == 1
    assert "error: " in done.stdout
    assert message in done.stdout
    assert message in (writable / "no-segmentation.txt").read_text()
    assert not list(writable.glob("*.dcm"))
    assert "Traceback" not in done.stdout


def test_an_output_folder_with_other_results_is_left_alone(
    built: tuple[str, str], project: Path, writable: Path
) -> None:
    other = writable / "Hippocampus.dcm"
    other.write_bytes(b"someone else's")
    done = infer(built[0], study(project), writable)
    assert done.returncode == 1
    assert "already has results of something else (Hippocampus.dcm)" in done.stdout
    assert other.read_bytes() == b"someone else's"
    assert [path.name for path in writable.iterdir()] == ["Hippocampus.dcm"]


def test_no_inference_image(engine: docker.DockerClient, images: Images, tmp_path: Path) -> None:
    done = infer(images.builder, tmp_path, tmp_path / "out")
    assert done.returncode == 1
    assert "is no inference image" in done.stderr
    done = infer("localhost:1/spleen:1", tmp_path, tmp_path / "out")
    assert done.returncode == 1
    assert "localhost:1/spleen:1 cannot be had" in done.stderr
