"""Pipelines on a cluster, over ``kfp.Client``: upload, submit, schedule, watch, cancel.

Everything that can be wrong is looked for before anything is created: the host, the token, the
rights in the namespace, the arguments, the claim of the volume, the schedule.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medseg import __version__
from medseg.kubeflow.compiled import CompiledPipeline
from medseg.kubeflow.namespace import NAMESPACE_FILE, claim_exists
from medseg.kubeflow.schedules import check_schedule
from medseg.project import UserError

HOST_VARIABLE = "KF_PIPELINES_ENDPOINT"
NAMESPACE_VARIABLE = "MEDSEG_NAMESPACE"
TOKEN_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"  # noqa: S105 - the name of a variable
"""kfp's own variables name the API's URL and the file that holds the token."""

EXPERIMENT = "medseg"
FINISHED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
SINGLE_USER_NAMESPACE = "kubeflow"
"""Where the runs of a single-user installation live."""

# drivers, executors, the root, loops, conditions and handlers are KFP's own steps
_OWN_STEP = re.compile(
    r"(root|executor|iteration-\w+|.*-driver|"
    r"(for-loop|condition|condition-branches|exit-handler)-\d+)(\(.*\))?"
)

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
class Task:
    """A task of a run.

    Attributes:
        name: The stage.
        state: KFP's word, such as ``RUNNING``.
        started: When it started, if it has.
        finished: When it ended, if it has.
        error: Why it failed, as far as KFP knows.
    """

    name: str
    state: str
    started: datetime | None = None
    finished: datetime | None = None
    error: str = ""


@dataclass(frozen=True)
class Run:
    """A run on the cluster.

    Attributes:
        id: Its identifier.
        name: Its name in the UI.
        state: KFP's word, such as ``RUNNING``.
        created: When it was created.
        error: Why it failed, as far as KFP knows.
        tasks: Its tasks, in the order of their start.
        url: Its page in the UI.
    """

    id: str
    name: str
    state: str
    created: datetime | None
    error: str
    url: str
    tasks: tuple[Task, ...] = field(default=())

    @property
    def finished(self) -> bool:
        """Whether it has ended, well or badly."""
        return self.state in FINISHED


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
        self.host = _find_host(host)
        self.namespace = namespace or os.environ.get(NAMESPACE_VARIABLE, "")
        token_file = _find_token_file()
        with _quiet():
            import kfp
            import kfp_server_api
        self._server_api = kfp_server_api
        multi_user = _probe(self.host, token_file)
        self.namespace = self.namespace or (
            _pod_namespace() if multi_user else SINGLE_USER_NAMESPACE
        )
        if not self.namespace:
            raise UserError(
                f"{self.host} serves several users: name your namespace with --namespace."
            )
        # KFP's own namespace: a single-user installation refuses any other
        self._kfp_namespace = self.namespace if multi_user else ""
        with _quiet():
            self._client = kfp.Client(
                host=self.host,
                namespace=self._kfp_namespace or SINGLE_USER_NAMESPACE,
                **_transport(self.host),
                credentials=token_file
                and kfp.client.ServiceAccountTokenVolumeCredentials(str(token_file)),
            )
        # a namespace that an earlier client left in ~/.config/kfp would win over none
        self._client._context_setting["namespace"] = self._kfp_namespace
        with self._api(f"reading in the namespace {self.namespace}"):
            self._client.list_pipelines(page_size=1, namespace=self._kfp_namespace or None)

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
                url = self._url("pipelines", f"{pipeline_id}/version/{version_id}")
                return Version(pipeline_id, version_id, name, False, url)
        is_new = not pipeline_id
        if is_new:
            with self._api(f"creating the pipeline {pipeline.kfp_name}"):
                created = self._client.pipelines.pipeline_service_create_pipeline(
                    self._server_api.V2beta1Pipeline(
                        display_name=pipeline.kfp_name,
                        name=pipeline.kfp_name,
                        description=pipeline.description,
                        namespace=self._kfp_namespace or None,
                    )
                )
            pipeline_id = created.pipeline_id
            undo.append(
                (f"the pipeline {pipeline.kfp_name}", self._remove_pipeline, (pipeline_id,))
            )
        with self._api(f"uploading {pipeline.path.name}"):
            version = self._client.upload_pipeline_version(
                str(pipeline.path), name, pipeline_id=pipeline_id
            )
        version_id = str(version.pipeline_version_id)
        if not is_new:
            undo.append((f"the version {name}", self._remove_version, (pipeline_id, version_id)))
        url = self._url("pipelines", f"{pipeline_id}/version/{version_id}")
        return Version(pipeline_id, version_id, name, True, url)

    def _find_pipeline(self, name: str) -> str:
        with self._api(f"looking for the pipeline {name}"):
            found = self._client.list_pipelines(
                namespace=self._kfp_namespace or None, filter=_named(name), page_size=2
            ).pipelines
        return str(found[0].pipeline_id) if found else ""

    def _find_version(self, pipeline_id: str, name: str) -> str:
        with self._api(f"looking for the version {name}"):
            found = self._client.list_pipeline_versions(
                pipeline_id, filter=_named(name), page_size=2
            ).pipeline_versions
        return str(found[0].pipeline_version_id) if found else ""

    def _remove_pipeline(self, pipeline_id: str) -> None:
        with self._api("removing a pipeline"):
            self._client.pipelines.pipeline_service_delete_pipeline(pipeline_id, cascade=True)

    def _remove_version(self, pipeline_id: str, version_id: str) -> None:
        with self._api("removing a version"):
            self._client.delete_pipeline_version(pipeline_id, version_id)

    def _remove_experiment(self, experiment_id: str) -> None:
        with self._api("removing an experiment"):
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
        note: Note = print,
    ) -> Run:
        """Starts a run of a pipeline, which is uploaded first where it is not there yet.

        Args:
            pipeline: The compiled pipeline.
            arguments: Values by parameter name, as for a local run.
            experiment: The experiment; made if needed.
            name: The run's name; default: the pipeline's and the time.
            service_account: The service account of its pods; default: the installation's.
            note: Told what could not be checked.

        Raises:
            UserError: An argument is wrong, the claim does not exist, or the cluster refused it;
                what the attempt had created is removed.
        """
        checked = self._check(pipeline, arguments, note)
        with _all_or_nothing() as undo:
            version = self._upload(pipeline, undo)
            experiment_id = self._experiment(experiment, undo)
            with self._api("starting the run"):
                run = self._client.run_pipeline(
                    experiment_id=experiment_id,
                    job_name=name or f"{pipeline.name} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}",
                    params=checked,
                    pipeline_id=version.pipeline_id,
                    version_id=version.version_id,
                    service_account=service_account or None,
                )
        return self._run(run)

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
            with self._api("creating the recurring run"):
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
        if "pvc_name" in pipeline.parameters:
            claim = checked.get("pvc_name", pipeline.parameters["pvc_name"].default)
            problem = claim_exists(str(claim), self.namespace)
            if problem:
                note(f"not checked whether the claim {claim} exists: {problem}.")
        return checked

    def _experiment(self, name: str, undo: Undo) -> str:
        identifier = self._find_experiment(name)
        if not identifier:
            with self._api(f"creating the experiment {name}"):
                created = self._client.create_experiment(
                    name, namespace=self._kfp_namespace or None
                )
            identifier = str(created.experiment_id)
            undo.append((f"the experiment {name}", self._remove_experiment, (identifier,)))
        return identifier

    def _find_experiment(self, name: str) -> str:
        with self._api(f"looking for the experiment {name}"):
            try:
                found = self._client.get_experiment(
                    experiment_name=name, namespace=self._kfp_namespace or None
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
        with self._api("listing the runs"):
            listed = self._client.list_runs(
                page_size=count,
                sort_by="created_at desc",
                experiment_id=identifier or None,
                namespace=self._kfp_namespace or None,
            )
        return [self._run(run) for run in listed.runs or []]

    def run(self, run_id: str) -> Run:
        """One run with its tasks.

        Raises:
            UserError: There is no such run.
        """
        with self._api(f"reading the run {run_id}"):
            return self._run(self._client.get_run(run_id))

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
        run = self.run(run_id)
        if run.finished:
            raise UserError(f"the run {run_id} has already ended ({run.state.lower()}).")
        with self._api(f"ending the run {run_id}"):
            self._client.terminate_run(run_id)

    def recurring_runs(self) -> list[RecurringRun]:
        """All schedules of the namespace."""
        found, token = [], ""
        while True:
            with self._api("listing the recurring runs"):
                page = self._client.list_recurring_runs(
                    page_token=token, page_size=100, namespace=self._kfp_namespace or None
                )
            found += [self._recurring_run(run) for run in page.recurring_runs or []]
            token = page.next_page_token or ""
            if not token:
                return found

    def cancel_recurring_run(self, recurring_run_id: str) -> None:
        """Removes a schedule; runs that it has started go on.

        Raises:
            UserError: There is no such recurring run.
        """
        with self._api(f"removing the recurring run {recurring_run_id}"):
            self._client.get_recurring_run(recurring_run_id)
            self._client.delete_recurring_run(recurring_run_id)

    # --- from KFP's objects to ours ---

    def _run(self, run: Any) -> Run:
        details = run.run_details.task_details if run.run_details else None
        tasks = [
            Task(
                name=task.display_name,
                state=task.state or "PENDING",
                started=task.start_time,
                finished=task.end_time if task.state in FINISHED else None,
                error=_message(task.error),
            )
            for task in details or []
            if task.display_name and not _OWN_STEP.fullmatch(task.display_name)
        ]
        last = datetime.max.replace(tzinfo=UTC)
        return Run(
            id=run.run_id,
            name=run.display_name,
            state=run.state or "PENDING",
            created=run.created_at,
            error=_message(run.error),
            tasks=tuple(sorted(tasks, key=lambda task: task.started or last)),
            url=self._url("runs", run.run_id),
        )

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
            url=self._url("recurringrun", run.recurring_run_id),
        )

    def _url(self, kind: str, identifier: str) -> str:
        base = os.environ.get("KF_PIPELINES_UI_ENDPOINT") or self.host
        return f"{base.rstrip('/')}/#/{kind}/details/{identifier}"

    @contextlib.contextmanager
    def _api(self, doing: str) -> Iterator[None]:
        """Frames calls of the API: no chatter, and one sentence for an error."""
        try:
            with _quiet():
                yield
        except self._server_api.ApiException as error:
            raise _explain(error.status, error.body, doing, self.host, self.namespace) from None
        except Exception as error:
            if not _is_connection_error(error):
                raise
            raise PassingError(f"{doing} failed: {self.host} no longer answers.") from None


class PassingError(UserError):
    """An error that may be gone at the next look."""


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


def _find_host(host: str) -> str:
    host = host or os.environ.get(HOST_VARIABLE, "")
    if not host and os.environ.get("KUBERNETES_SERVICE_HOST"):
        host = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
    if not host:
        raise UserError(
            f"no host is known: give --host or {HOST_VARIABLE}, such as "
            "https://kubeflow.example.org/pipeline."
        )
    if not host.startswith(("http://", "https://")):
        raise UserError(f"the host {host!r} must start with https:// or http://.")
    return host.rstrip("/")


def _pod_namespace() -> str:
    with contextlib.suppress(OSError):
        return Path(NAMESPACE_FILE).read_text(encoding="utf-8").strip()
    return ""


def _find_token_file() -> Path | None:
    with _quiet():
        from kfp.client import KF_PIPELINES_SA_TOKEN_PATH
    named = os.environ.get(TOKEN_VARIABLE)
    path = Path(named or KF_PIPELINES_SA_TOKEN_PATH)
    if path.is_file():
        return path
    if named:
        raise UserError(f"{TOKEN_VARIABLE} names {path}, which is no file.")
    return None


def _probe(host: str, token_file: Path | None) -> bool:
    """Asks the host what it is; ``kfp.Client`` itself would try for half a minute and more.

    Returns:
        Whether it serves several users, each in a namespace.
    """
    import requests

    headers = {}
    if token_file is not None:
        headers["Authorization"] = f"Bearer {token_file.read_text(encoding='utf-8').strip()}"
    try:
        answer = requests.get(
            f"{host}/apis/v2beta1/healthz", headers=headers, timeout=20, allow_redirects=False
        )
    except requests.RequestException as error:
        reason = "its certificate is not trusted" if "SSL" in repr(error) else "no answer"
        raise UserError(f"{host} cannot be reached ({reason}): check the host.") from None
    if answer.status_code in (301, 302, 303, 307, 401):
        # a browser is sent to the login page at this point
        raise _explain(401, "", "asking for the API", host, "")
    if answer.status_code == 403:
        raise _explain(403, "", "asking for the API", host, "")
    try:
        content = answer.json()
        if answer.status_code != 200 or not isinstance(content, dict):
            raise ValueError
    except ValueError:
        raise UserError(
            f"{host} is no Kubeflow Pipelines API (healthz answers {answer.status_code}): "
            "the host is often the Kubeflow URL with /pipeline."
        ) from None
    return bool(content.get("multi_user"))


def _transport(host: str) -> dict[str, str]:
    """The certificates and the proxy of the environment, which kfp's own client leaves out."""
    import requests

    found = requests.Session().merge_environment_settings(host, {}, None, None, None)
    proxy = requests.utils.select_proxy(host, found["proxies"])
    certificates = found["verify"] if isinstance(found["verify"], str) else ""
    return {
        **({"proxy": proxy} if proxy else {}),
        **({"ssl_ca_cert": certificates} if certificates else {}),
    }


