"""What ``platform_pipeline`` gives to tasks, leaves alone and refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler, dsl

from medseg import components
from medseg.kubeflow.compiled import read_pipeline
from medseg.kubeflow.platform import platform_arguments, platform_pipeline
from medseg.project import UserError

Executors = dict[str, Any]


@dsl.component(base_image="python:3.12", install_kfp_package=False)
def mine(text: str = "") -> str:
    """My own component."""
    return text


def _compile(body: Callable[..., Any], folder: Path, **more: Any) -> Executors:
    pipeline = platform_pipeline(name="own", **more)(body)
    compiler.Compiler().compile(pipeline, str(folder / "own.yaml"))
    spec, _ = yaml.safe_load_all((folder / "own.yaml").read_text())
    return {
        name.removeprefix("exec-"): executor["container"]
        for name, executor in spec["deploymentSpec"]["executors"].items()
    }


def test_what_a_task_has_already_stays(tmp_path: Path) -> None:
    def body(image_to_run: str):
        mine().set_cpu_limit("100m").set_memory_limit("64Mi")
        components.inference(
            image=image_to_run, input_folder_path="in", output_folder_path="out"
        ).set_accelerator_type("amd.com/gpu").set_accelerator_limit(2)
        components.report(config_file_path="c", run="r").set_container_image("report:1").set_retry(
            7
        )

    found = _compile(body, tmp_path, secrets=("mlflow", "mlflow_artifacts"))
    assert found["mine"]["image"] == "python:3.12"
    assert found["mine"]["resources"]["resourceCpuLimit"] == "100m"
    assert found["mine"]["resources"]["resourceMemoryLimit"] == "64Mi"
    assert "resourceMemoryRequest" not in found["mine"]["resources"], "ours would be more"
    assert found["inference"]["image"] == "{{$.inputs.parameters['image']}}"
    assert found["inference"]["resources"]["accelerator"]["resourceCount"] == "2"
    assert found["report"]["image"] == "report:1"
    assert "'pipelinechannel--memory'" in found["report"]["resources"]["resourceMemoryLimit"]
    assert read_pipeline(str(tmp_path / "own.yaml")).requests["memory"] == ("1Gi", "inference")
    spec, _ = yaml.safe_load_all((tmp_path / "own.yaml").read_text())
    assert spec["root"]["dag"]["tasks"]["report"]["retryPolicy"]["maxRetryCount"] == 7


def test_a_forgotten_secret(tmp_path: Path) -> None:
    def body(config_file_path: str):
        components.train(config_file_path=config_file_path)

    with pytest.raises(UserError, match="the stage train reads the Secret mlflow: add 'mlflow' to"):
        _compile(body, tmp_path)


@pytest.mark.parametrize("kind", ["ParallelFor", "If", "ExitHandler"])
def test_a_task_directly_in_a_group(tmp_path: Path, kind: str) -> None:
    def body(texts: list[str], text: str):
        done = mine(text="done")
        groups = {
            "ParallelFor": lambda: dsl.ParallelFor(texts),
            "If": lambda: dsl.If(text == "a"),
            "ExitHandler": lambda: dsl.ExitHandler(done),
        }
        with groups[kind]():
            mine(text=text)

    with pytest.raises(
        UserError, match=rf"pipeline own: mine-2 stands directly inside dsl\.{kind}, .* call that"
    ):
        _compile(body, tmp_path)


@pytest.mark.parametrize("kind", ["ParallelFor", "If"])
def test_a_pipeline_of_its_own_in_a_group(tmp_path: Path, kind: str) -> None:
    @platform_pipeline(name="inner")
    def inner(text: str):
        mine(text=text)

    def body(texts: list[str], text: str):
        with dsl.ParallelFor(texts) if kind == "ParallelFor" else dsl.If(text == "a"):
            inner(text=text, **platform_arguments())

    _compile(body, tmp_path)
    spec, _ = yaml.safe_load_all((tmp_path / "own.yaml").read_text())
    passed = spec["components"]["comp-inner"]["inputDefinitions"]["parameters"]
    assert {"cpu", "memory", "pvc_name", "gpu_count", "node_selector"} <= set(passed)
    (group,) = spec["root"]["dag"]["tasks"].values()
    given = {name.removeprefix("pipelinechannel--") for name in group["inputs"]["parameters"]}
    assert {"cpu", "memory", "pvc_name", "gpu_count", "node_selector"} <= given


def test_arguments_of_no_platform(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only inside a platform_pipeline"):
        platform_arguments()

    def body(config_file_path: str):
        mine(**platform_arguments("mlflow"))

    with pytest.raises(UserError, match=r"platform_arguments\('mlflow'\): the pipeline around it"):
        _compile(body, tmp_path)
