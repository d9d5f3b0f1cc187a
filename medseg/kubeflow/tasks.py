"""Runs and their tasks as people know them: stages in order, loops' values, attempts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from medseg.kubeflow.naming import Naming
from medseg.kubeflow.workflow import EXECUTOR, FINISHED, Step, read_workflow

# drivers, executors, the root, loops, conditions and handlers are KFP's own steps
_OWN_STEP = re.compile(
    r"(root|executor|iteration-\w+|.*-driver|.*\.onExit|"
    r"(for-loop|condition|condition-branches|exit-handler)-\d+)(\(.*\))?"
)
_LAST = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Task:
    """A stage of a run; also a step of Kubeflow's own where that failed or does not start.

    Attributes:
        name: Its display name.
        state: KFP's word, such as ``RUNNING``; ``PENDING`` until its container starts.
        value: The values of the loops around it, such as ``fold 2`` or ``shard 1 of 3``.
        attempts: How often it was begun.
        started: When it started, if it has.
        finished: When it ended, if it has.
        waits_since: When its pod was asked for, where that has not started.
        reason: Why it failed, why it does not start, or why it was begun again, in a sentence.
        id: What it is known by at every look at the run.
        nodes: The identifiers of its attempts in the workflow.
        own: Whether it is a step of Kubeflow's own.
    """

    name: str
    state: str
    value: str = ""
    attempts: int = 1
    started: datetime | None = None
    finished: datetime | None = None
    waits_since: datetime | None = None
    reason: str = ""
    id: str = ""
    nodes: tuple[str, ...] = ()
    own: bool = False

    @property
    def title(self) -> str:
        """Its name with the loops' values."""
        return f"{self.name} {self.value}".strip()


@dataclass(frozen=True)
class Run:
    """A run on the cluster.

    Attributes:
        id: Its identifier.
        name: Its name in the UI.
        state: KFP's word, such as ``RUNNING``; ``CANCELED`` where somebody ended it, which KFP
            itself calls failed.
        created: When it was created.
        error: Why it failed, as far as KFP knows.
        tasks: Its tasks, in the order of their start.
        url: Its page in the UI.
        stages: The names of its pipeline's stages, also of those to come, as far as known.
        now: The time on Kubeflow's clock, when this was so.
    """

    id: str
    name: str
    state: str
    created: datetime | None
    error: str
    url: str
    tasks: tuple[Task, ...] = ()
    stages: tuple[str, ...] = ()
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def finished(self) -> bool:
        """Whether it has ended, well or badly."""
        return self.state in FINISHED


def read_run(run: Any, naming: Naming, url: str) -> Run:
    """A run, from KFP's answer.

    Args:
        run: The answer (``V2beta1Run``).
        naming: The names in its pipeline.
        url: Its page in the UI.
    """
    history = run.state_history or []
    ended_by_hand = min(
        (each.update_time or _LAST for each in history if each.state == "CANCELING"), default=None
    )
    details = (run.run_details.task_details if run.run_details else None) or []
    tasks = _read_tasks(details, naming)
    state = run.state or "PENDING"
    if ended_by_hand is not None:
        state = "CANCELED" if state == "FAILED" else state
        tasks = [
            replace(task, state="CANCELED")
            if task.state == "FAILED" and (task.finished or _LAST) >= ended_by_hand
            else task
            for task in tasks
            if not task.own
        ]
    return Run(
        id=run.run_id,
        name=run.display_name or run.run_id,
        state=state,
        created=run.created_at,
        error=message(run.error),
        tasks=tuple(tasks),
        url=url,
        stages=naming.stages,
    )


def message(error: Any) -> str:
    """The text of an error of KFP's, or empty."""
    return str(error.message or "") if error else ""


def _time(value: datetime | None) -> datetime | None:
    """A time of KFP's, which writes the year 1970 where there is none."""
    return value if value is not None and value.year > 1970 else None