def _explain(status: int, body: Any, doing: str, host: str, namespace: str) -> UserError:
    if status == 401:
        return UserError(
            f"{host} asks for a login or a token that has not expired: put a new token into a file "
            f"and name it in {TOKEN_VARIABLE}."
        )
    if status == 403:
        where = f" in the namespace {namespace}" if namespace else ""
        return UserError(
            f"{doing} is not allowed{where}: ask its owner for the right to edit, "
            "or name another with --namespace."
        )
    if status == 404:
        return UserError(f"{doing} failed: {host} does not know it.")
    try:
        content = json.loads(body or "{}")
        message = content.get("message") or content.get("error") or content
    except (ValueError, AttributeError):
        message = str(body)[:200]
    kind = PassingError if status >= 500 or status == 429 else UserError
    return kind(f"{doing} failed: {host} answers {status}: {message}.")


def _is_connection_error(error: Exception) -> bool:
    import urllib3

    return isinstance(error, urllib3.exceptions.HTTPError | OSError)


def _named(name: str) -> str:
    return json.dumps(
        {"predicates": [{"operation": 1, "key": "display_name", "stringValue": name}]}
    )


def _message(error: Any) -> str:
    return str(error.message or "") if error else ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what kfp prints, warns of and logs; what matters is said by this module."""
    logger = logging.getLogger()
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)
