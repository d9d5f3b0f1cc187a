"""Images that are pipeline parameters, resolved before a local run in containers."""

from __future__ import annotations

import inspect
import signal
from typing import Any

import pytest
from kfp.local import docker_task_handler

from medseg.kubeflow import local_docker
from medseg.kubeflow.compiled import pipeline_names, read_pipeline, read_yaml
from medseg.kubeflow.local import run_local
from medseg.kubeflow.local_docker import (
    StageAccess,
    mark_stages,
    resolve_images,
    stage_access,
)
from medseg.project import DataRoot, UserError


def images(name: str, **arguments: object) -> dict[str, str]:
    spec = next(iter(read_yaml(read_pipeline(name).path)))
    resolve_images(spec, arguments)
    executors = spec["deploymentSpec"]["executors"]
    return {key: value["container"]["image"] for key, value in executors.items()}


@pytest.mark.parametrize("name", pipeline_names())
def test_no_placeholder_is_left_in_any_pipeline(name: str) -> None:
    found = images(name, image="registry.example.org/stage:1")
    assert found
    assert not any("{{" in image for image in found.values())


def test_a_run_may_name_its_images() -> None:
    found = images("lifecycle", image="registry.example.org/stage:1")
    assert set(found.values()) == {"registry.example.org/stage:1"}  # also inside loops
    found = images("docker_build", image="a/runtime:1", builder_image="a/builder:1")
    assert found["exec-create-docker-context"] == "a/runtime:1"
    assert found["exec-docker-build"] == found["exec-docker-build-2"] == "a/builder:1"
    assert images("inference", image="a/spleen:1") == {"exec-inference": "a/spleen:1"}


def test_an_image_that_another_stage_makes_is_refused() -> None:
    spec = {
        "root": {
            "dag": {
                "tasks": {
                    "a": {
                        "componentRef": {"name": "comp-a"},
                        "inputs": {"parameters": {"image": {"taskOutputParameter": {}}}},
                    }
                }
            }
        },
        "components": {"comp-a": {"executorLabel": "exec-a"}},
        "deploymentSpec": {
            "executors": {"exec-a": {"container": {"image": "{{$.inputs.parameters['image']}}"}}}
        },
    }
    with pytest.raises(UserError, match="the image of stage a is only known while"):
        resolve_images(spec, {})


def test_a_container_component_needs_docker(root: DataRoot) -> None:
    given = {"input_folder_path": "in", "output_folder_path": "out", "image": "a/spleen:1"}
    with pytest.raises(UserError, match="stage inference is a container: run it with --runner"):
        run_local(read_pipeline("inference"), root, given)


