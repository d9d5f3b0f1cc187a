"""The compiled pipelines: what they are, what they take, and whether a run's arguments fit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from medseg.kubeflow.settings import (
    PLATFORM_PARAMETERS,
    REQUESTS,
    PlatformSettings,
    is_more,
    one_volume_twice,
    suits,
)
from medseg.project import UserError, hint
from medseg.project.variables import RUN_ID

_TYPES: dict[str, tuple[type, ...]] = {
    "STRING": (str,),
    "NUMBER_INTEGER": (int,),
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": (bool,),
    "LIST": (list,),
    "STRUCT": (dict,),
}
"""KFP's parameter types and the Python values that they take."""

_SOURCE = re.compile(r"\{\{\$\.inputs\.parameters\['(?:pipelinechannel--)?(\w+)'\]\}\}")
"""A limit that is a parameter of the pipeline."""


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
        if isinstance(value, list) and isinstance(self.default, list):
            for item in value:
                self._check_item(item)
        return value

    def _check_item(self, item: Any) -> None:
        # KFP does not write down what a list holds; its default shows it
        kinds = {type(known) for known in self.default}
        if kinds == {str} and not isinstance(item, str):
            raise UserError(f"parameter {self.name}: {item!r} in the list is no text.")
        if kinds and kinds <= {int, float}:
            is_number = isinstance(item, int | float) and not isinstance(item, bool)
            whole = all(float(known).is_integer() for known in self.default)
            if not is_number or (whole and not float(item).is_integer()):
                kind = "whole number" if whole else "number"
                raise UserError(f"parameter {self.name}: {item!r} in the list is no {kind}.")


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
        mounts: What each stage mounts: name or, in braces, parameter of the claim, the ConfigMap
            and the Secrets; nothing where no stage is a platform pipeline's.
        requests: The most that a stage asks for of ``cpu`` and ``memory``, with the stage.
    """

    name: str
    kfp_name: str
    path: Path
    description: str
    parameters: dict[str, Parameter]
    stages: tuple[str, ...]
    requests: dict[str, tuple[str, str]] = field(default_factory=dict)
    mounts: tuple[tuple[str, ...], ...] = ()

    @property
    def manual(self) -> str:
        """What it does and what it itself takes, as Markdown for KFP's page of the pipeline.

        KFP's form has the parameters' names alone.
        """
        own = (each for each in self.parameters.values() if each.required or not each.for_platform)
        lines = [
            f"- `{each.name}`{' (required)' if each.required else ''}: {each.description}"
            for each in own
        ]
        return "\n".join([self.description, "", *lines])

    def claim(self, given: Mapping[str, Any]) -> str:
        """The claim that a run's stages mount; empty where they mount none.

        Args:
            given: The run's arguments.
        """
        found = ["{pvc_name}" if "{pvc_name}" in names else names[0] for names in self.mounts]
        return self._filled(found[0], given) if found else ""

    def _filled(self, name: str, given: Mapping[str, Any]) -> str:
        parameter = name.strip("{}")
        if name == parameter:
            return name
        default = self.parameters[parameter].default if parameter in self.parameters else ""
        return str(given.get(parameter, default))

    def arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        """Checks a run's arguments.

        Args:
            given: Values by parameter name, as from a JSON file or the command line.

        Returns:
            The values with their right types.

        Raises:
            UserError: An argument is unknown, missing or empty, of the wrong type, nothing that
                Kubernetes takes, or less than a stage asks for.
        """
        for name in given:
            if name not in self.parameters:
                raise UserError(
                    f"pipeline {self.name} has no parameter {name!r}{hint(name, self.parameters)}; "
                    f"'medseg pipelines {self.name}' lists them."
                )
        missing = [
            p.name
            for p in self.parameters.values()
            if p.required and not str(given.get(p.name, "")).strip()
        ]
        if missing:
            raise UserError(
                f"pipeline {self.name} needs {', '.join(missing)}: "
                f"give it with -p {missing[0]}=… or in the file of --args."
            )
        checked = {name: self.parameters[name].check(value) for name, value in given.items()}
        if self.mounts:  # else the names may mean something else
            self._check_platform(checked)
        return checked

    def _check_platform(self, checked: dict[str, Any]) -> None:
        for name, value in checked.items():
            if self.parameters[name].for_platform and not suits(name, value):
                raise UserError(
                    f"parameter {name}: {value!r} is nothing that fits there: write it like "
                    f"{_example(name)}."
                )
        for names in self.mounts:
            called = {name.strip("{}"): self._filled(name, checked) for name in names}
            if finding := one_volume_twice(called):
                raise UserError(f"pipeline {self.name}: {finding}.")
        for name, (request, stage) in self.requests.items():
            if name in checked and is_more(request, checked[name]):
                raise UserError(
                    f"parameter {name}: {checked[name]} is less than the {request} that the stage "
                    f"{stage} asks for: give at least that, or compile with a lower {name}_request."
                )


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
            f"there is no pipeline {name!r}{hint(name, pipeline_names(folder))}; "
            "'medseg pipelines' lists them."
        )
    try:
        spec, *platforms = read_yaml(path)
        return _pipeline(path, spec, platforms)
    except (yaml.YAMLError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
        raise UserError(f"{path} is no compiled pipeline: give a file that KFP compiled.") from None


def read_yaml(path: Path) -> list[dict[str, Any]]:
    """The documents of a compiled pipeline: its specification and the platform's."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with path.open(encoding="utf-8") as file:
        return list(yaml.load_all(file, Loader=loader))


