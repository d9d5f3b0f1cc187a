"""What Kubernetes and Kubeflow say: the claim, Pod Security, rights, the version."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from medseg.check.rows import Row

if TYPE_CHECKING:
    from medseg.kubeflow.namespace import Connection

ENFORCE = "pod-security.kubernetes.io/enforce"
OLDEST, COMPLIANT = (2, 5), (2, 16)
"""Versions of Kubeflow Pipelines: the oldest that runs ours, the first that sets a stage's user."""

RIGHTS = (
    ("start runs", "pipelines.kubeflow.org", "runs", "create"),
    ("upload pipelines", "pipelines.kubeflow.org", "pipelines", "create"),
    ("see the claim", "", "persistentvolumeclaims", "get"),
    ("see why a pod waits", "", "pods", "list"),
    ("read logs", "", "pods/log", "get"),
    ("write Secrets", "", "secrets", "create"),
)
"""What the command does: in words, and as Kubernetes asks for it."""


def cluster_rows(claim: str, namespace: str = "", version: str = "") -> Iterator[Row]:
    """The claim and the level of Pod Security, as the cluster's API tells them.

    Args:
        claim: The claim of the project volume.
        namespace: Where it is; by default the one that the configuration names.
        version: Kubeflow Pipelines' version, where it is known.

    Raises:
        UserError: Kubernetes cannot be asked.
    """
    from medseg.kubeflow.namespace import core_api

    with core_api() as connection:
        namespace = namespace or connection.namespace
        yield _claim(connection, claim, namespace)
        yield _security(connection, namespace, version)


def _claim(connection: Connection, name: str, namespace: str) -> Row:
    found = _asked(connection.api.read_namespaced_persistent_volume_claim, name, namespace)
    if found == 404:
        return Row(
            "claim",
            "failed",
            f"{namespace} has no claim {name}",
            "make it (kubectl apply -f manifests/claim.yaml), or name yours: -p pvc_name=NAME",
        )
    if isinstance(found, int):
        return _unseen("claim", "persistentvolumeclaims", found)
    phase, modes = found.status.phase, list(found.spec.access_modes or ())
    size = (found.status.capacity or {}).get("storage", "")
    text = ", ".join(filter(None, (f"{name} is {phase}", *modes, size)))
    if phase == "Lost":
        remedy = "its volume is gone: make the claim anew, and restore the data from a copy"
        return Row("claim", "failed", text, remedy)
    if phase != "Bound":
        return Row(
            "claim",
            "warning",
            text,
            "where its storage class waits for the first pod that is right; else see why: "
            f"kubectl describe pvc {name} -n {namespace}",
        )
    if "ReadWriteMany" not in modes:
        return Row(
            "claim",
            "warning",
            text,
            "stages on several nodes (shards, folds) need ReadWriteMany: choose a storage class "
            "that has it, or keep all on one node with node_selector",
        )
    return Row("claim", "ok", text)


def _security(connection: Connection, namespace: str, version: str) -> Row:
    found = _asked(connection.api.read_namespace, namespace)
    if isinstance(found, int):
        return _unseen("Pod Security", "namespaces", found)
    level = (found.metadata.labels or {}).get(ENFORCE, "privileged")
    text = f"{namespace} enforces {level}"
    if level == "restricted" and (known := version_of(version)) and known < COMPLIANT:
        return Row(
            "Pod Security",
            "failed",
            f"{text}; pods of Kubeflow Pipelines {version} do not comply",
            f"take Kubeflow Pipelines 2.16 or newer, or label the namespace {ENFORCE}=baseline",
        )
    return Row("Pod Security", "ok", text)


def rights_rows(namespace: str = "") -> Iterator[Row]:
    """What the person's own rights allow, as Kubernetes itself judges.

    Args:
        namespace: Where; by default the one that the kube config names.

    Raises:
        UserError: Kubernetes cannot be asked.
    """
    from kubernetes import client

    from medseg.kubeflow.namespace import core_api

    with core_api() as connection:
        namespace = namespace or connection.namespace
        api = client.AuthorizationV1Api(connection.api.api_client)
        missing = []
        for words, group, resource, verb in RIGHTS:
            kind, _, part = resource.partition("/")
            attributes = client.V1ResourceAttributes(
                group=group, resource=kind, subresource=part or None, verb=verb, namespace=namespace
            )
            review = client.V1SelfSubjectAccessReview(
                spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=attributes)
            )
            if not api.create_self_subject_access_review(review).status.allowed:
                missing.append(words)
    if missing:
        yield Row(
            "rights",
            "warning",
            f"in {namespace} you may not {', '.join(missing)}",
            "ask its owner for the role of manifests/role.yaml, or Kubeflow's kubeflow-edit",
        )
    else:
        yield Row("rights", "ok", f"all that the command does in {namespace}")


def kubeflow_row(server: dict[str, Any], host: str) -> Row:
    """Kubeflow Pipelines' version, as it tells it.

    Args:
        server: Its answer to ``healthz``.
        host: Its address.
    """
    version = told_version(server)
    known = version_of(version)
    if known is None:
        return Row(
            "Kubeflow",
            "warning",
            f"{host} answers, and hides its version",
            "see the bottom of the UI's left column: 2.5 is the oldest that works",
        )
    text = f"{host} is Kubeflow Pipelines {version}"
    if known < OLDEST:
        return Row("Kubeflow", "failed", text, "update it to 2.5 or newer")
    if known < COMPLIANT:
        return Row(
            "Kubeflow",
            "warning",
            text,
            "before 2.16 it leaves out the securityContext: the image's own user 1000 holds",
        )
    return Row("Kubeflow", "ok", text)


def told_version(server: dict[str, Any]) -> str:
    """The version in an answer to ``healthz``; empty where it is hidden.

    Args:
        server: The answer.
    """
    return next((str(server[key]) for key in ("tag_name", "tagName") if server.get(key)), "")


def version_of(text: str) -> tuple[int, int] | None:
    """Major and minor number of a version; None where it is none.

    Args:
        text: Such as ``2.17.0``.
    """
    match = re.match(r"v?(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def _asked(read: Any, *arguments: str) -> Any:
    """What the API answers; the status where it refuses."""
    from kubernetes.client import ApiException

    try:
        return read(*arguments)
    except ApiException as error:
        if error.status in (403, 404):
            return int(error.status)
        raise


def _unseen(name: str, resource: str, status: int) -> Row:
    return Row(
        name,
        "warning",
        f"it could not be looked at (Kubernetes answers {status})",
        f"ask for the right to get {resource}, or let someone who has it run medseg check",
    )
