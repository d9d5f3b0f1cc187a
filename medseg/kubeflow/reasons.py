"""Why the tasks of a run failed, or do not start: from their logs, and from their pods."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from medseg.kubeflow.connection import Api
from medseg.kubeflow.logs import Logs, NoLogError
from medseg.kubeflow.namespace import core_api, run_pods
from medseg.kubeflow.pods import Pod, out_of_memory
from medseg.kubeflow.tasks import Run, Task
from medseg.project import UserError

PATIENCE = timedelta(seconds=30)
"""How long a stage may wait before it is said why."""

_KEPT_S = 15  # a look at the pods serves for this long


@dataclass
class _Look:
    """What a look at the pods of a run showed."""

    pods: dict[str, dict[str, Any]]
    events: dict[str, list[dict[str, Any]]]
    problem: str
    until: float


class Reasons:
    """Finds the reasons for a run's tasks; what it has found it does not look for again.

    Args:
        api: The installation.
        run_id: The run.
    """

    def __init__(self, api: Api, run_id: str) -> None:
        self._api, self._run_id = api, run_id
        self._logs = Logs(api, run_id)
        self._found: dict[str, str] = {}
        self._look: _Look | None = None

    def explain(self, run: Run, parameters: set[str]) -> Run:
        """The run with the reasons for its tasks.

        Args:
            run: The run.
            parameters: The parameters of its pipeline, for remedies.
        """
        now = self._api.now()
        tasks = []
        for task in run.tasks:
            reason = task.reason
            if task.state == "FAILED" and not reason:
                reason = self._why_failed(task, run, parameters)
            elif task.waits_since and not run.finished:
                late = now - task.waits_since > PATIENCE
                reason = self._why_waiting(task, parameters) if late else ""
            elif task.state == "RUNNING" and task.attempts > 1:
                reason = self._why_again(task)
            # what starts in time is of no interest
            if not task.own or task.state == "FAILED" or reason:
                tasks.append(replace(task, reason=reason))
        return replace(run, tasks=tuple(tasks), now=now)

    def _why_failed(self, task: Task, run: Run, parameters: set[str]) -> str:
        nodes = task.nodes or self._nodes(task)
        if not nodes:
            step = "it is Kubeflow's own step" if task.own else "Kubeflow does not name its pod"
            return f"{step}: its page says more ({run.url})."
        node = nodes[-1]
        if node not in self._found:
            reason, final = self._read(task, node, run, parameters)
            if not final:
                return reason
            self._found[node] = reason
        return self._found[node]

    def _nodes(self, task: Task) -> tuple[str, ...]:
        """The pods of a task that Kubeflow does not name, as far as Kubernetes can be asked."""
        with contextlib.suppress(UserError):
            for each in () if task.own else self._logs.tasks():
                if each.name == task.name:
                    return each.nodes
        return ()

    def _read(self, task: Task, node: str, run: Run, parameters: set[str]) -> tuple[str, bool]:
        """Why a task failed, and whether a later look could not say more."""
        problem = ""
        words = None
        try:
            words = self._logs.last_words(node)
        except NoLogError:
            problem = "its log is gone"
        except UserError as error:
            problem = str(error).rstrip(".")
        if words and words.reason:
            return words.reason, True
        if words and task.own and words.kubeflow:
            return f"Kubeflow could not prepare it: {words.kubeflow}", True
        look = self._pods()
        if node in look.pods:
            cause, remedy = Pod(look.pods[node], parameters=parameters).why_ended()
            if cause:
                return f"{cause}: {remedy}.", True
        if words and words.killed:
            cause, remedy = out_of_memory(words.memory, parameters)
            return f"it was killed, most likely {cause}: {remedy}.", True
        if words:
            more = f"'medseg logs {run.id} {task.name} --all' shows what Kubeflow says"
            return f"it ended without a message ({words.kubeflow or 'no status'}): {more}.", True
        return f"{problem}, and so is what it said: its page may say more ({run.url}).", False

    def _why_waiting(self, task: Task, parameters: set[str]) -> str:
        look = self._pods()
        if look.problem:
            return (
                f"it has not started; why is not known, as pods cannot be read: {look.problem} "
                "It takes the right to list pods and events."
            )
        pod = look.pods.get(task.nodes[-1]) if task.nodes else None
        if pod is None:
            return (
                "it has no pod: a quota may be used up, or the kube context leads to another "
                "cluster. Kubeflow's page of the run may say more."
            )
        events = look.events.get(pod["metadata"]["name"], [])
        reason = Pod(pod, events, parameters).why_waiting()
        silent = "it has not started, and Kubernetes does not say why; its page may."
        return reason or silent

    def _why_again(self, task: Task) -> str:
        before = task.nodes[-2]
        if before not in self._found:
            pod = self._pods().pods.get(before)  # a pod that was deleted says nothing any more
            self._found[before] = Pod(pod).why_ended()[0] if pod else ""
        cause = self._found[before]
        return f"attempt {task.attempts - 1} was lost, {cause}." if cause else ""

    def _pods(self) -> _Look:
        if self._look is None or self._look.until < time.monotonic():
            until = time.monotonic() + _KEPT_S
            try:
                with core_api() as connection:
                    pods, events = run_pods(connection, self._run_id, self._api.namespace)
                self._look = _Look(pods, events, "", until)
            except UserError as error:
                self._look = _Look({}, {}, str(error), until)
        return self._look
