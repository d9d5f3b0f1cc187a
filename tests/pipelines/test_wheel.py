"""The wheel in an empty environment: what someone has who only composes and submits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from medseg.kubeflow.compiled import pipeline_names
from medseg.kubeflow.settings import PlatformSettings
from tests.conftest import PROJECT

SETTINGS = {
    "annotated_types",
    "dotenv",
    "lazy_loader",
    "medseg",
    "pydantic",
    "pydantic_core",
    "pydantic_settings",
    "typing_extensions",
    "typing_inspection",
}
"""What a component may load beside KFP: this package, and pydantic for the site's settings."""

MINE = '''
from kfp import compiler, dsl

from medseg.components import plan_and_preprocess, prepare_dataset, train
from medseg.kubeflow.platform import platform_pipeline


@dsl.component(base_image="python:3.12")
def announce(epochs: int):
    """My own component."""
    print(epochs)


@platform_pipeline(name="mine", secrets=("mlflow", "mlflow_artifacts"))
def mine(config_file_path: str, epochs: int = 5):
    """My own composition."""
    prepared = prepare_dataset(config_file_path=config_file_path)
    planned = plan_and_preprocess(config_file_path=config_file_path).after(prepared)
    train(config_file_path=config_file_path).after(planned)


@dsl.pipeline(name="bare")
def bare(config_file_path: str):
    """Without the platform: plain KFP."""
    train(config_file_path=config_file_path)
    announce(epochs=3)


compiler.Compiler().compile(mine, "mine.yaml")
compiler.Compiler().compile(bare, "bare.yaml")
'''


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources (building writes into its folder)."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("medseg", "components", "pipelines", "compiled"):
        shutil.copytree(
            PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".partial*")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, folder)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (file,) = (folder / "dist").glob("*.whl")
    return file


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that holds the wheel and what it asks for, nothing else."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    constraints = PROJECT / "constraints.txt"
    pip = [folder / "bin/pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "-c", constraints, wheel], capture_output=True, text=True)
    if done.returncode != 0 and "CI" not in os.environ and "ConnectionError" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    return folder / "bin/python"


def _loaded(python: Path, code: str, folder: Path) -> set[str]:
    """The modules that some code loads."""
    (folder / "mine.py").write_text(code)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MEDSEG_", "PYTHON"))}
    show = "import runpy, sys; runpy.run_path('mine.py'); print(*sys.modules)"
    done = subprocess.run(
        [python, "-c", show], cwd=folder, env=clean, check=True, capture_output=True, text=True
    )
    return set(done.stdout.splitlines()[-1].split())


def _of(package: str, loaded: set[str]) -> set[str]:
    """The modules directly in a package among those that were loaded."""
    inside = {name.removeprefix(f"{package}.") for name in loaded if name.startswith(f"{package}.")}
    return {name.partition(".")[0] for name in inside}


def _packages(loaded: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names


def test_the_wheel_has_everything(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for folder, package in (("components", "components"), ("pipelines", "pipelines")):
        for path in (PROJECT / folder).glob("*.py"):
            assert f"medseg/{package}/{path.name}" in names
    for name in pipeline_names():
        assert f"medseg/compiled/{name}.yaml" in names
    sources = {f"medseg/{p.relative_to(PROJECT / 'medseg')}" for p in _sources()}
    assert sources <= set(names), sources - set(names)
    assert not [name for name in names if name.startswith(("tests", "components", "build"))]


def _sources() -> list[Path]:
    return [
        path
        for path in (PROJECT / "medseg").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]


def test_nothing_heavy_comes_along(python: Path) -> None:
    script = "import importlib.util as u; print([m for m in %r if u.find_spec(m)])"
    heavy = ["torch", "monai", "nnunetv2", "SimpleITK", "pydicom", "mlflow", "scipy"]
    done = subprocess.run([python, "-c", script % heavy], capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_a_component_loads_no_other(python: Path, tmp_path: Path) -> None:
    """What makes it quick; the seconds stand in ``./build.sh bench overhead``."""
    loaded = _loaded(python, "from medseg.components import train", tmp_path)
    assert _of("medseg.components", loaded) == {"train"}
    assert _of("medseg.pipelines", loaded) == set()
    rooms = {name for name in _of("medseg", loaded) if name != "components"}
    assert rooms == {"kubeflow", "project"}
    kfp = _loaded(python, "import kfp.dsl, kfp.kubernetes", tmp_path)
    assert _packages(loaded) - _packages(kfp) <= SETTINGS


def test_a_users_pipeline_compiles_with_its_components_alone(python: Path, tmp_path: Path) -> None:
    loaded = _loaded(python, MINE, tmp_path)
    assert _of("medseg.components", loaded) == {"plan_and_preprocess", "prepare_dataset", "train"}
    assert _of("medseg.pipelines", loaded) == set()
    pipeline, platform = yaml.safe_load_all((tmp_path / "mine.yaml").read_text())
    assert set(pipeline["deploymentSpec"]["executors"]) == {
        "exec-prepare-dataset",
        "exec-plan-and-preprocess",
        "exec-train",
    }
    inputs = pipeline["root"]["inputDefinitions"]["parameters"]
    assert {"pvc_name", "image", "gpu_count", "mlflow_secret", "epochs"} <= set(inputs)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert all(executor["pvcMount"] for executor in executors.values())
    (bare,) = yaml.safe_load_all((tmp_path / "bare.yaml").read_text())
    image = bare["deploymentSpec"]["executors"]["exec-train"]["container"]["image"]
    assert image == PlatformSettings().image("runtime")


def test_the_command_works(python: Path, tmp_path: Path) -> None:
    command = python.parent / "medseg"
    for arguments in (["pipelines"], ["pipelines", "train"], ["upload", "--help"]):
        done = subprocess.run([command, *arguments], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    (tmp_path / "out").mkdir()
    subprocess.run([command, "compile", "-o", "out"], cwd=tmp_path, check=True, capture_output=True)
    assert sorted(p.stem for p in (tmp_path / "out").glob("*.yaml")) == pipeline_names()


def test_a_component_keeps_its_name_however_it_is_imported(python: Path, tmp_path: Path) -> None:
    script = (
        "from medseg.components.train import train as first\n"
        "from medseg import components\n"
        "from medseg.components import train, validate\n"
        "assert first is train is components.train and callable(validate), components.train\n"
        "try: components.trian\n"
        "except AttributeError as error: print(error)\n"
    )
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "module 'medseg.components' has no attribute 'trian'\n", done.stderr
