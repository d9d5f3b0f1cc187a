"""Flatter graphs: a loop or an exit handler around one pipeline *is* that pipeline.

KFP compiles ``with dsl.ParallelFor(…)`` and ``with dsl.ExitHandler(…)`` to a group of tasks. A
stage cannot stand in a group directly (kubeflow/pipelines#12617), so ours hold one task, a
pipeline; on a cluster each of the two layers costs a driver's pod and ten seconds. Here the group's
task takes the pipeline itself as its component, which to the engine is the same kind of graph.
"""

from __future__ import annotations

import re
from typing import Any

_GROUP = re.compile(r"comp-(for-loop|exit-handler)-\d+")


def merge_wrappers(spec: Any) -> None:
    """Takes out the groups of a pipeline that only wrap one nested pipeline.

    A group that holds more, hands results on, or computes with its item stays as it is.

    Args:
        spec: The pipeline's ``PipelineSpec``; changed in place.
    """
    merged = []
    for dag in (spec.root.dag, *(part.dag for part in spec.components.values())):
        for task in dag.tasks.values():
            name = task.component_ref.name
            if _GROUP.fullmatch(name) and _merge(spec, task):
                merged.append(name)
    used = {
        task.component_ref.name
        for part in (spec.root, *spec.components.values())
        for task in part.dag.tasks.values()
    }
    for name in merged:
        if name not in used:
            del spec.components[name]


def _merge(spec: Any, task: Any) -> bool:
    group = spec.components[task.component_ref.name]
    inner = list(group.dag.tasks.values())
    if len(inner) != 1 or group.HasField("output_definitions"):
        return False
    wrapped = spec.components[inner[0].component_ref.name]
    inputs = _inputs(task, inner[0]) if wrapped.HasField("dag") else None
    if inputs is None:
        return False
    item = task.parameter_iterator.item_input
    items = task.parameter_iterator.items.input_parameter
    if items:  # the list stands beside the pipeline's own inputs, as it does in a group
        inputs[items] = task.inputs.parameters[items]
        wrapped.input_definitions.parameters[items].CopyFrom(
            group.input_definitions.parameters[items]
        )
        wrapped.input_definitions.parameters[items].is_optional = True
    for name, value in inner[0].inputs.parameters.items():
        if item and value.component_input_parameter == item:
            task.parameter_iterator.item_input = name
    changed = type(task.inputs)()
    for name, value in inputs.items():
        changed.parameters[name].CopyFrom(value)
    task.inputs.CopyFrom(changed)
    task.component_ref.name = inner[0].component_ref.name
    return True


def _inputs(task: Any, inner: Any) -> dict[str, Any] | None:
    """The inputs of the pipeline in a group, seen from around it; None where that cannot be."""
    is_plain = not (
        inner.HasField("parameter_iterator")
        or inner.HasField("trigger_policy")
        or inner.inputs.artifacts
        or task.inputs.artifacts
    )
    item = task.parameter_iterator.item_input
    takes_item = [
        name
        for name, value in inner.inputs.parameters.items()
        if item and value.component_input_parameter == item
    ]
    if not is_plain or len(takes_item) != bool(item):
        return None
    inputs = {}
    for name, value in inner.inputs.parameters.items():
        source = value.component_input_parameter
        if value.parameter_expression_selector or "$.inputs" in str(value.runtime_value):
            return None
        if name in takes_item:
            continue
        inputs[name] = task.inputs.parameters[source] if source else value
        # a local run takes such a name for the item
        if item and inputs[name].component_input_parameter in takes_item:
            return None
    return inputs
