"""What people call a step of a run: the display name, and the values of the loops around it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from medseg.kubeflow.workflow import Step

Known = dict[str, tuple[Any, bool]]
"""Values of parameters by name, and whether the run's own arguments gave them."""


@dataclass(frozen=True)
class Naming:
    """The names in a run's pipeline.

    Attributes:
        spec: The pipeline, as KFP keeps it; empty where it is gone: steps then keep the names that
            the workflow has.
        arguments: The run's arguments.
    """

    spec: dict[str, Any]
    arguments: dict[str, Any]

    @property
    def parameters(self) -> set[str]:
        """The parameters that the pipeline has, as far as that is known."""
        return set(_definitions(self.spec.get("root", {}))) | set(self.arguments)

    @property
    def stages(self) -> tuple[str, ...]:
        """The display names of the pipeline's stages, as far as they are known."""
        return tuple(
            task.get("taskInfo", {}).get("name") or name
            for name, task in self._all_tasks()
            if "executorLabel" in self._component(task)
        )

    def group(self, name: str) -> bool:
        """Whether a task of this name only holds others."""
        return any(
            "dag" in self._component(task) for other, task in self._all_tasks() if other == name
        )

    def _all_tasks(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for component in (self.spec.get("root", {}), *self._components.values()):
            yield from _tasks(component).items()

    def of(self, step: Step) -> tuple[str, str]:
        """The display name of a step, and the loops' values for it, such as ``fold 2``.

        Args:
            step: The step; for a driver the name of what it prepares is given.
        """
        component = self.spec.get("root", {})
        known: Known = {
            name: (definition["defaultValue"], False)
            for name, definition in _definitions(component).items()
            if "defaultValue" in definition
        }
        known |= {name: (value, True) for name, value in self.arguments.items()}
        name, loop, values = step.name, _Loop(), []
        for each in _line(step):
            task = _tasks(component).get(each.name.removesuffix("-driver"))
            name = each.name.removesuffix("-driver") if each.is_driver else each.name
            if each.iteration:
                values.append(loop.value(*each.iteration))
            elif task:
                name = task.get("taskInfo", {}).get("name") or name
                component = self._component(task)
                known = _bind(task, component, known)
                loop = _Loop.of(task, component, known)
        return name, ", ".join(filter(None, values))

    @property
    def _components(self) -> dict[str, Any]:
        return dict(self.spec.get("components", {}))

    def _component(self, task: dict[str, Any]) -> dict[str, Any]:
        return dict(self._components.get(task.get("componentRef", {}).get("name"), {}))


@dataclass(frozen=True)
class _Loop:
    """A loop over values: what one of them is called, and as far as known which they are."""

    word: str = ""
    items: tuple[Any, ...] = ()
    given: bool = False

    @classmethod
    def of(cls, task: dict[str, Any], component: dict[str, Any], known: Known) -> _Loop:
        """The loop that a task is, if it is one."""
        iterator = task.get("parameterIterator") or {}
        given_items: tuple[Any, bool] = ((), False)
        source = iterator.get("items", {})
        if "raw" in source:
            with contextlib.suppress(ValueError):
                given_items = json.loads(source["raw"]), True
        elif "inputParameter" in source:
            given_items = known.get(source["inputParameter"], given_items)
        items, given = given_items
        word = ""
        for inner in _tasks(component).values():
            for name, value in inner.get("inputs", {}).get("parameters", {}).items():
                if value.get("componentInputParameter") == iterator.get("itemInput", ""):
                    word = word or name
        return cls(word, tuple(items) if isinstance(items, list) else (), given)

    def value(self, index: int, count: int) -> str:
        """What to write beside the stages of an iteration; nothing where that says nothing."""
        item = self.items[index] if len(self.items) == count else None
        if isinstance(item, str | int | float) and (count > 1 or self.given):
            number = isinstance(item, float) and item.is_integer()
            return f"{self.word} {int(item) if number else item}".strip()
        return f"{self.word} {index + 1} of {count}".strip() if count > 1 else ""


def _line(step: Step) -> list[Step]:
    """A step and what it lies in, from the outside, without the workflow itself."""
    return [*(_line(step.parent) if step.parent else ()), *([step] if step.parent else ())]


def _tasks(component: dict[str, Any]) -> dict[str, Any]:
    return dict(component.get("dag", {}).get("tasks", {}))


def _definitions(component: dict[str, Any]) -> dict[str, Any]:
    return dict(component.get("inputDefinitions", {}).get("parameters", {}))


def _bind(task: dict[str, Any], component: dict[str, Any], known: Known) -> Known:
    """The values inside a task, from those around it."""
    inside: Known = {
        name: (definition["defaultValue"], False)
        for name, definition in _definitions(component).items()
        if "defaultValue" in definition
    }
    for name, source in task.get("inputs", {}).get("parameters", {}).items():
        inside.pop(name, None)
        constant = source.get("runtimeValue", {}).get("constant")
        if source.get("componentInputParameter") in known:
            inside[name] = known[source["componentInputParameter"]]
        elif constant is not None and "{{" not in str(constant):
            inside[name] = constant, False
    return inside