def one_stage(image: str, given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """A pipeline of one stage."""
    defined = {key: {"defaultValue": value} for key, value in defaults.items()}
    return {
        "root": {
            "dag": {
                "tasks": {
                    "a": {"componentRef": {"name": "comp-a"}, "inputs": {"parameters": given}}
                }
            }
        },
        "components": {
            "comp-a": {"executorLabel": "exec-a", "inputDefinitions": {"parameters": defined}}
        },
        "deploymentSpec": {"executors": {"exec-a": {"container": {"image": image}}}},
    }


def test_placeholders_in_longer_texts_and_defaults_of_components() -> None:
    image = "{{$.inputs.parameters['registry']}}/{{$.inputs.parameters['name']}}:1"
    constant = "{{$.inputs.parameters['site']}}/group"
    given = {"registry": {"runtimeValue": {"constant": constant}}}
    spec = one_stage(image, given, {"name": "runtime", "registry": "unused"})
    resolve_images(spec, {"site": "a.org"})
    assert spec["deploymentSpec"]["executors"]["exec-a"]["container"]["image"] == (
        "a.org/group/runtime:1"
    )
    with pytest.raises(UserError, match="the image of stage a is only known while"):
        resolve_images(one_stage(image, {}, {"name": "runtime"}), {})


@pytest.mark.parametrize(
    ("pipeline", "stage", "network", "secrets"),
    [
        ("docker_build", "docker-build", True, {"registry"}),
        ("docker_build", "docker-build-2", True, {"registry"}),
        ("lifecycle", "train", True, {"mlflow", "mlflow_artifacts"}),
        ("dicom_to_nifti", "list-studies", True, {"dicomweb"}),
        ("lifecycle", "plan-and-preprocess", False, set()),
        ("convert_pt_to_ts", "convert-pt-to-ts", False, set()),
        ("inference", "inference", False, set()),
    ],
)
def test_a_stage_may_reach_what_its_pipeline_says(
    pipeline: str, stage: str, network: bool, secrets: set[str]
) -> None:
    access = stage_access(read_yaml(read_pipeline(pipeline).path))
    assert access[f"exec-{stage}"] == StageAccess(frozenset(secrets), network)


def test_a_pipeline_without_the_platform_says_nothing() -> None:
    assert stage_access([one_stage("a", {}, {})]) == {"exec-a": StageAccess(network=True)}


@pytest.mark.parametrize(
    ("access", "network", "secrets"),
    [
        (StageAccess(frozenset({"registry"})), "host", {"MEDSEG_REGISTRY_AUTH"}),
        (StageAccess(frozenset({"mlflow"})), "host", {"MLFLOW_TRACKING_TOKEN"}),
        (StageAccess(frozenset({"dicomweb"})), "host", {"MEDSEG_DICOMWEB_PASSWORD"}),
        (StageAccess(network=False), "none", set()),
        (StageAccess(), "host", set()),
    ],
)
def test_a_stage_gets_its_own_secrets_and_network_alone(
    root: DataRoot,
    monkeypatch: pytest.MonkeyPatch,
    access: StageAccess,
    network: str,
    secrets: set[str],
) -> None:
    for name in ("MEDSEG_REGISTRY_AUTH", "MLFLOW_TRACKING_TOKEN", "MEDSEG_DICOMWEB_PASSWORD"):
        monkeypatch.setenv(name, "hidden")
    options = local_docker._stage_options(root, "run-1", access, {"A": "1"})
    assert options["network_mode"] == network
    events = {"MEDSEG_EVENTS": "/mnt/Data/runs/run-1/events.jsonl"}
    assert options["environment"] == {"A": "1", **events, **dict.fromkeys(secrets, "hidden")}


def test_the_sites_authorities_are_where_a_pod_has_them(
    root: DataRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root.path / "hospital.pem").write_text("-")
    monkeypatch.setenv("MEDSEG_CA_FILE", str(root.path / "hospital.pem"))
    _, mount = local_docker._stage_options(root, "run-1", StageAccess(), {})["mounts"]
    assert mount["Source"] == str(root.path / "hospital.pem")
    assert (mount["Target"], mount["ReadOnly"]) == ("/etc/medseg/ca/ca.crt", True)


def test_a_sites_mount_path(root: DataRoot) -> None:
    found = local_docker._stage_options(root, "run-1", StageAccess(), {"MEDSEG_DATA_ROOT": "/data"})
    (mount,) = found["mounts"]
    assert (mount["Source"], mount["Target"]) == (str(root.path), "/data")
    assert found["environment"]["MEDSEG_EVENTS"] == "/data/runs/run-1/events.jsonl"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_stages_are_told_first(number: signal.Signals) -> None:
    order: list[str] = []

    def end(*_: Any) -> None:
        order.append("end")
        raise SystemExit

    before = signal.signal(number, end)
    try:
        with pytest.raises(SystemExit), local_docker._before_the_end(lambda: order.append("tell")):
            signal.raise_signal(number)
        assert order == ["tell", "end"]
        assert signal.getsignal(number) is end
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("name", pipeline_names())
def test_every_stage_carries_the_mark_that_its_access_is_known_by(name: str) -> None:
    documents = read_yaml(read_pipeline(name).path)
    mark_stages(documents[0])
    marks = {
        item["value"]
        for executor in documents[0]["deploymentSpec"]["executors"].values()
        for item in executor["container"]["env"]
        if item["name"] == "MEDSEG_EXECUTOR"
    }
    assert marks == set(stage_access(documents))


def test_kfps_own_function_still_loses_the_exit_status() -> None:
    """When this fails, KFP has mended it: ours (``docker_runner``) can go."""
    source = inspect.getsource(docker_task_handler.run_docker_container)
    assert "auto_remove=True" in source
    assert list(inspect.signature(docker_task_handler.run_docker_container).parameters) == [
        "client",
        "image",
        "command",
        "volumes",
        "container_run_args",
    ]
