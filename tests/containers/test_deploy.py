"""From DICOM to a model, from it to two images, from these to segmentations: in containers."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
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
from medseg.deploy import load_segmentation_task
from medseg.deploy.context import LABEL
from medseg.deploy.engine import hardened
from medseg.dicom import read_image
from tests.containers.conftest import (
    PROJECT,
    UID,
    Images,
    arguments,
    hippocampus_task,
    model_file,
    run_docker,
)
from tests.containers.engine import Registry
from tests.pipelines.harness import MEDSEG, medseg, newest_log, run_arguments


def once_more(*values: object) -> Any:
    """Parameters with which a test proves what it, or a test without containers, proves as well."""
    return pytest.param(*values, marks=pytest.mark.slow)


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
        "from medseg.deploy import docker_build\nfrom medseg.project import stage\n"
        "with stage('docker_build') as root:\n"
        f"    print(docker_build(root, 'docker/Hippocampus/dicom', '{name}'))\n"
    )
    before = len(registry.log.read_text())
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
    digest = output.decode().splitlines()[-1]
    assert engine.images.get(built[0]).attrs["RepoDigests"][0].endswith(digest)
    log = registry.log.read_text()[before:]
    layers = len(engine.images.get(images.map_dicom).attrs["RootFS"]["Layers"])
    mounts = [line for line in log.splitlines() if "mount=sha256" in line and " 201 " in line]
    assert len(mounts) >= layers - 1, log[-3000:]


def test_inference_pipeline_one_folder_a_case(
    built: tuple[str, str], project: Path, images: Images, expected: Path
) -> None:
    config = yaml.safe_load((project / "configs/Task04_config.yaml").read_text())
    folder = project / "new"
    for case in config["test_cases"]:
        source = next(p for p in (project / "DICOM/Task04" / case).iterdir() if p.name != "SEG")
        shutil.copytree(source, folder / case)
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o444 if path.is_file() else 0o555)  # nothing is ever written to the input
    given = {"input_folder_path": "new", "output_folder_path": "SEG", "image": built[0]}
    run_docker(project, "inference", images, **given)
    results = sorted(
        path.relative_to(project / "SEG").as_posix() for path in (project / "SEG").rglob("*.dcm")
    )
    assert results == [f"{case}/Hippocampus.dcm" for case in config["test_cases"]]
    before = {path: path.stat().st_mtime_ns for path in (project / "SEG").rglob("*.dcm")}
    run_docker(project, "inference", images, **given)  # what is done is not repeated
    assert before == {path: path.stat().st_mtime_ns for path in (project / "SEG").rglob("*.dcm")}


def cases_of(variant: str, project: Path, folder: Path) -> list[str]:
    """Several cases; of DICOM without descriptions, the first without preambles, as some send."""
    source = study(project)
    names = [f"case{number}" for number in range(3)]
    for name in names:
        if variant == "dicom":
            change_series(
                source,
                folder / name,
                StudyInstanceUID=generate_uid(),
                StudyDescription=None,
                SeriesDescription=None,
            )
            if name == names[0]:
                for path in (folder / name).iterdir():
                    path.write_bytes(path.read_bytes()[132:])
        else:
            case = source.parent.name
            image = project / "NIFTI/Task04" / case / f"{case}_image.nii.gz"
            (folder / name).mkdir(parents=True)
            shutil.copyfile(image, folder / name / "image.nii.gz")
    return names


@pytest.mark.parametrize("variant", ["dicom", once_more("nifti")])
def test_docker_stop_keeps_what_is_finished(
    engine: docker.DockerClient,
    built: tuple[str, str],
    project: Path,
    writable: Path,
    tmp_path: Path,
    variant: str,
) -> None:
    image = built[0] if variant == "dicom" else built[1]
    names = cases_of(variant, project, tmp_path / "in")
    container = engine.containers.create(
        image,
        network_mode="none",
        volumes={
            str(tmp_path / "in"): {"bind": "/var/holoscan/input", "mode": "ro"},
            str(writable): {"bind": "/var/holoscan/output"},
        },
        **{key: value for key, value in hardened(UID, UID).items() if key != "init"},
    )
    try:
        container.start()
        for line in container.logs(stream=True, follow=True):
            if b"[1/3]" in line:
                break
        started = time.monotonic()
        container.stop(timeout=60)
        assert time.monotonic() - started < 20
        assert container.wait()["StatusCode"] == 143
    finally:
        container.remove(force=True)
    suffix = ".dcm" if variant == "dicom" else ".nii.gz"
    finished = {path: path.stat().st_mtime_ns for path in writable.rglob(f"*{suffix}")}
    assert 1 <= len(finished) < len(names)
    assert not list(writable.rglob("*no-segmentation.txt"))
    done = infer(image, tmp_path / "in", writable)
    assert done.returncode == 0, done.stdout + done.stderr
    results = [path.relative_to(writable).as_posix() for path in writable.rglob(f"*{suffix}")]
    wanted = {"dicom": "{}/Hippocampus.dcm", "nifti": "{}.nii.gz"}[variant]
    assert sorted(results) == [wanted.format(name) for name in names]
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in finished.items())


def test_sigterm_to_medseg_infer_ends_its_container(
    engine: docker.DockerClient,
    built: tuple[str, str],
    project: Path,
    writable: Path,
    tmp_path: Path,
) -> None:
    names = cases_of("nifti", project, tmp_path / "in")
    before = {container.id for container in engine.containers.list(all=True)}
    command = [MEDSEG, "infer", "--image", built[1], str(tmp_path / "in"), "-o", str(writable)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert any("[1/3]" in line for line in process.stdout)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert {container.id for container in engine.containers.list(all=True)} == before
    assert 1 <= len(list(writable.rglob("*.nii.gz"))) < len(names)


def test_the_variables_of_the_package_specification(
    engine: docker.DockerClient,
    images: Images,
    built: tuple[str, str],
    project: Path,
    expected: Path,
    writable: Path,
    tmp_path: Path,
) -> None:
    """On the base image: with them a mounted model needs no image of its own."""
    other = {**hippocampus_task(), "Reference_Modality": "image"}
    broken = copy.deepcopy(other)
    conditions = '{"selections": [{"name": "MR", "conditions": {"PatientName": "x"}}]}'
    broken["Modalities"]["image"]["Rules_Text"] = conditions
    file = tmp_path / "tasks.yaml"
    file.write_text(yaml.safe_dump({"tasks": {"One": broken, "The Other": other}}))
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "app.json").write_text("own\n")
    (tmp_path / "logs").mkdir(mode=0o777)
    (tmp_path / "logs").chmod(0o777)
    (tmp_path / "export").mkdir()
    (tmp_path / "export").chmod(0o777)
    options = hardened(UID, UID)
    del options["init"]
    options |= {
        "network_mode": "none",
        "environment": {
            "HOLOSCAN_INPUT_PATH": "/data/in",
            "HOLOSCAN_OUTPUT_PATH": "/data/out",
            "HOLOSCAN_MODEL_PATH": "/data/models",
            "HOLOSCAN_LOGS_PATH": "/data/logs",
            "HOLOSCAN_APP_MANIFEST_PATH": "/data/manifests/app.json",
            "SEGMENTATION_TASK_CONFIG_FILE": "/data/tasks.yaml",
            "SEGMENTATION_TASK_NAME": "The Other",
        },
        "volumes": {
            str(study(project)): {"bind": "/data/in", "mode": "ro"},
            str(writable): {"bind": "/data/out"},
            str(model_file(project).parent): {"bind": "/data/models", "mode": "ro"},
            str(file): {"bind": "/data/tasks.yaml", "mode": "ro"},
            str(tmp_path / "logs"): {"bind": "/data/logs"},
            str(tmp_path / "manifests"): {"bind": "/data/manifests", "mode": "ro"},
        },
    }
    output = engine.containers.run(images.map_dicom, remove=True, stderr=True, **options)
    assert [path.name for path in writable.glob("*.dcm")] == ["The_Other.dcm"], output
    events = (tmp_path / "logs" / "events.jsonl").read_text().splitlines()
    assert json.loads(events[-1])["event"] == "result"
    shown = engine.containers.run(images.map_dicom, ["show"], remove=True, **options).decode()
    assert shown.startswith("--- app.json\nown\n")
    with pytest.raises(docker.errors.ContainerError) as caught:
        engine.containers.run(images.map_dicom, ["export"], remove=True, **options)
    assert b"there is no /var/run/holoscan/export to export to: mount" in caught.value.stderr
    options["volumes"][str(tmp_path / "export")] = {"bind": "/var/run/holoscan/export"}
    engine.containers.run(images.map_dicom, ["export"], remove=True, **options)
    assert (tmp_path / "export/config/app.json").read_text() == "own\n"
    assert (tmp_path / "export/config/tasks.yaml").is_file()
    assert (tmp_path / "export/models/model.ts").is_file()
    # what goes wrong in the SDK's own operators
    for path in writable.glob("*.dcm"):
        path.unlink()
    options["environment"]["SEGMENTATION_TASK_NAME"] = "One"
    with pytest.raises(docker.errors.ContainerError) as caught:
        engine.containers.run(images.map_dicom, remove=True, **options)
    assert b"Traceback" not in caught.value.stderr
    assert b"error: the series cannot be chosen (NotImplementedError in" in caught.value.stderr
    assert "check the Rules_Text" in (writable / "no-segmentation.txt").read_text()


def test_a_tag_in_a_registry_is_not_overwritten_unasked(
    engine: docker.DockerClient, built: tuple[str, str], project: Path, registry: Registry
) -> None:
    name = f"{registry.host}/by-docker/hippocampus:1.0"
    contexts = project / "docker/Hippocampus"
    for _ in range(2):  # the same again is nothing new
        done = medseg("deploy", "build", contexts / "dicom", "-t", name, "--push")
        assert done.returncode == 0, done.stderr
    done = medseg("deploy", "build", contexts / "nifti", "-t", name, "--push")
    assert done.returncode == 1
    assert "exists in its registry and is another image" in done.stderr
    before = engine.images.get_registry_data(name).id
    done = medseg("deploy", "build", contexts / "nifti", "-t", name, "--push", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert engine.images.get_registry_data(name).id != before


def test_the_commands_of_the_guide(
    engine: docker.DockerClient, images: Images, project: Path, tmp_path: Path
) -> None:
    """Each as it stands there, with names that exist; the images are built already."""
    text = (PROJECT / "docs/containers.md").read_text()
    blocks = re.findall(r"```(\w*)\n(.*?)```", text, re.S)
    (task,) = [block for kind, block in blocks if kind == "yaml"]
    (tmp_path / "Segmentation_Task.yaml").write_text(task)
    assert load_segmentation_task(tmp_path / "Segmentation_Task.yaml").name == "Spleen"
    own = {"tasks": {"Spleen": hippocampus_task()}}
    (tmp_path / "Segmentation_Task.yaml").write_text(yaml.safe_dump(own))
    shutil.copyfile(model_file(project), tmp_path / "model.ts")
    shutil.copytree(study(project), tmp_path / "STUDY")
    (five,) = [block for _, block in blocks if block.startswith("./build.sh images\n")]
    (by_hand,) = [block for _, block in blocks if "--cap-drop" in block]
    _, *commands = five.replace("spleen:1.0", "medseg-test/spleen:1.0").strip().splitlines()
    assert len(commands) == 4
    commands.append(by_hand.replace("spleen:1.0", "medseg-test/spleen:1.0").replace("RESULT", "R"))
    for command in commands:
        command = command.replace(".venv/bin/medseg", MEDSEG)
        done = subprocess.run(
            ["bash", "-ec", command], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, command + done.stdout + done.stderr
    assert (tmp_path / "RESULT/Spleen.dcm").is_file()
    assert (tmp_path / "R/Spleen.dcm").is_file()


# --- bad input ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        once_more({"destination": "{registry}/Hippocampus:1"}, "is no image name"),
        once_more({"destination": "{registry}/hippocampus"}, "has no tag"),
        ({"destination": "localhost:1/hippocampus:1"}, "localhost:1 cannot be reached"),
        once_more({"model_file": "task.yaml"}, "truncated, damaged or not TorchScript"),
        once_more({"segmentation_task_file": "other.yaml"}, "do not match the model's labels"),
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


@pytest.mark.parametrize(
    ("password", "accepted"), [("right", True), ("wrong", False), once_more("", False)]
)
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


def unreadable(folder: Path, source: Path) -> None:
    shutil.copytree(source, folder)
    path = next(folder.iterdir())
    path.chmod(0)
    if os.getuid() == 0:
        os.chown(path, 0, 0)


def no_dicom(folder: Path, source: Path) -> None:
    folder.mkdir()
    (folder / "readme.txt").write_text("nothing here")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (none_fits, "has no series that fits the rules of modality image; its image series: CT"),
        (two_fit, "has 2 series that fit the rules of modality image"),
        (no_dicom, "holds no DICOM files"),
        (unreadable, "cannot be opened: it belongs to another user"),
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
