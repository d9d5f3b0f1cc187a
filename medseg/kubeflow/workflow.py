"""The workflow behind a run, put together from the flat list of tasks that KFP answers with.

Each task of that list is a node of Argo's workflow: a group, a stage, a driver, an attempt. A task
does not say in which other it lies, nor its own identifier, only its last name and the identifiers
of those that follow it. An identifier is the workflow's name and the FNV-1a hash of the node's
whole name (``Workflow.NodeID`` of Argo), so whole names are found by trying: of a node and each
last name there is, which of them has an identifier that occurs?
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

EXECUTOR = "executor"
"""What KFP calls the node that does a stage's work, inside the stage's own."""

FINISHED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")

_ATTEMPT = re.compile(r"(.+)\((\d+)\)")
_ITERATION = re.compile(r"(.+)\((\d+):.*\)")
_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(eq=False)
class Step:
    """A node of the workflow, with all attempts at it.

    Attributes:
        name: Its last name, such as ``train``.
        parent: What it lies in.
        children: What lies in it, by name.
        nodes: The identifiers of itself, one for each attempt at what it lies in.
        tries: The identifiers of the attempts at itself.
        records: KFP's tasks, by identifier.
    """

    name: str
    parent: Step | None = None
    children: dict[str, Step] = field(default_factory=dict)
    nodes: list[str] = field(default_factory=list)
    tries: list[str] = field(default_factory=list)
    records: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> tuple[str, ...]:
        """The names from the workflow's down to its own."""
        return (*(self.parent.path if self.parent else ()), self.name)

    @property
    def pods(self) -> list[str]:
        """The identifiers of its pods, where it has any: the latest last."""
        return self.tries or self.nodes

    @property
    def record(self) -> Any:
        """KFP's task for its latest attempt as a whole, as far as that is known."""
        known = [self.records[node] for node in self.nodes if node in self.records]
        return known[-1] if known else None

    @property
    def last_try(self) -> Any:
        """KFP's task for its latest attempt itself, as far as that is known."""
        return self.records.get(self.pods[-1]) if self.pods else None

    @property
    def state(self) -> str:
        """KFP's word, or empty."""
        return str((self.record and self.record.state) or "")

    @property
    def is_stage(self) -> bool:
        """Whether it runs a container of the pipeline's own."""
        return EXECUTOR in self.children and not self.children[EXECUTOR].children

    @property
    def is_driver(self) -> bool:
        """Whether it is the pod with which KFP prepares a stage or a group."""
        return (
            self.name.endswith("-driver")
            and not self.children
            and self.parent is not None
            and not self.parent.is_stage
        )

    @property
    def iteration(self) -> tuple[int, int] | None:
        """Of an iteration of a loop its index and how many there are."""
        match = _ITERATION.fullmatch(self.name)
        if match is None or self.parent is None:
            return None
        others = [_ITERATION.fullmatch(name) for name in self.parent.children]
        return int(match[2]), sum(other is not None and other[1] == match[1] for other in others)

    def walk(self) -> Iterator[Step]:
        """Itself and all that lies in it."""
        yield self
        for child in self.children.values():
            yield from child.walk()

    @property
    def is_group(self) -> bool:
        """Whether it only holds others."""
        return bool(self.children) and not self.is_stage


def read_workflow(details: list[Any]) -> Step | None:
    """Puts the tasks of a run together.

    Args:
        details: KFP's ``task_details``.

    Returns:
        The workflow's own node; None where the tasks name no pods, so that they cannot be put
        together.
    """
    known = {child.pod_name for each in details for child in each.child_tasks or []}
    known |= {each.pod_name for each in details}
    known -= {None, ""}
    if not known:
        return None
    names = {each.display_name for each in details if each.display_name}
    workflow = min((name.rpartition("-")[0] for name in known if "-" in name), key=len, default="")
    tree = _Tree(workflow, known, names)
    if not tree.root.children:
        return None
    tree.assign(details)
    return tree.root


