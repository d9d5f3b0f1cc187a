"""The logs of a run's stages: what a stage says, without what Kubeflow says around it.

KFP's API serves a log while its pod runs and from the archive afterwards, always as a whole: the
``follow`` that its address takes is not looked at. Its pages, which are what a site shows outside,
do not hand that address on, but have one of their own. Where KFP has nothing, Kubernetes is asked.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from medseg.kubeflow.connection import Api, PassingError
from medseg.kubeflow.namespace import core_api, pod_log, run_pods
from medseg.kubeflow.tasks import Run, Task
from medseg.kubeflow.workflow import EXECUTOR, FINISHED
from medseg.project import UserError

LONGEST_LINE = 64 * 1024
_HEAD, _TAIL = 256 * 1024, 256 * 1024

# of the launcher and the driver (glog), of the executor (Python's logging), of Argo
_LAUNCHER = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+\s+\d+ [\w.]+\.go:\d+\] ?(.*)")
_EXECUTOR = re.compile(r"\[KFP Executor [\d\-]+ [\d:,]+ (\w+)\]: ?(.*)")
_ARGO = re.compile(r"time=(?:\"[^\"]*\"|\S+) level=\w+ msg=.* argo=true\b.*")
_LOUD = ("WARNING", "ERROR", "CRITICAL")

# the template is a part of a pod's name; which one a stage has depends on its retries
_TEMPLATES = (
    *("retry-system-container-impl", "system-container-impl"),
    *("system-container-driver", "system-dag-driver"),
)


_OF_API = "apis/v1alpha1/runs/{run}/nodes/{pod}/log"
_OF_PAGES = "k8s/pod/logs?podname={pod}&runid={run}&podnamespace={namespace}"


class NoLogError(UserError):
    """There is no log: the pod has none yet, or it is gone and the archive has none."""


class NotStartedError(NoLogError):
    """There is no log yet."""


@dataclass(frozen=True)
class LastWords:
    """What the end of a log says about a failure.

    Attributes:
        reason: The stage's own sentence, or the last error that it shows; may be empty.
        killed: Whether something killed its process.
        memory: The memory limit that the executor was told of, if it was.
        kubeflow: The last that Kubeflow's own launcher or driver says; may be empty.
    """

    reason: str = ""
    killed: bool = False
    memory: str = ""
    kubeflow: str = ""


class Logs:
    """The logs of a run's pods.

    Args:
        api: The installation.
        run_id: The run.
    """

    def __init__(self, api: Api, run_id: str) -> None:
        self._api, self._run_id = api, run_id
        self._doors = [_OF_API, _OF_PAGES]
        self._templates = list(_TEMPLATES)
        self._pods: dict[str, str] = {}
        self._read: dict[str, int] = {}
        self._own: dict[str, OwnLines] = {}

    def lines(self, node: str, *, ended: bool = True, everything: bool = False) -> Iterator[str]:
        """The log of a pod, without what was read before; it is never held as a whole.

        Args:
            node: The pod's identifier in the workflow.
            ended: Whether nothing will be added to it: else a last line without an end is left for
                the next time.
            everything: Also what Kubeflow says.

        Yields:
            Its lines, without their ends.

        Raises:
            NoLogError: There is none (yet, or any more).
            UserError: It may not be read.
        """
        before, count = self._read.get(node, 0), 0
        shown = self._own.setdefault(node, OwnLines())
        for line, whole in _split(self._chunks(node)):
            if _ARGO.fullmatch(line):  # these are in the pod's log and not in the archive's
                continue
            count += 1
            if count <= before:
                continue
            if not (whole or ended):
                break
            self._read[node] = count
            own = line if everything else shown(line)
            if own is not None:
                yield own

    def last_words(self, node: str) -> LastWords:
        """What a pod's log says about its failure.

        Args:
            node: The pod's identifier in the workflow.

        Raises:
            NoLogError: There is none (yet, or any more).
            UserError: It may not be read.
        """
        head, tail = bytearray(), bytearray()
        for chunk in self._chunks(node):
            head += chunk[: max(_HEAD - len(head), 0)]
            tail += chunk
            if len(tail) > 4 * _TAIL:
                del tail[:-_TAIL]
        return last_words(_text(head), _text(tail[-_TAIL:]))

    def tasks(self) -> list[Task]:
        """The run's stages as far as Kubernetes has their pods, where Kubeflow does not name them.

        Raises:
            UserError: Kubernetes cannot be reached, or refuses.
        """
        with core_api() as connection:
            pods, _ = run_pods(connection, self._run_id, self._api.namespace)
        self._pods = {key: pod["metadata"]["name"] for key, pod in pods.items()}
        found: dict[str, Task] = {}
        for key, pod in sorted(pods.items(), key=_created):
            marks = pod["metadata"].get("annotations") or {}
            # Argo writes workflow.root.….task.executor
            parts = marks.get("workflows.argoproj.io/node-name", "").split(".")
            if len(parts) < 2 or not parts[-1].startswith(EXECUTOR):
                continue
            name = re.sub(r"\(\d+\)$", "", parts[-2])
            before = found[name].nodes if name in found else ()
            state = pod.get("status", {}).get("phase", "Pending").upper()
            found[name] = Task(name, state, nodes=(*before, key))
        return list(found.values())

    def _chunks(self, node: str) -> Iterator[bytes]:
        begun = False
        try:
            for chunk in self._from_kfp(node):
                begun = True
                yield chunk
        except UserError as error:
            if begun:
                raise
            refused = error
        else:
            return
        try:
            yield from self._from_kubernetes(node)
        except NotStartedError:
            raise
        except UserError as error:
            if isinstance(refused, NoLogError):
                raise refused from None
            raise UserError(f"{str(refused).rstrip('.')}, and {error}") from None

    def _from_kfp(self, node: str) -> Iterator[bytes]:
        workflow, _, number = node.rpartition("-")
        names = {each: f"{workflow}-{each}-{number}" for each in self._templates} | {"": node}
        for door, (template, pod) in itertools.product(self._doors, names.items()):
            chunks = self._api.read(
                door.format(run=self._run_id, pod=pod, namespace=self._api.own_namespace)
            )
            if chunks is None:
                continue
            # the next pod is mostly of the same kind
            self._doors.sort(key=lambda other: other != door)
            self._templates.sort(key=lambda other: other != template)
            yield from chunks
            return
        raise NoLogError("Kubeflow has no log of it (its pod is gone, and nothing is archived).")

    def _from_kubernetes(self, node: str) -> Iterator[bytes]:
        with core_api() as connection:
            namespace = self._api.namespace
            if node not in self._pods:
                pods, _ = run_pods(connection, self._run_id, namespace)
                self._pods = {key: pod["metadata"]["name"] for key, pod in pods.items()}
            if node not in self._pods:
                raise NoLogError(
                    f"the namespace {namespace} in {connection.cluster} has no pod of it."
                )
            chunks = pod_log(connection, self._pods[node], namespace)
            if chunks is None:
                raise NotStartedError("its pod has not started yet.")
            yield from chunks


def read_logs(
    api: Api, look: Callable[[], Run], wanted: str, everything: bool, follow: bool
) -> Iterator[tuple[str, str]]:
    """What the tasks of a run say (see :meth:`medseg.kubeflow.Cluster.logs`).

    Args:
        api: The installation.
        look: Gives the run as it is now.
        wanted: The task's name or title; empty: all.
        everything: Also what Kubeflow says.
        follow: Goes on until the run (or the task) has ended.
    """
    run = look()
    reading = _Reading(Logs(api, run.id), everything)
    misses = 0
    while True:
        started = time.monotonic()
        try:
            run = look() if reading.begun else run
            over = yield from reading.turn(run, wanted, follow=follow)
        except PassingError:
            misses += 1
            if misses == 5 or not follow:
                raise
        else:
            misses = 0
            if over or run.finished or not follow:
                break
        # each time the whole log is sent
        time.sleep(min(max(2.0, 10 * (time.monotonic() - started)), 60.0))
    if reading.missing and not reading.found:
        raise NoLogError(f"{reading.missing} Its page may show what is kept: {run.url}")


class _Reading:
    """The reading of a run's logs, which may take several turns."""

    def __init__(self, logs: Logs, everything: bool) -> None:
        self._logs, self._everything = logs, everything
        self._done: set[str] = set()
        self.begun, self.found, self.missing = False, False, ""

    def turn(
        self, run: Run, wanted: str, *, follow: bool
    ) -> Generator[tuple[str, str], None, bool]:
        """What is new, and in the end whether the wanted task is over."""
        self.begun = True
        known = run.tasks or self._tasks_of_pods()
        tasks = [task for task in known if _is(wanted, task.name, task.title)]
        to_come = follow and not run.finished and (not run.stages or _is(wanted, *run.stages))
        if not tasks and not to_come:
            raise _no_task(run, [task.title for task in known], wanted, self.missing)
        for task in tasks:
            yield from self._task(task, follow=follow)
        return bool(wanted and tasks) and all(task.state in FINISHED for task in tasks)

    def _task(self, task: Task, *, follow: bool) -> Iterator[tuple[str, str]]:
        """What is new of a task."""
        nodes = task.nodes or self._nodes(task)
        for number, node in enumerate(nodes, 1):
            title = task.title
            if len(nodes) > 1:
                title += f" (attempt {number} of {len(nodes)})"
            ended = task.state in FINISHED or number < len(nodes)
            if node in self._done:
                continue
            if task.state == "PENDING" and number == len(nodes):
                self.found = True
                if not follow:
                    yield title, f"(no log yet: {task.reason or 'its pod has not started.'})"
                continue
            told = number < len(nodes) or task.state != "FAILED" or not task.reason
            try:
                for line in self._logs.lines(node, ended=ended, everything=self._everything):
                    told = told or task.reason in line
                    yield title, line
                self.found = True
                if not told:  # out of memory, evicted
                    yield title, f"({task.reason})"
            except NoLogError as error:
                self.missing = f"there is no log of {title}: {error}"
                if number < len(nodes):
                    yield title, f"(no log: {error})"
            if ended:
                self._done.add(node)

    def _nodes(self, task: Task) -> tuple[str, ...]:
        self.missing = f"Kubeflow does not name the pods of {task.title}."
        alike = [each for each in self._tasks_of_pods() if each.name == task.name]
        return alike[0].nodes if alike and not task.own else ()

    def _tasks_of_pods(self) -> list[Task]:
        try:
            return self._logs.tasks()
        except UserError as error:
            self.missing = f"Kubeflow does not name the pods of the run, and {error}"
            return []