def _pipeline(
    path: Path, spec: dict[str, Any], platforms: list[dict[str, Any]]
) -> CompiledPipeline:
    info, executors = spec["pipelineInfo"], spec["deploymentSpec"]["executors"]
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
        if value["parameterType"] in _TYPES
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
        stages=tuple(executors),
        requests=_requests(executors),
        mounts=tuple(sorted(set(_mounts(platforms)))),
    )


_MOUNTED = (
    ("pvcMount", "pvcNameParameter"),
    ("configMapAsVolume", "configMapNameParameter"),
    ("secretAsVolume", "secretNameParameter"),
)


def _mounts(platforms: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """What the stages of platform pipelines mount, the claim first."""
    for platform in platforms:
        kubernetes = platform["platforms"].get("kubernetes", {})
        for settings in kubernetes.get("deploymentSpec", {}).get("executors", {}).values():
            if not any(each["name"] == RUN_ID.name for each in settings.get("fieldPathAsEnv", ())):
                continue
            found = [volume[key] for kind, key in _MOUNTED for volume in settings.get(kind, ())]
            yield tuple(
                f"{{{each['componentInputParameter']}}}"
                if "componentInputParameter" in each
                else each["runtimeValue"]["constant"]
                for each in found
            )


def _requests(executors: dict[str, Any]) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for label, executor in executors.items():
        resources = executor.get("container", {}).get("resources", {})
        for name in REQUESTS:
            limit = _SOURCE.fullmatch(resources.get(f"resource{name.title()}Limit", ""))
            request = resources.get(f"resource{name.title()}Request", "")
            if limit is None or limit[1] != name or not suits(name, request):
                continue
            if name not in found or is_more(request, found[name][0]):
                found[name] = (request, label.removeprefix("exec-"))
    return found


def _example(name: str) -> str:
    examples = {"node_selector": '{"pool": "gpu"}', "image": "registry.example.org/runtime:1.0"}
    return examples.get(name) or str(PlatformSettings.model_fields[name].default)


def _default(definition: dict[str, Any]) -> Any:
    value = definition.get("defaultValue")
    # KFP writes every number as a double, also inside lists
    if definition["parameterType"] == "NUMBER_INTEGER" and value is not None:
        return int(value)
    if isinstance(value, list):
        return [int(n) if isinstance(n, float) and n.is_integer() else n for n in value]
    return value
