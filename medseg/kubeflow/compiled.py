"""The compiled pipelines: writing them from ``medseg.pipelines``, reading what they take."""

from __future__ import annotations

import difflib
import importlib
import json
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from medseg.kubeflow.settings import load_settings
from medseg.project import UserError, atomic_file

_TYPES: dict[str, tuple[type, ...]] = {
    "STRING": (str,),
    "NUMBER_INTEGER": (int,),
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": (bool,),
    "LIST": (list,),
    "STRUCT": (dict,),
}
"""KFP's parameter types and the Python values that they take."""

PLATFORM_PARAMETERS = (
    "pvc_name",
    "image",
    "cpu",
    "memory",
    "gpu_count",
    "gpu_type",
    "node_selector",
)
"""Parameters that every pipeline takes beside its own and its ``<name>_secret``s."""


@dataclass(frozen=True)
class Parameter:
    """An input of a compiled pipeline.

    Attributes:
        name: Its name.
        type: KFP's parameter type, such as ``STRING``.
        description: What it means.
        required: Whether a run must give it.
        default: Its value where a run does not.
    """

    name: str
    type: str
    description: str
    required: bool
    default: Any = None

    @property
    def for_platform(self) -> bool:
        """Whether it says where stages run, so that it matters on a cluster only."""
        return self.name in PLATFORM_PARAMETERS or self.name.endswith("_secret")

    def check(self, value: Any) -> Any:
        """The value, if it is of the parameter's type; text is read as the type's notation.

        Raises:
            UserError: It is of another type.
        """
        if isinstance(value, str) and self.type != "STRING":
            try:
                value = json.loads(value)
            except ValueError:
                value = {"True": True, "False": False}.get(value, value)
        elif self.type == "STRING" and isinstance(value, int | float):
            value = str(value)
        wanted = _TYPES[self.type]
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            kind = {"STRUCT": "JSON object", "LIST": "JSON list"}.get(
                self.type, self.type.lower().replace("number_", "")
            )
            raise UserError(f"parameter {self.name}: {value!r} is not a {kind}.")
        return value


@dataclass(frozen=True)
class CompiledPipeline:
    """A pipeline as users upload it.

    Attributes:
        name: Its file name without the ending.
        kfp_name: Its name inside KFP.
        path: The YAML file.
        description: What it does.
        parameters: Its inputs by name: required ones, optional ones, the platform's.
        stages: Names of all components in it.
    """

    name: str
    kfp_name: str
    path: Path
    description: str
    parameters: dict[str, Parameter]
    stages: tuple[str, ...]

    def arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        """Checks a run's arguments.

        Args:
            given: Values by parameter name, as from a JSON file or the command line.

        Returns:
            The values with their right types.

        Raises:
            UserError: An argument is unknown, missing or of the wrong type.
        """
        for name in given:
            if name not in self.parameters:
                hint = _hint(name, self.parameters)
                raise UserError(
                    f"pipeline {self.name} has no parameter {name!r}{hint}; "
                    f"'medseg pipelines {self.name}' lists them."
                )
        missing = [p.name for p in self.parameters.values() if p.required and p.name not in given]
        if missing:
            raise UserError(
                f"pipeline {self.name} needs {', '.join(missing)}: "
                f"give it with -p {missing[0]}=… or in the file of --args."
            )
        return {name: self.parameters[name].check(value) for name, value in given.items()}


def compiled_folder() -> Path:
    """The folder of the compiled pipelines that came with this package."""
    return Path(str(resources.files("medseg.compiled")))


def pipeline_names(folder: Path | None = None) -> list[str]:
    """The names of all compiled pipelines."""
    return sorted(path.stem for path in (folder or compiled_folder()).glob("*.yaml"))


def read_pipeline(name: str, folder: Path | None = None) -> CompiledPipeline:
    """Reads one compiled pipeline.

    Args:
        name: Its name, such as ``train``, or the YAML file of one of your own.
        folder: Where to look for a name; by default the pipelines of this package.

    Raises:
        UserError: There is no such pipeline, or the file holds none.
    """
    folder = folder or compiled_folder()
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        raise UserError(
            f"there is no pipeline {name!r}{_hint(name, pipeline_names(folder))}; "
            "'medseg pipelines' lists them."
        )
    try:
        spec = read_yaml(path)[0]
        info, executors = spec["pipelineInfo"], tuple(spec["deploymentSpec"]["executors"])
    except (yaml.YAMLError, UnicodeDecodeError, IndexError, KeyError, TypeError):
        raise UserError(f"{path} is no compiled pipeline: give a file that KFP compiled.") from None
    inputs = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    parameters = [
        Parameter(
            name=key,
            type=value["parameterType"],
            description=value.get("description", ""),
            required=not value.get("isOptional", False),
            default=_default(value),
        )
        for key, value in inputs.items()
    ]
    return CompiledPipeline(
        name=path.stem,
        kfp_name=info["name"],
        path=path,
        description=info.get("description", ""),
        parameters={
            p.name: p
            for p in sorted(parameters, key=lambda p: (not p.required, p.for_platform, p.name))
        },
        stages=executors,
    )


def read_yaml(path: Path) -> list[dict[str, Any]]:
    """The documents of a compiled pipeline: its specification and the platform's."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with path.open(encoding="utf-8") as file:
        return list(yaml.load_all(file, Loader=loader))


def compile_pipelines(folder: Path) -> list[Path]:
    """Compiles every pipeline of ``medseg.pipelines`` with the site's settings.

    Args:
        folder: Where the YAML files go; those of the project's pipelines that are gone are removed.

    Returns:
        The files, one for each module of ``medseg.pipelines``.

    Raises:
        UserError: The settings are wrong, or name a stage that does not exist.
    """
    from kfp import compiler

    stages = importlib.import_module("medseg.components").__all__
    for stage in load_settings().stages:
        if stage not in stages:
            raise UserError(
                f"the platform settings name no stage: {stage!r}{_hint(stage, stages)}."
            )
    paths = []
    for module in pkgutil.iter_modules(importlib.import_module("medseg.pipelines").__path__):
        pipeline = getattr(importlib.import_module(f"medseg.pipelines.{module.name}"), module.name)
        path = folder / f"{module.name}.yaml"
        with atomic_file(path) as temporary:
            compiler.Compiler().compile(pipeline, str(temporary))
        paths.append(path)
    for path in folder.glob("*.yaml"):
        # only what an earlier version of this project has compiled: the folder may hold more
        text = path.read_text(encoding="utf-8", errors="replace")
        if path not in paths and text.startswith("# PIPELINE DEFINITION\n# Name: medseg-"):
            path.unlink()
    return paths


def _default(definition: dict[str, Any]) -> Any:
    value = definition.get("defaultValue")
    if definition["parameterType"] == "NUMBER_INTEGER" and value is not None:
        return int(value)  # KFP writes every number as a double
    return value


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