def _read_tasks(details: list[Any], naming: Naming) -> list[Task]:
    root = read_workflow(details)
    if root is None:
        names = enumerate(_read_names(details, naming))
        return _in_order((task, (number,)) for number, task in names)
    found = []
    for step in root.walk():
        place = tuple(each for name in step.path for each in _iteration(name))
        if step.is_stage:
            found.append((_stage(step, naming), place, step))
        elif _is_trouble(step):
            found.append((_own_step(step, naming), place, step))
    titles = Counter(task.title for task, _, _ in found)
    return _in_order(
        (task if titles[task.title] == 1 else _with_group(task, step, naming), place)
        for task, place, step in found
    )


def _in_order(tasks: Iterable[tuple[Task, tuple[int, ...]]]) -> list[Task]:
    by_start = sorted(tasks, key=lambda pair: (pair[0].started or _LAST, pair[1], pair[0].id))
    return [task for task, _ in by_start]


def _iteration(name: str) -> tuple[int, ...]:
    match = re.search(r"\((\d+):", name)
    return (int(match[1]),) if match else ()


def _stage(step: Step, naming: Naming) -> Task:
    executor = step.children[EXECUTOR]
    record = step.record or executor.record or executor.last_try
    state = (record and record.state) or "PENDING"
    if executor.last_try is not None and executor.last_try.state == "PENDING":
        state = "PENDING"
    task = _task(step, record, state, naming)
    return _with_pods(task, executor)


def _is_trouble(step: Step) -> bool:
    """Whether a step of KFP's own failed by itself, or does not start."""
    if step.is_driver:
        pending = step.last_try is not None and step.last_try.state == "PENDING"
        return pending or step.state == "FAILED"
    within = [each for each in step.walk() if each is not step]
    return (
        step.is_group
        and step.state == "FAILED"
        and not any(each.state == "FAILED" or _is_trouble(each) for each in within)
    )


def _own_step(step: Step, naming: Naming) -> Task:
    state = step.state if step.state == "FAILED" or not step.is_driver else "PENDING"
    task = replace(_task(step, step.record, state, naming), own=True)
    return _with_pods(task, step) if step.is_driver else task


def _with_pods(task: Task, step: Step) -> Task:
    last = step.last_try
    since = _time(last.start_time) if last is not None and task.state == "PENDING" else None
    nodes = tuple(step.pods)
    return replace(task, attempts=len(nodes), nodes=nodes, waits_since=since)


def _task(step: Step, record: Any, state: str, naming: Naming) -> Task:
    name, value = naming.of(step)
    if name in ("root", "") or step.parent is None:
        name = "start of the run"
    return Task(
        name=name,
        value=value,
        state=state,
        started=_time(record and record.start_time),
        finished=_time(record.end_time) if record and state in FINISHED else None,
        reason=message(record and record.error),
        id="/".join(step.path),
    )


def _with_group(task: Task, step: Step, naming: Naming) -> Task:
    """Another stage has its name: the group that it lies in tells them apart."""
    around = step.parent
    while around is not None and (around.iteration or around.name.startswith("iteration-")):
        around = around.parent
    if around is None or around.parent is None or around.name == "root":
        return task
    return replace(task, name=f"{naming.of(around)[0]}/{task.name}")


def _read_names(details: list[Any], naming: Naming) -> list[Task]:
    """The tasks of a server that does not say how they belong together."""
    names = {detail.display_name or "" for detail in details}
    # where the server lists drivers, what has none is the workflow itself
    prepared = {
        name for name in names if f"{name}-driver" in names and not _OWN_STEP.fullmatch(name)
    }
    tasks = []
    for number, detail in enumerate(details):
        name = detail.display_name or ""
        attempt = re.fullmatch(r"(.+)\(\d+\)", name)
        if (
            not name
            or _OWN_STEP.fullmatch(name)
            or (attempt and attempt[1] in names)
            or (prepared and name not in prepared)
            or naming.group(name)
        ):
            continue
        state = detail.state or "PENDING"
        tasks.append(
            Task(
                name=name,
                state=state,
                started=_time(detail.start_time),
                finished=_time(detail.end_time) if state in FINISHED else None,
                reason=message(detail.error),
                id=f"{name}#{detail.task_id or number}",
            )
        )
    return tasks
