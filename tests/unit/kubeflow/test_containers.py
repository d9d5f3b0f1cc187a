"""Images that are pipeline parameters, resolved before a local run in containers."""

from __future__ import annotations

import pytest

from medseg.kubeflow.compiled import pipeline_names, read_pipeline, read_yaml
from medseg.kubeflow.containers import resolve_images
from medseg.kubeflow.local import run_local
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