def _is(wanted: str, *names: str) -> bool:
    """Whether a task with these names is wanted, with or without the group that it lies in."""
    known = {*names, *(name.rpartition("/")[2] for name in names)}
    return not wanted or bool({wanted, wanted.replace("_", "-")} & known)


def _no_task(run: Run, titles: list[str], wanted: str, problem: str) -> UserError:
    if titles:
        return UserError(f"the run {run.id} has no task {wanted!r}, only {', '.join(titles)}.")
    reason = problem or "Kubeflow names no tasks of it (yet)."
    return UserError(f"there are no logs of the run {run.id}: {reason} Its page: {run.url}")


class OwnLines:
    """Of a pod's log what its stage says; warnings of libraries are kept."""

    def __init__(self) -> None:
        self._foreign = self._block = False

    def __call__(self, line: str) -> str | None:
        """What to show of the next line; None where it is Kubeflow's."""
        if self._block:  # JSON that the launcher or the executor prints
            self._block = line != "}"
            return None
        executor = _EXECUTOR.fullmatch(line)
        if executor and executor[1] in _LOUD:
            self._foreign = False
            return executor[2]
        after, self._foreign = (
            self._foreign,
            bool(executor or _LAUNCHER.fullmatch(line) or _ARGO.fullmatch(line)),
        )
        self._block = line.endswith("{") if self._foreign else after and line == "{"
        return None if self._foreign or self._block else line


