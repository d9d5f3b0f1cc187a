"""What the project asks of Kubernetes itself: the claim, Secrets, the logs of pods."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import urllib3
from kubernetes import client, config
from kubernetes.client import ApiException

from medseg.project import UserError

NAMESPACE_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
"""Where a pod finds the name of its namespace."""


class Connection(NamedTuple):
    """A way to a Kubernetes cluster.

    Attributes:
        api: Its ``CoreV1Api``.
        namespace: The namespace that the configuration names (``default`` if none).
        cluster: What to call it in a message.
    """

    api: Any
    namespace: str
    cluster: str


@contextlib.contextmanager
def core_api() -> Iterator[Connection]:
    """The core API of the pod's cluster, or of the one that the kube config names.

    Yields:
        The connection.

    Raises:
        UserError: There is no configuration, or the cluster does not answer or refuses.
    """
    settings = client.Configuration()
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        try:
            config.load_incluster_config(client_configuration=settings)
            namespace = Path(NAMESPACE_FILE).read_text(encoding="utf-8").strip()
        except (config.ConfigException, OSError):
            raise UserError(
                "this pod has no token to reach Kubernetes with: give it a service account whose "
                "token is mounted (automountServiceAccountToken)."
            ) from None
        cluster = "the pod's cluster"
    else:
        file = os.environ.get("KUBECONFIG")  # the library reads it only once, at its import
        try:
            config.load_kube_config(config_file=file, client_configuration=settings)
            _, context = config.list_kube_config_contexts(config_file=file)
        except (config.ConfigException, OSError, TypeError):
            raise UserError(
                "there is no kube config (KUBECONFIG, or ~/.kube/config) to reach Kubernetes with."
            ) from None
        namespace = context["context"].get("namespace", "")
        cluster = f"the cluster of the kube context {context['name']}"
    settings.retries = 1
    with client.ApiClient(settings) as api:
        try:
            yield Connection(client.CoreV1Api(api), namespace or "default", cluster)
        except ApiException as error:
            if error.status == 401:
                message = f"{cluster} does not take the credentials of the kube config (expired?)."
            elif error.status == 403:
                message = f"{cluster} does not allow this: ask the owner of the namespace."
            else:
                message = f"{cluster} answers {error.status}: {error.reason}."
            raise UserError(message) from None
        except (urllib3.exceptions.HTTPError, OSError):
            raise UserError(f"{cluster} does not answer.") from None


def claim_exists(claim: str, namespace: str = "") -> str:
    """Checks that the claim of the project volume is there.

    Args:
        claim: Its name.
        namespace: Its namespace; default: the one that the configuration names.

    Returns:
        Why it could not be checked; empty where it exists.

    Raises:
        UserError: It does not exist.
    """
    missing = False
    try:
        with core_api() as (api, default, cluster):
            try:
                api.read_namespaced_persistent_volume_claim(claim, namespace or default)
            except ApiException as error:
                missing = error.status == 404
                if not missing:
                    raise
    except UserError as error:
        return str(error).rstrip(".")
    if missing:
        raise UserError(
            f"the namespace {namespace or default} in {cluster} has no volume claim {claim!r}: "
            "make it (manifests/claim.yaml), name yours with -p pvc_name=NAME, or choose the kube "
            "context of the cluster that the run goes to."
        )
    return ""


def pod_logs(run_id: str, namespace: str = "", task: str = "") -> Iterator[tuple[str, str]]:
    """The logs of a run's tasks, as far as their pods are still there.

    Args:
        run_id: The run.
        namespace: Its namespace; default: the one that the configuration names.
        task: Only this task.

    Yields:
        The task and its log, in the order of their start.

    Raises:
        UserError: Kubernetes cannot be reached, or has no such pod any more.
    """
    with core_api() as (api, default, cluster):
        namespace = namespace or default
        pods = api.list_namespaced_pod(namespace, label_selector=f"pipeline/runid={run_id}").items
        found = False
        for pod in sorted(pods, key=lambda pod: pod.metadata.creation_timestamp):
            name = _task_of(pod)
            if not name or (task and name != task):
                continue
            found = True
            try:
                text = api.read_namespaced_pod_log(pod.metadata.name, namespace, container="main")
            except ApiException as error:
                if error.status != 400:  # it waits for its image or a node
                    raise
                text = f"(no log yet: {pod.status.phase.lower()})\n"
            yield name, text
    if not found:
        which = f"task {task!r} of the run" if task else "run"
        raise UserError(
            f"the namespace {namespace} in {cluster} has no pod of the {which} {run_id} (any more)."
        )


def _task_of(pod: Any) -> str:
    """The task that a pod executes; empty for KFP's own (drivers)."""
    annotations = pod.metadata.annotations or {}
    # Argo writes workflow.root.….task.executor
    parts = annotations.get("workflows.argoproj.io/node-name", "").split(".")
    if len(parts) < 2 or not parts[-1].startswith("executor"):
        return ""
    return str(parts[-2].split("(")[0])
