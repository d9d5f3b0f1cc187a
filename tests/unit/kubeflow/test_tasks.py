"""Runs and tasks from KFP's answers that no recording is of."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from medseg.kubeflow import workflow
from medseg.kubeflow.compiled import compiled_folder
from medseg.kubeflow.naming import Naming
from medseg.kubeflow.tasks import Run, read_run

NAMELESS = Naming({}, {})
START = datetime(2026, 1, 1, tzinfo=UTC)


def _hash(name: str) -> int:
    state = 0x811C9DC5
    for byte in name.encode():
        state = (state ^ byte) * 0x01000193 % 2**32
    return state


def _answer(nodes: dict[str, str], state: str = "RUNNING", **more: Any) -> SimpleNamespace:
    """KFP's answer for a workflow, from the states by the nodes' whole names."""
    details = []
    around = {name: _around(name, nodes) for name in nodes}
    for second, (name, its_state) in enumerate(nodes.items()):
        inside = [other for other in nodes if around[other] == name]
        details.append(
            SimpleNamespace(
                display_name=name.removeprefix(around[name]).removeprefix("."),
                state=its_state,
                start_time=START + timedelta(seconds=second),
                end_time=START + timedelta(seconds=60),
                child_tasks=[SimpleNamespace(pod_name=f"wf-{_hash(each)}") for each in inside],
                pod_name=None,
                error=None,
                task_id=str(second),
            )
        )
    fields: dict[str, Any] = {"created_at": START, "error": None, "state_history": None} | more
    run = SimpleNamespace(task_details=details[::-1])  # in no order
    return SimpleNamespace(run_id="r", display_name="r", state=state, run_details=run, **fields)


def _around(name: str, nodes: dict[str, str]) -> str:
    """The node that another lies in, or is an attempt at."""
    ends = [place for place, letter in enumerate(name) if letter in ".("]
    return next((name[:end] for end in reversed(ends) if name[:end] in nodes), "")


def _read(nodes: dict[str, str], naming: Naming = NAMELESS, **more: Any) -> Run:
    return read_run(_answer(nodes, **more), naming, "page")


def test_a_workflow_without_nodes_for_attempts() -> None:
    """As KFP 2.5 makes them."""
    loop = "wf.root.for-loop-1"
    nodes = dict.fromkeys(
        ["wf", "wf.root-driver", "wf.root", f"{loop}-driver", loop, f"{loop}.iteration-driver"],
        "SUCCEEDED",
    )
    for index in (0, 1):
        around = f"{loop}.iteration-iterations({index}:{index})"
        for name in ("", ".iteration-item-driver", ".iteration-item"):
            nodes[around + name] = "SUCCEEDED"
        for name in ("convert-driver", "convert", "convert.executor"):
            nodes[f"{around}.iteration-item.{name}"] = "SUCCEEDED" if index else "RUNNING"
    run = _read(nodes)
    assert [(task.title, task.state, len(task.nodes)) for task in run.tasks] == [
        ("convert 1 of 2", "RUNNING", 1),
        ("convert 2 of 2", "SUCCEEDED", 1),
    ]


def test_the_names_of_our_own_pipeline() -> None:
    """Whatever groups `train` has, its stage is found, with the fold that it trains."""
    text = (compiled_folder() / "train.yaml").read_text()
    spec = next(iter(yaml.safe_load_all(text)))
    path = _path_to("train", spec["root"], spec["components"])
    nodes = {"wf": "RUNNING", "wf.root": "RUNNING"}
    names = ["wf.root"]
    for part, loop in path:
        names = [f"{name}.{part}" for name in names]
        nodes |= dict.fromkeys(names, "RUNNING")
        if loop:
            names = [f"{name}.iteration-iterations({k}:{k})" for name in names for k in range(3)]
            nodes |= dict.fromkeys(names, "RUNNING")
    nodes |= {f"{name}.executor": "RUNNING" for name in names}
    run = _read(nodes, Naming(spec, {"folds": [4.0, 2.0, 0.0]}))
    assert [task.title for task in run.tasks] == ["train fold 4", "train fold 2", "train fold 0"]
    assert set(run.stages) >= {"train", "notify"}


def _path_to(
    stage: str, component: dict[str, Any], every: dict[str, Any]
) -> list[tuple[str, bool]]:
    for name, task in component.get("dag", {}).get("tasks", {}).items():
        here = (name, "parameterIterator" in task)
        inner = every[task["componentRef"]["name"]]
        if name == stage and "executorLabel" in inner:
            return [here]
        if rest := _path_to(stage, inner, every):
            return [here, *rest]
    return []


def test_two_stages_of_one_name_are_told_apart_by_their_group() -> None:
    nodes = dict.fromkeys(["wf", "wf.root"], "RUNNING")
    for group in ("first", "second"):
        for name in ("", ".train", ".train.executor"):
            nodes[f"wf.root.{group}{name}"] = "RUNNING"
    assert [task.title for task in _read(nodes).tasks] == ["first/train", "second/train"]


def test_a_stage_that_failed_before_the_run_was_cancelled() -> None:
    nodes = dict.fromkeys(["wf", "wf.root", "wf.root.a", "wf.root.a.executor"], "FAILED")
    at = START + timedelta(seconds=61)
    history = [SimpleNamespace(state="CANCELING", update_time=at)]
    run = _read(nodes, state="FAILED", state_history=history)
    assert (run.state, [task.state for task in run.tasks]) == ("CANCELED", ["FAILED"])
    history[0].update_time = START + timedelta(seconds=59)
    run = _read(nodes, state="FAILED", state_history=history)
    assert (run.state, [task.state for task in run.tasks]) == ("CANCELED", ["CANCELED"])


def test_the_start_of_a_run_that_fails() -> None:
    nodes = {"wf": "FAILED", "wf.root-driver": "FAILED"}
    (task,) = _read(nodes, state="FAILED").tasks
    assert (task.title, task.own, task.state) == ("start of the run", True, "FAILED")


def test_odd_answers() -> None:
    assert _read({}).tasks == ()
    answer = _answer(dict.fromkeys(["wf", "wf.root", "wf.root.a", "wf.root.a.executor"], "FAILED"))
    for each in answer.run_details.task_details:
        each.start_time = each.end_time = datetime(1970, 1, 1, tzinfo=UTC)
    (task,) = read_run(answer, NAMELESS, "").tasks
    assert task.started is task.finished is None
    answer = _answer({"wf": "RUNNING", "wf.root": "RUNNING"})
    answer.run_details.task_details[0].child_tasks = [SimpleNamespace(pod_name="other-1")]
    answer.run_details.task_details[1].display_name = None
    assert read_run(answer, Naming({"root": {}}, {}), "").tasks == ()


def test_a_loop_over_many_values_is_put_together_quickly() -> None:
    loop = "wf.root.for-loop-1"
    nodes = dict.fromkeys(["wf", "wf.root", loop], "SUCCEEDED")
    for k in range(100):
        around = f"{loop}.iteration-iterations({k}:{k})"
        for name in ("", ".convert", ".convert.executor"):
            nodes[around + name] = "SUCCEEDED"
    answer = _answer(nodes)
    tried = 0

    def count(*_: Any) -> None:
        nonlocal tried
        tried += 1

    with pytest.MonkeyPatch.context() as patch:
        hashed = workflow._fnv
        patch.setattr(workflow, "_fnv", lambda *given: (count(), hashed(*given))[1])
        tasks = read_run(answer, NAMELESS, "").tasks
    assert [task.value for task in tasks] == [f"{k + 1} of 100" for k in range(100)]
    assert tried < 10 * len(nodes)
