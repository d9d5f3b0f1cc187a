"""What a pipeline costs on a cluster in pods, by a small model of KFP's drivers; and its names."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from medseg import components
from medseg.kubeflow.compiled import compiled_folder, pipeline_names, read_yaml
from tests.conftest import PROJECT

RUNS = {"lifecycle": 39, "train_mlflow": 10, "train_failed": 10, "dicom_to_nifti_shards": 18}
RUNS |= {"docker_build": 7, "nifti_to_dicom": 3}
"""Runs of a real Kubeflow Pipelines 2.17, and their pods (but replaced ones)."""


NODE = "workflows.argoproj.io/node-name"


@dataclass
class Node:
    """A task of a run.

    Attributes:
        tasks: What it holds; None for a stage.
        iterations: Of a loop: the tasks of each.
    """

    tasks: dict[str, Node] | None = None
    iterations: list[Node] = field(default_factory=list)

    def pods(self) -> int:
        """A driver for each graph, loop, iteration and stage, and the stage's own pod."""
        if self.tasks is None:
            return 2
        if self.iterations:
            return 1 + sum(iteration.pods() for iteration in self.iterations)
        return 1 + sum(task.pods() for task in self.tasks.values())

    def drivers_before(self, stage: str) -> int | None:
        """How many drivers run one after the other before a stage without dependencies starts."""
        if self.tasks is None:
            return None
        for name, task in (self.iterations[0] if self.iterations else self).tasks.items():
            below = 1 if name == stage else task.drivers_before(stage)
            if below is not None:
                return below + 1 + bool(self.iterations)
        return None


def compiled(name: str, **iterations: int) -> Node:
    """A run of a committed pipeline, with so many iterations of the loops of these names."""
    spec = read_yaml(compiled_folder() / f"{name}.yaml")[0]

    def node(component: dict[str, Any], loop: str = "") -> Node:
        if "dag" not in component:
            return Node()
        tasks = {
            key: node(
                spec["components"][task["componentRef"]["name"]],
                task["taskInfo"]["name"] if "parameterIterator" in task else "",
            )
            for key, task in component["dag"]["tasks"].items()
        }
        return Node(tasks, [Node(tasks)] * iterations.get(loop, 1) if loop else [])

    return node(spec["root"])


def recorded(folder: Path) -> Node:
    """The same of a recorded run, from the names of the pods that did the stages' work."""
    root = Node({})
    for task in _json(folder / "workflow.status.json")["status"]["nodes"].values():
        path = re.sub(r"\(\d+\)(?=\.|$)", "", task["name"]).split(".")
        if task["type"] != "Pod" or path[-1] != "executor":
            continue
        at = root
        for part in path[2:-1]:
            if match := re.fullmatch(r"iteration-iterations\((\d+):\d+\)", part):
                at.iterations += [Node({}) for _ in range(len(at.iterations), int(match[1]) + 1)]
                at = at.iterations[int(match[1])]
            elif part not in ("iteration-item", "onExit"):  # a handler's hook is a task beside it
                assert at.tasks is not None
                at = at.tasks.setdefault(part, Node({}))
        at.tasks = None
    return root


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize("run", RUNS)
def test_the_model_counts_as_a_real_kubeflow(real_data: Path, run: str) -> None:
    folder = real_data / "kfp" / run
    assert recorded(folder).pods() == RUNS[run]
    names = [pod["metadata"]["annotations"][NODE] for pod in _json(folder / "pods.json")]
    assert len({re.sub(r"\(\d+\)$", "", name) for name in names}) == RUNS[run]


def test_pods_and_depth() -> None:
    assert compiled("train").pods() <= 8
    assert compiled("lifecycle").pods() <= 34
    assert compiled("train", fold=5).pods() == 4 + 5 * 3 + 1, "handler, notify, loop; five folds"
    assert compiled("dicom_to_nifti", convert=3).pods() == 15
    # about 10 s each: root, handler, loop, iteration, and the stage's own
    assert compiled("train").drivers_before("train") == 5


@pytest.mark.parametrize("name", pipeline_names())
def test_every_group_has_a_name(name: str) -> None:
    spec = read_yaml(compiled_folder() / f"{name}.yaml")[0]
    for part in (spec["root"], *spec["components"].values()):
        tasks = part.get("dag", {}).get("tasks", {})
        names = [task["taskInfo"]["name"] for task in tasks.values()]
        assert len(set(names)) == len(names), "older backends tell tasks apart by their names"
        for key, task in tasks.items():
            shown = task["taskInfo"]["name"]
            assert not re.search(r"^(for-loop|exit-handler|condition)-\d|^medseg-", shown), key
            # KFP before 2.15 looks for whose output is taken by the name that is shown
            takers = json.dumps(tasks)
            assert shown == key or f'"producerTask": "{key}"' not in takers


def test_lifecycle_reads_as_the_readme() -> None:
    spec = read_yaml(compiled_folder() / "lifecycle.yaml")[0]

    def shown(component: str) -> list[str]:
        tasks = spec["components"][component]["dag"]["tasks"]
        order: list[str] = []
        while len(order) < len(tasks):
            order += [
                key
                for key, task in tasks.items()
                if key not in order and set(task.get("dependentTasks", [])) <= set(order)
            ]
        return [tasks[key]["taskInfo"]["name"] for key in order]

    assert [t["taskInfo"]["name"] for t in spec["root"]["dag"]["tasks"].values()] == [
        "stages",
        "notify",
    ]
    assert shown("comp-medseg-lifecycle-stages") == [
        "list-studies",
        "convert",
        "collect-dataset",
        "decide-retraining",
        "retrain",
        "report",
    ]
    assert shown("comp-medseg-retrain") == [
        *("prepare-dataset", "plan-and-preprocess", "prepare-bundle", "train", "validate"),
        *("convert-pt-to-ts", "test-model", "promote"),
    ]


@pytest.mark.parametrize("name", components.__all__)
def test_an_artifact_has_a_file_or_an_address(name: str) -> None:
    spec = getattr(components, name).component_spec
    source = (PROJECT / "components" / f"{name}.py").read_text()
    for output, kind in (spec.outputs or {}).items():
        if "system." in str(kind.type):
            assert f"{output}.uri = " in source or f"{output}.path" in source, output
