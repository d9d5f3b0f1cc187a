"""Pipelines on a cluster, over ``kfp.Client``: upload, submit, schedule, watch, cancel.

Everything that can be wrong is looked for before anything is created: the host, the token, the
rights in the namespace, the arguments, the claim of the volume, the schedule.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from medseg import __version__
from medseg.kubeflow.compiled import CompiledPipeline
from medseg.kubeflow.connection import Api, PassingError
from medseg.kubeflow.logs import read_logs
from medseg.kubeflow.namespace import claim_exists
from medseg.kubeflow.naming import Naming
from medseg.kubeflow.reasons import Reasons
from medseg.kubeflow.schedules import check_schedule
from medseg.kubeflow.server import left_out
from medseg.kubeflow.tasks import Run, read_run
from medseg.project import UserError

EXPERIMENT = "medseg"

_NAMELESS = Naming({}, {})

Note = Callable[[str], None]


@dataclass(frozen=True)
class Version:
    """A version of a pipeline on the cluster.

    Attributes:
        pipeline_id: The pipeline.
        version_id: The version.
        name: Its name: this package's version and the hash of the YAML.
        created: Whether this upload made it; an unchanged pipeline keeps its version.
        url: Its page in the UI.
    """

    pipeline_id: str
    version_id: str
    name: str
    created: bool
    url: str


@dataclass(frozen=True)
class RecurringRun:
    """A schedule on the cluster.

    Attributes:
        id: Its identifier.
        name: Its name in the UI.
        when: The cron expression or the interval.
        enabled: Whether it starts runs.
        url: Its page in the UI.
    """

    id: str
    name: str
    when: str
    enabled: bool
    url: str


class Cluster:
    """A Kubeflow Pipelines installation, seen from one namespace.

    Args:
        host: URL of the API (the UI's URL with ``/pipeline``, or a forwarded port). Default:
            ``KF_PIPELINES_ENDPOINT``, inside a pod the installation's service.
        namespace: The user's namespace. Default: ``MEDSEG_NAMESPACE``, inside a pod the pod's; of a
            single-user installation ``kubeflow``, where its claims and pods are.

    The token is read from the file that ``KF_PIPELINES_SA_TOKEN_PATH`` names (in a Kubeflow
    notebook the mounted one), again at every request, since the cluster renews it. Certificates
    (``REQUESTS_CA_BUNDLE``) and proxies are those of the environment.

    Raises:
        UserError: No host is known, it does not answer or is no Kubeflow, the token is not taken,
            or there is no right to read in the namespace.
    """

    def __init__(self, host: str = "", namespace: str = "") -> None:
        self._api = Api(host, namespace)
        self.host, self.namespace = self._api.host, self._api.namespace
        self._client = self._api.client
        self._own_namespace = self._api.own_namespace or None
        self._specs: dict[tuple[str, str], dict[str, Any]] = {}
        self._reasons: dict[str, Reasons] = {}

    @property
    def server(self) -> dict[str, Any]:
        """What this installation says of itself (``healthz``)."""
        return self._api.server

    @property
    def left_out(self) -> str:
        """What this installation leaves out of what the stages ask for, in a line."""
        return left_out(self._api.server)

    # --- pipelines ---

    def upload(self, pipeline: CompiledPipeline) -> Version:
        """Uploads a pipeline; one that is there already gets a new version, if it has changed.

        Args:
            pipeline: The compiled pipeline.

        Raises:
            UserError: The cluster refused it; what the attempt had created is removed.
        """
        with _all_or_nothing() as undo:
            return self._upload(pipeline, undo)

    def _upload(self, pipeline: CompiledPipeline, undo: Undo) -> Version:
        content = pipeline.path.read_bytes()
        name = f"{__version__}-{hashlib.sha256(content).hexdigest()[:12]}"
        pipeline_id = self._find_pipeline(pipeline.kfp_name)
        if pipeline_id:
            version_id = self._find_version(pipeline_id, name)
            if version_id:
                url = self._api.page("pipelines", f"{pipeline_id}/version/{version_id}")
                return Version(pipeline_id, version_id, name, False, url)
        is_new = not pipeline_id
        if is_new:
            with self._api.call(f"creating the pipeline {pipeline.kfp_name}"):
                created = self._client.pipelines.pipeline_service_create_pipeline(
                    self._api.models.V2beta1Pipeline(
                        display_name=pipeline.kfp_name,
                        name=pipeline.kfp_name,
                        description=pipeline.description,
                        namespace=self._own_namespace,
                    )
                )
            pipeline_id = created.pipeline_id
            undo.append(
                (f"the pipeline {pipeline.kfp_name}", self._remove_pipeline, (pipeline_id,))
            )
        with self._api.call(f"uploading {pipeline.path.name}"):
            version = self._client.upload_pipeline_version(
                str(pipeline.path), name, pipeline_id=pipeline_id, description=pipeline.manual
            )
        version_id = str(version.pipeline_version_id)
        if not is_new:
            undo.append((f"the version {name}", self._remove_version, (pipeline_id, version_id)))
        url = self._api.page("pipelines", f"{pipeline_id}/version/{version_id}")
        return Version(pipeline_id, version_id, name, True, url)

    def _find_pipeline(self, name: str) -> str:
        with self._api.call(f"looking for the pipeline {name}"):
            found = self._client.list_pipelines(
                namespace=self._own_namespace, filter=_named(name), page_size=2
            ).pipelines
        return str(found[0].pipeline_id) if found else ""

    def _find_version(self, pipeline_id: str, name: str) -> str:
        with self._api.call(f"looking for the version {name}"):
            found = self._client.list_pipeline_versions(
                pipeline_id, filter=_named(name), page_size=2
            ).pipeline_versions
        return str(found[0].pipeline_version_id) if found else ""

    def _remove_pipeline(self, pipeline_id: str) -> None:
        with self._api.call("removing a pipeline"):
            self._client.pipelines.pipeline_service_delete_pipeline(pipeline_id, cascade=True)

    def _remove_version(self, pipeline_id: str, version_id: str) -> None:
        with self._api.call("removing a version"):
            self._client.delete_pipeline_version(pipeline_id, version_id)

    def _remove_experiment(self, experiment_id: str) -> None:
        with self._api.call("removing an experiment"):
            self._client.delete_experiment(experiment_id)

    # --- runs ---

    def submit(
        self,
        pipeline: CompiledPipeline,
        arguments: dict[str, Any],
        *,
        experiment: str = EXPERIMENT,
        name: str = "",
        service_account: str = "",
        mlflow_experiment: str = "",
        note: Note = print,
    ) -> Run:
        """Starts a run of a pipeline, which is uploaded first where it is not there yet.

        Args:
            pipeline: The compiled pipeline.
            arguments: Values by parameter name, as for a local run.
            experiment: The experiment; made if needed.
            name: The run's name; default: the pipeline's and the time.
            service_account: The service account of its pods; default: the installation's.
            mlflow_experiment: The MLflow experiment in which Kubeflow's own link to MLflow (from
                KFP 2.17 on) opens its runs; default: the link's.
            note: Told what could not be checked, and where there is no such link.

        Raises:
            UserError: An argument is wrong, the claim does not exist, or the cluster refused it;
                what the attempt had created is removed.
        """
        checked = self._check(pipeline, arguments, note)
        models = self._api.models
        plugins = {"mlflow": {"experiment_name": mlflow_experiment}}
        with _all_or_nothing() as undo:
            version = self._upload(pipeline, undo)
            experiment_id = self._experiment(experiment, undo)
            with self._api.call("starting the run"):
                # kfp's own run_pipeline has no plugins_input
                run = self._client.runs.run_service_create_run(
                    models.V2beta1Run(
                        experiment_id=experiment_id,
                        display_name=name
                        or f"{pipeline.name} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}",
                        pipeline_version_reference=models.V2beta1PipelineVersionReference(
                            pipeline_id=version.pipeline_id,
                            pipeline_version_id=version.version_id,
                        ),
                        runtime_config=models.V2beta1RuntimeConfig(parameters=checked),
                        service_account=service_account or None,
                        plugins_input=plugins if mlflow_experiment else None,
                    )
                )
        problem = _link_problem(run) if mlflow_experiment else ""
        if problem:
            note(f"no run was opened in the MLflow experiment {mlflow_experiment!r}: {problem}.")
        return self._read(run)

    def schedule(
        self,
        pipeline: CompiledPipeline,
        arguments: dict[str, Any],
        *,
        cron: str = "",
        every: str = "",
        experiment: str = EXPERIMENT,
        name: str = "",
        catch_up: bool = False,
        concurrency: int = 1,
        service_account: str = "",
        note: Note = print,
    ) -> RecurringRun:
        """Starts runs of a pipeline again and again.

        Args:
            pipeline: The compiled pipeline; later uploads do not change the schedule.
            arguments: Values by parameter name, as for a local run.
            cron: When, as five fields of crontab or KFP's six (times are the cluster's, mostly
                UTC).
            every: Or how often, such as ``12h``.
            experiment: The experiment; made if needed.
            name: The recurring run's name; default: the pipeline's.
            catch_up: Whether runs that were missed are made up for.
            concurrency: How many of its runs may run at once, 1 to 10.
            service_account: The service account of its pods; default: the installation's.
            note: Told what could not be checked, or was read in another way than it was written.

        Raises:
            UserError: The schedule or an argument is wrong, the name is taken, the claim does not
                exist, or the cluster refused it; what the attempt had created is removed.
        """
        expression, seconds = check_schedule(cron, every, concurrency)
        name = name or pipeline.name
        if expression and len(cron.split()) == 5:
            note(f"cron {cron!r} has five fields: passed on to KFP as {expression!r}.")
        checked = self._check(pipeline, arguments, note)
        if any(other.name == name for other in self.recurring_runs()):
            raise UserError(
                f"there is a recurring run {name!r} already: give another name, "
                "or remove it with 'medseg cancel --schedule ID'."
            )
        with _all_or_nothing() as undo:
            version = self._upload(pipeline, undo)
            experiment_id = self._experiment(experiment, undo)
            with self._api.call("creating the recurring run"):
                created = self._client.create_recurring_run(
                    experiment_id=experiment_id,
                    job_name=name,
                    cron_expression=expression,
                    # text, as the API's model has 64-bit numbers
                    interval_second=seconds and str(seconds),
                    max_concurrency=str(concurrency),
                    no_catchup=not catch_up,
                    params=checked,
                    pipeline_id=version.pipeline_id,
                    version_id=version.version_id,
                    service_account=service_account or None,
                )
        return self._recurring_run(created)

    def _check(
        self, pipeline: CompiledPipeline, arguments: dict[str, Any], note: Note
    ) -> dict[str, Any]:
        checked = pipeline.arguments(arguments)
        if claim := pipeline.claim(checked):
            problem = claim_exists(claim, self.namespace)
            if problem:
                note(f"not checked whether the claim {claim} exists: {problem}.")
        return checked

    def _experiment(self, name: str, undo: Undo) -> str:
        identifier = self._find_experiment(name)
        if not identifier:
            with self._api.call(f"creating the experiment {name}"):
                created = self._client.create_experiment(name, namespace=self._own_namespace)
            identifier = str(created.experiment_id)
            undo.append((f"the experiment {name}", self._remove_experiment, (identifier,)))
        return identifier

    def _find_experiment(self, name: str) -> str:
        with self._api.call(f"looking for the experiment {name}"):
            try:
                found = self._client.get_experiment(
                    experiment_name=name, namespace=self._own_namespace
                )
            except ValueError:  # kfp's answer where there is none
                return ""
        return str(found.experiment_id)

    def runs(self, count: int = 20, experiment: str = "") -> list[Run]:
        """The latest runs, the newest first.

        Args:
            count: How many.
            experiment: Only those of this experiment.
        """
        identifier = self._find_experiment(experiment) if experiment else ""
        if experiment and not identifier:
            raise UserError(f"there is no experiment {experiment!r}.")
        with self._api.call("listing the runs"):
            listed = self._client.list_runs(
                page_size=count,
                sort_by="created_at desc",
                experiment_id=identifier or None,
                namespace=self._own_namespace,
            )
        return [self._read(run) for run in listed.runs or []]

    def run(self, run_id: str) -> Run:
        """One run with its tasks: why they failed, and why they do not start.

        Args:
            run_id: The run.

        Raises:
            UserError: There is no such run.
        """
        answer = self._get(run_id)
        naming = Naming(self._spec(answer), _arguments(answer))
        run = self._read(answer, naming)
        reasons = self._reasons.setdefault(run.id, Reasons(self._api, run.id))
        return reasons.explain(run, naming.parameters)

    def _get(self, run_id: str) -> Any:
        with self._api.call(f"reading the run {run_id}"):
            return self._client.get_run(run_id)

    def _read(self, run: Any, naming: Naming = _NAMELESS) -> Run:
        return read_run(run, naming, self._api.page("runs", run.run_id))

    def _spec(self, run: Any) -> dict[str, Any]:
        """The pipeline of a run; empty where it is gone or may not be read."""
        spec, reference = run.pipeline_spec, run.pipeline_version_reference
        if spec is None and reference and reference.pipeline_version_id:
            key = reference.pipeline_id, reference.pipeline_version_id
            if key not in self._specs:
                self._specs[key] = self._spec_of(*key)
            spec = self._specs[key]
        spec = spec if isinstance(spec, dict) else {}
        return dict(spec.get("pipeline_spec") or spec)

    def _spec_of(self, pipeline_id: str, version_id: str) -> dict[str, Any]:
        try:
            with self._api.call("reading the pipeline"):
                version = self._client.get_pipeline_version(pipeline_id, version_id)
        except UserError:
            return {}
        return version.pipeline_spec or {}

    def logs(
        self, run_id: str, task: str = "", *, everything: bool = False, follow: bool = False
    ) -> Iterator[tuple[str, str]]:
        """What the tasks of a run say: from Kubeflow, where that has nothing from Kubernetes.

        Args:
            run_id: The run.
            task: Only this task: its name, or its title (``train fold 2``).
            everything: Also what Kubeflow's launcher and executor say.
            follow: Goes on until the run (or the task) has ended.

        Yields:
            The task's title and a line of its log, task by task in the order of their start.

        Raises:
            UserError: There is no such run or task, or no log of it can be read.
        """
        yield from read_logs(self._api, lambda: self.run(run_id), task, everything, follow)

    def wait(self, run_id: str, listener: Callable[[Run], None], poll_s: float = 5) -> Run:
        """Waits until a run ends.

        Args:
            run_id: The run.
            listener: Told the run's state at every look.
            poll_s: Seconds between two looks.

        Raises:
            UserError: The cluster did not answer for five looks on end; the run goes on.
        """
        misses = 0
        while True:
            try:
                run = self.run(run_id)
            except UserError as error:
                misses += 1
                if misses == 5 or not isinstance(error, PassingError):
                    raise
            else:
                misses = 0
                listener(run)
                if run.finished:
                    return run
            time.sleep(poll_s)

    def cancel(self, run_id: str) -> None:
        """Ends a run; what its stages have finished is kept.

        Raises:
            UserError: There is no such run, or it has ended.
        """
        run = self._read(self._get(run_id))
        if run.finished:
            raise UserError(f"the run {run_id} has already ended ({run.state.lower()}).")
        with self._api.call(f"ending the run {run_id}"):
            self._client.terminate_run(run_id)

    def recurring_runs(self) -> list[RecurringRun]:
        """All schedules of the namespace."""
        found, token = [], ""
        while True:
            with self._api.call("listing the recurring runs"):
                page = self._client.list_recurring_runs(
                    page_token=token, page_size=100, namespace=self._own_namespace
                )
            found += [self._recurring_run(run) for run in page.recurring_runs or []]
            token = page.next_page_token or ""
            if not token:
                return found

    def cancel_recurring_run(self, recurring_run_id: str) -> None:
        """Removes a schedule, and with it ends a run of it that is under way.

        Raises:
            UserError: There is no such recurring run.
        """
        with self._api.call(f"removing the recurring run {recurring_run_id}"):
            self._client.get_recurring_run(recurring_run_id)
            self._client.delete_recurring_run(recurring_run_id)

    # --- from KFP's objects to ours ---

    def _recurring_run(self, run: Any) -> RecurringRun:
        trigger = run.trigger
        if trigger and trigger.cron_schedule:
            when = trigger.cron_schedule.cron
        else:
            when = f"every {trigger.periodic_schedule.interval_second} s" if trigger else ""
        return RecurringRun(
            id=run.recurring_run_id,
            name=run.display_name,
            when=when,
            enabled=run.mode == "ENABLE",
            url=self._api.page("recurringrun", run.recurring_run_id),
        )


Undo = list[tuple[str, Callable[..., None], tuple[str, ...]]]
"""What was created, and how to remove it."""


@contextlib.contextmanager
def _all_or_nothing() -> Iterator[Undo]:
    """Removes what its block has created, the latest first, where the block fails."""
    undo: Undo = []
    try:
        yield undo
    except BaseException as error:
        left = []
        for what, remove, arguments in reversed(undo):
            try:
                remove(*arguments)
            except UserError:
                left.append(what)
        if left and isinstance(error, UserError):
            raise type(error)(
                f"{error} What it had created could not be removed: {', '.join(left)}."
            ) from None
        raise


def _link_problem(run: Any) -> str:
    """Why Kubeflow's own link to MLflow has opened no run; empty where it has."""
    linked = (run.plugins_output or {}).get("mlflow")
    if linked is None:
        return "this Kubeflow has no link to MLflow (KFP 2.17 or newer with plugins.mlflow set)"
    if linked.state == "PLUGIN_FAILED":
        return str(linked.state_message or "the server says no more").rstrip(".")
    return ""


def _named(name: str) -> str:
    return json.dumps(
        {"predicates": [{"operation": 1, "key": "display_name", "stringValue": name}]}
    )


def _arguments(run: Any) -> dict[str, Any]:
    return dict((run.runtime_config.parameters if run.runtime_config else None) or {})
