"""Groups that only wrap a pipeline are gone from what is compiled; what runs is the same."""

from pathlib import Path
from typing import Any

import yaml
from kfp import compiler, dsl

from medseg.kubeflow import platform_arguments, platform_pipeline, stage_component
from medseg.kubeflow.compiled import read_pipeline
from medseg.kubeflow.local import run_local
from medseg.project import DataRoot


@stage_component()
def note(text: str, number: int) -> list[int]:
    """Writes a line.

    Args:
        text: The line.
        number: Its number.
    """
    from medseg.project import DataRoot

    with (DataRoot.from_environment().path / "lines.txt").open("a") as file:
        file.write(f"{text} {number}\n")
    return [number, number + 1]


@platform_pipeline(name="medseg-one")
def one(text: str, number: int, config: str = "none") -> None:
    note(text=text, number=number)


@platform_pipeline(name="medseg-several")
def several(text: str, numbers: list[int]) -> None:
    with dsl.ParallelFor(numbers, name="numbers", parallelism=1) as number:
        one(text=text, number=number, **platform_arguments())
    first = note(text="first", number=10)
    with dsl.ParallelFor(first.output, name="outputs") as number:
        one(text="output", number=number, **platform_arguments())
    with dsl.ParallelFor([7, 8], name="given") as number:
        one(text="given", number=number, **platform_arguments())


@platform_pipeline(name="medseg-all")
def all_of_it(text: str, numbers: list[int] = [1, 2]) -> None:  # noqa: B006
    last = note(text="last", number=0)
    with dsl.ExitHandler(last, name="work"):
        several(text=text, numbers=numbers, **platform_arguments())


def _compiled(pipeline: Any, folder: Path) -> tuple[dict[str, Any], Path]:
    path = folder / "pipeline.yaml"
    compiler.Compiler().compile(pipeline, str(path))
    return next(yaml.safe_load_all(path.read_text())), path


def test_merged_groups_run_as_they_did(root: DataRoot, tmp_path: Path) -> None:
    spec, path = _compiled(all_of_it, tmp_path)
    groups = ("comp-for-loop", "comp-exit-handler")
    assert not [name for name in spec["components"] if name.startswith(groups)]
    loops = [
        task
        for task in spec["components"]["comp-medseg-several"]["dag"]["tasks"].values()
        if "parameterIterator" in task
    ]
    assert {task["taskInfo"]["name"] for task in loops} == {"numbers", "outputs", "given"}
    assert {task["parameterIterator"]["itemInput"] for task in loops} == {"number"}
    limits = {task["taskInfo"]["name"]: task.get("iteratorPolicy") for task in loops}
    assert limits["numbers"] == {"parallelismLimit": 1}
    assert run_local(read_pipeline(str(path)), root, {"text": "item"}).succeeded
    lines = (root.path / "lines.txt").read_text().splitlines()
    assert lines[-1] == "last 0"
    assert sorted(lines) == sorted(
        [f"item {n}" for n in (1, 2)]
        + ["first 10", "last 0"]
        + [f"output {n}" for n in (10, 11)]
        + [f"given {n}" for n in (7, 8)]
    )


def test_a_group_that_does_more_stays(tmp_path: Path) -> None:
    @platform_pipeline(name="medseg-two-in-a-loop")
    def two_in_a_loop(numbers: list[int], config: str) -> None:
        with dsl.ParallelFor(numbers) as number:
            before = one(text="a", number=number, **platform_arguments())
            one(text="b", number=number, **platform_arguments()).after(before)

    @platform_pipeline(name="medseg-item-in-a-text")
    def item_in_a_text(numbers: list[int]) -> None:
        with dsl.ParallelFor(numbers) as number:
            one(text=f"number {number}", number=1, **platform_arguments())

    @platform_pipeline(name="medseg-without-item")
    def without_item(numbers: list[int]) -> None:
        with dsl.ParallelFor(numbers):
            one(text="again", number=1, **platform_arguments())

    # a local run would take the parameter for the item
    @platform_pipeline(name="medseg-same-name")
    def same_name(numbers: list[int], number: str) -> None:
        with dsl.ParallelFor(numbers) as item:
            one(text=number, number=item, **platform_arguments())

    for pipeline in (two_in_a_loop, item_in_a_text, without_item, same_name):
        spec, _ = _compiled(pipeline, tmp_path)
        assert "comp-for-loop-1" in spec["components"], pipeline.name