class _Tree:
    """The nodes of a workflow while they are being found."""

    def __init__(self, workflow: str, known: set[str], names: set[str]) -> None:
        self.workflow, self.known = workflow, known
        self.root = Step(workflow, nodes=[workflow])
        self.names = {workflow: workflow}  # last names by identifier
        self.hashes = {workflow: _fnv(workflow)}  # of whole names
        self.steps = {workflow: self.root}
        self.inside: dict[str, str] = {}  # the node that a node lies in, or is an attempt at
        self._attempts = sorted({int(m[2]) for m in map(_ATTEMPT.fullmatch, names) if m})
        self._plain = sorted(
            (name for name in names if not self._is_attempt(name, names)), key=_iteration_order
        )
        queue = [workflow]
        while queue:
            node = queue.pop()
            queue += self._attempts_at(node) or self._inside(node)

    def _attempts_at(self, node: str) -> list[str]:
        step, last = self.steps[node], self.names[node]
        found = [self._find(node, f"({k})", f"{last}({k})", step) for k in self._attempts]
        step.tries += filter(None, found)
        return list(filter(None, found))

    def _inside(self, node: str) -> list[str]:
        step, within, absent = self.steps[node], [], ""
        for name in self._plain:
            iteration = _ITERATION.fullmatch(name)
            if iteration and iteration[1] == absent:  # the first one is not here
                continue
            child = step.children.get(name) or Step(name, step)
            found = self._find(node, f".{name}", name, child)
            if found:
                step.children[name] = child
                child.nodes.append(found)
                within.append(found)
            elif iteration and int(iteration[2]) == 0:
                absent = iteration[1]
        return within

    @staticmethod
    def _is_attempt(name: str, names: set[str]) -> bool:
        match = _ATTEMPT.fullmatch(name)
        return match is not None and match[1] in names

    def _find(self, node: str, more: str, name: str, step: Step) -> str:
        """The identifier of the node with a name that goes on so, if there is one."""
        whole = _fnv(more, self.hashes[node])
        found = f"{self.workflow}-{whole}"
        if found not in self.known or found in self.names:
            return ""
        self.names[found], self.hashes[found], self.steps[found] = name, whole, step
        self.inside[found] = node
        return found

    def assign(self, details: list[Any]) -> None:
        """Finds out which node each task is."""
        left = []
        for each in details:
            node = self._node_of(each)
            if node and node not in self.steps[node].records:
                self.steps[node].records[node] = each
            else:
                left.append(each)
        self._assign_last(left)

    def _assign_last(self, left: list[Any]) -> None:
        """Finds out which node the tasks are that none follow, by state and time."""
        pairs = []
        for node, step in self.steps.items():
            if node in step.records or node not in self.inside:
                continue
            around = self.steps[self.inside[node]].records.get(self.inside[node])
            for each in left:
                if each.display_name == self.names[node]:
                    pairs.append((_unlikeness(each, around, step.pods, node), node, each))
        taken: set[int] = set()
        for _, node, each in sorted(pairs, key=lambda pair: pair[0]):
            records = self.steps[node].records
            if node not in records and id(each) not in taken:
                records[node] = each
                taken.add(id(each))

    def _node_of(self, detail: Any) -> str:
        name = detail.display_name
        if detail.pod_name in self.names:
            return str(detail.pod_name)
        for child in detail.child_tasks or []:
            around = self.inside.get(child.pod_name or "", "")
            if around and self.names[around] == name:
                return around
            beside = f"{self.workflow}-{_fnv(f'.{name}', self.hashes[around])}" if around else ""
            if beside in self.names:
                return beside
        return self.workflow if name == self.workflow else ""


def _unlikeness(detail: Any, around: Any, tries: list[str], node: str) -> tuple[bool, float]:
    """How badly a task would be this attempt at what lies around it."""
    if around is None:
        return True, 0.0
    if node != tries[-1]:
        wrong = detail.state != "FAILED"
    else:
        wrong = around.state in FINISHED and detail.state != around.state
    which = "start_time" if node == tries[0] else "end_time"
    times = [getattr(each, which) or _NEVER for each in (detail, around)]
    return wrong, abs((times[0] - times[1]).total_seconds())


def _iteration_order(name: str) -> tuple[str, int]:
    match = _ITERATION.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, -1)


def _fnv(text: str, state: int = 0x811C9DC5) -> int:
    for byte in text.encode():
        state = ((state ^ byte) * 0x01000193) & 0xFFFFFFFF
    return state
