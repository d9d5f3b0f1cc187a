"""What the project asks of Kubernetes itself: the claim, Secrets, pods and their logs."""

from __future__ import annotations

import contextlib
import json
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


def pod_log(connection: Connection, pod: str, namespace: str) -> Iterator[bytes] | None:
    """The log of a stage's pod.

    Args:
        connection: The way to its cluster.
        pod: Its name.
        namespace: Its namespace.

    Returns:
        The log in pieces; None where its container has not started, or it is gone.

    Raises:
        ApiException: Kubernetes refused.
    """
    try:
        answer = connection.api.read_namespaced_pod_log(
            pod, namespace, container="main", _preload_content=False, _request_timeout=(5, 120)
        )
    except ApiException as error:
        if error.status not in (400, 404):  # 400: it waits for its image or a node
            raise
        return None
    chunks: Iterator[bytes] = answer.stream(64 * 1024)
    return chunks


def run_pods(
    connection: Connection, run_id: str, namespace: str
) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """The pods of a run that are there, and what has happened to them.

    Args:
        connection: The way to their cluster.
        run_id: The run.
        namespace: Its namespace.

    Returns:
        The pods by their identifiers in the workflow, and the events by the names of pods; without
        the right to read events there are none of these.

    Raises:
        ApiException: Kubernetes refused.
    """
    api = connection.api
    options = {"_preload_content": False, "_request_timeout": (5, 30)}
    answer = api.list_namespaced_pod(
        namespace, label_selector=f"pipeline/runid={run_id}", **options
    )
    pods = {_node_of(pod): pod for pod in json.loads(answer.data)["items"]}
    events: dict[str, list[dict[str, Any]]] = {}
    for pod in pods.values():
        name = pod["metadata"]["name"]
        if pod.get("status", {}).get("phase") != "Pending":
            continue
        try:
            answer = api.list_namespaced_event(
                namespace, field_selector=f"involvedObject.name={name}", **options
            )
        except ApiException:  # the pods' conditions say most of it
            break
        events[name] = json.loads(answer.data)["items"]
    return pods, events


def _node_of(pod: dict[str, Any]) -> str:
    marks = pod["metadata"].get("annotations") or {}
    return str(marks.get("workflows.argoproj.io/node-id") or pod["metadata"]["name"])
