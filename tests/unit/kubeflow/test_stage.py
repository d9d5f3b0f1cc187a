"""Components that say what their stages need, the user's own among them."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler, dsl

from medseg.kubeflow import (
    Needs,
    platform_arguments,
    platform_pipeline,
    stage_component,
    stage_container,
)
from medseg.kubeflow.compiled import read_pipeline, read_yaml
from medseg.kubeflow.local_docker import StageAccess, _stage_options, stage_access
from medseg.kubeflow.settings import load_settings
from medseg.project import DataRoot, UserError


@stage_component(
    gpu=True,
    shared_memory=True,
    secrets=("dicomweb",),
    image="registry.site/mine:1",
    memory_request="3Gi",
    time_limit_s=900,
    packages_to_install=["einops"],
)
def own_stage(text: str) -> str:
    """My own component.

    Args:
        text: Something.
    """
    from medseg.project import secret

    return text + secret("dicomweb", "token")


@stage_container(Needs(network=True, image="registry.site/tool:2"))
def own_container(text: str) -> dsl.ContainerSpec:
    """My own container."""
    return dsl.ContainerSpec(image="registry.site/tool:2", command=["tool"], args=[text])


@platform_pipeline(name="own", secrets=("dicomweb",))
def own(text: str):
    """My own pipeline."""
    own_container(text=own_stage(text=text).output)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    compiler.Compiler().compile(own, str(tmp_path / "own.yaml"))
    return tmp_path / "own.yaml"


def test_a_users_component_gets_a_gpu_and_its_secret(file: Path) -> None:
    spec, platform = read_yaml(file)
    container = spec["deploymentSpec"]["executors"]["exec-own-stage"]["container"]
    assert container["image"] == "registry.site/mine:1"
    assert "'einops'" in container["command"][2]
    assert container["resources"]["accelerator"]["resourceCount"]
    assert container["resources"]["resourceMemoryRequest"] == "3Gi"
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    (secret,) = executors["exec-own-stage"]["secretAsVolume"]
    assert secret["secretNameParameter"] == {"componentInputParameter": "dicomweb_secret"}
    assert secret["mountPath"] == "/etc/medseg/secrets/dicomweb"
    assert executors["exec-own-stage"]["activeDeadlineSeconds"] == "900"
    assert "secretAsVolume" not in executors["exec-own-container"]
    parameters = read_pipeline(str(file)).parameters
    assert parameters["gpu_count"].description == "GPUs of a stage that uses one (own_stage)."
    assert parameters["dicomweb_secret"].default == "medseg-dicomweb"


def test_a_users_component_gets_its_secret_in_a_local_container(
    file: Path, root: DataRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSEG_DICOMWEB_TOKEN", "open-barley")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "another's")
    access = stage_access(read_yaml(file))
    options = _stage_options(root, "run-1", access["exec-own-stage"], {})
    assert options["environment"].items() >= {("MEDSEG_DICOMWEB_TOKEN", "open-barley")}
    assert "MLFLOW_TRACKING_TOKEN" not in options["environment"]
    assert access["exec-own-container"] == StageAccess(network=True)


def test_the_stages_of_nested_pipelines_are_named_too(tmp_path: Path) -> None:
    @platform_pipeline(name="outer", secrets=("dicomweb",))
    def outer(text: str):
        own(text=text, **platform_arguments("dicomweb"))

    compiler.Compiler().compile(outer, str(tmp_path / "outer.yaml"))
    gpu_count = read_pipeline(str(tmp_path / "outer.yaml")).parameters["gpu_count"]
    assert gpu_count.description == "GPUs of a stage that uses one (own_stage)."


def test_the_site_goes_over_what_a_component_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = {"stages": {"own_stage": {"memory_request": "5Gi"}}}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(site))
    monkeypatch.setenv("MEDSEG_PLATFORM_FILE", str(tmp_path / "site.yaml"))
    again: Any = platform_pipeline(name="own", secrets=("dicomweb",))(own.pipeline_func.__wrapped__)
    compiler.Compiler().compile(again, str(tmp_path / "own.yaml"))
    spec, platform = read_yaml(tmp_path / "own.yaml")
    container = spec["deploymentSpec"]["executors"]["exec-own-stage"]["container"]
    assert container["resources"]["resourceMemoryRequest"] == "5Gi"
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert executors["exec-own-stage"]["activeDeadlineSeconds"] == "900"


def test_two_components_of_one_name_keep_their_own_needs(tmp_path: Path) -> None:
    def make(gpu: bool) -> Any:
        @stage_component(gpu=gpu)
        def twin():
            """One of two."""

        return twin

    with_gpu, without = make(True), make(False)

    @platform_pipeline(name="twins")
    def twins():
        with_gpu()
        without()

    compiler.Compiler().compile(twins, str(tmp_path / "twins.yaml"))
    spec = read_yaml(tmp_path / "twins.yaml")[0]
    resources = [e["container"]["resources"] for e in spec["deploymentSpec"]["executors"].values()]
    assert sorted("accelerator" in each for each in resources) == [False, True]


def test_an_unknown_secret() -> None:
    with pytest.raises(UserError, match="no Secret of the kind 's3', only dicomweb, mlflow, "):

        @stage_component(secrets=("s3",))
        def wrong():
            """Wrong."""

    with pytest.raises(UserError, match="no Secret of the kind 's3'"):
        platform_pipeline(name="wrong", secrets=("s3",))(lambda: None)


def test_a_component_of_the_project_runs_in_its_image() -> None:
    @stage_component(image="builder")
    def built():
        """In another image of the project."""

    container = built.component_spec.implementation.container
    assert container.image == load_settings().image("builder")
    assert "pip install" not in " ".join(map(str, container.command))
