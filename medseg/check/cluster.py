"""What Kubernetes and Kubeflow say: the claim, Pod Security, rights, the version."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from medseg.check.rows import Row, refused
from medseg.project import UserError

if TYPE_CHECKING:
    from medseg.kubeflow.namespace import Connection

ENFORCE = "pod-security.kubernetes.io/enforce"
RIGHTS = (
    ("start runs", "pipelines.kubeflow.org", "runs", "create"),
    ("upload pipelines", "pipelines.kubeflow.org", "pipelines", "create"),
    ("see the claim", "", "persistentvolumeclaims", "get"),
    ("see why a pod waits", "", "pods", "list"),
    ("read logs", "", "pods/log", "get"),
    ("write Secrets", "", "secrets", "create"),
)
"""What the command does: in words, and as Kubernetes asks for it."""


def cluster_rows(
    claim: str, namespace: str = "", server: dict[str, Any] | None = None
) -> Iterator[Row]:
    """The claim and the level of Pod Security, as the cluster's API tells them.

    Args:
        claim: The claim of the project volume.
        namespace: Where it is; by default the one that the configuration names.
        server: What Kubeflow Pipelines says of itself, where it was asked.

    Raises:
        UserError: Kubernetes cannot be asked.
    """
    from medseg.kubeflow.namespace import core_api

    with core_api() as connection:
        namespace = namespace or connection.namespace
        yield _claim(connection, claim, namespace)
        yield _security(connection, namespace, server or {})


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


def _security(connection: Connection, namespace: str, server: dict[str, Any]) -> Row:
    from medseg.kubeflow.server import SECURITY_CONTEXT, version_of

    found = _asked(connection.api.read_namespace, namespace)
    if isinstance(found, int):
        return _unseen("Pod Security", "namespaces", found)
    level = (found.metadata.labels or {}).get(ENFORCE, "privileged")
    text = f"{namespace} enforces {level}"
    version = version_of(server)
    if level == "restricted" and version is not None and version < SECURITY_CONTEXT:
        return Row(
            "Pod Security",
            "failed",
            f"{text}, with which pods of Kubeflow Pipelines before 2.16 do not comply",
            f"update Kubeflow Pipelines, or label the namespace {ENFORCE}=baseline",
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
    """Kubeflow Pipelines' version, and what that leaves out of what stages ask for.

    Args:
        server: Its answer to ``healthz``.
        host: Its address.
    """
    from medseg.kubeflow.server import OLDEST, SECURITY_CONTEXT, left_out, version_of

    version, gaps = version_of(server), left_out(server).rstrip(".")
    if version is None:
        remedy = "see the bottom of the UI's left column: 2.5 is the oldest that works"
        return Row("Kubeflow", "warning", f"{host} answers; {gaps}", remedy)
    if version < OLDEST:
        found, _, remedy = gaps.partition(": ")
        return Row("Kubeflow", "failed", found, remedy)
    if version < SECURITY_CONTEXT:
        remedy = "it works; for all that the stages ask for update it to 2.16 or newer"
        return Row("Kubeflow", "warning", gaps, remedy)
    return Row("Kubeflow", "ok", gaps)


def pod_rows(claim: str) -> Iterator[Row]:
    """What a pod can see of its cluster; it need not have a token or be let in.

    Args:
        claim: The claim of the project volume.
    """
    from medseg.kubeflow.connection import ask_installation

    server: dict[str, Any] = {}
    try:
        server = ask_installation()
        yield kubeflow_row(server, "the cluster's own")
    except UserError as error:
        found = f"a pod cannot ask it for its version ({str(error).rstrip('.')})"
        yield Row("Kubeflow", "warning", found, "medseg check asks from outside")
    try:
        yield from cluster_rows(claim, server=server)
    except UserError as error:
        yield refused("claim", error, "warning")


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