def own_lines(lines: Iterable[str]) -> Iterator[str]:
    """Of a pod's log what its stage says.

    Args:
        lines: The log.
    """
    return (shown for shown in map(OwnLines(), lines) if shown is not None)


def last_words(head: str, tail: str) -> LastWords:
    """What a log says about a failure.

    Args:
        head: Its beginning, as far as the executor's input.
        tail: Its end.
    """
    own = [line for line in own_lines(tail.splitlines()) if line.strip()]
    launcher = [match for match in map(_LAUNCHER.fullmatch, tail.splitlines()) if match]
    errors = [index for index, line in enumerate(own) if line.startswith("error: ")]
    traces = [index for index, line in enumerate(own) if line.startswith("Traceback (most recent")]
    reason = ""
    if errors and (not traces or errors[-1] > traces[-1]):
        reason = own[errors[-1]].removeprefix("error: ")
    elif traces:
        after = [line for line in own[traces[-1] + 1 :] if not line.startswith(" ")]
        reason = after[0] if after else ""
    killed = any("signal: killed" in line[1] for line in launcher)
    fatal = [line[1].strip() for line in launcher if line[0][0] == "F"]
    memory = re.search(r'"memory_limit": "([^"{]+)"', head)
    return LastWords(
        reason, killed and not reason, memory[1] if memory else "", fatal[-1] if fatal else ""
    )


def _split(chunks: Iterable[bytes]) -> Iterator[tuple[str, bool]]:
    """Lines, and whether each has its end."""
    left = b""
    for chunk in chunks:
        *whole, left = (left + chunk).split(b"\n")
        for line in whole:
            yield _text(line), True
        while len(left) > LONGEST_LINE:  # a log without ends of lines must not fill the memory
            yield _text(left[:LONGEST_LINE]), True
            left = left[LONGEST_LINE:]
    if left:
        yield _text(left), False


def _created(item: tuple[str, dict[str, Any]]) -> str:
    return str(item[1]["metadata"].get("creationTimestamp", ""))


def _text(content: bytes | bytearray) -> str:
    return bytes(content).decode("utf-8", errors="replace").rstrip("\r")
