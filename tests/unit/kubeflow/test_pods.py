"""The sentences for a pod that does not start, or was ended from outside."""

from __future__ import annotations

from typing import Any

import pytest

from medseg.kubeflow.pods import Pod

OURS = {"image", "pvc_name", "memory", "gpu_type", "gpu_count", "node_selector"}


def _pod(
    *events: tuple[str, str],
    gpus: str = "0",
    labels: dict[str, str] | None = None,
    unscheduled: str = "",
    **status: Any,
) -> Pod:
    main = {
        "name": "main",
        "image": "registry.example.org/runtime:1",
        "resources": {
            "limits": {"memory": "8Gi", "nvidia.com/gpu": gpus},
            "requests": {"cpu": "500m", "memory": "4Gi"},
        },
    }
    volume = {"name": "data", "persistentVolumeClaim": {"claimName": "medseg-data"}}
    spec = {
        "containers": [main],
        "volumes": [volume, {"name": "tmp", "emptyDir": {}}],
        "nodeSelector": labels or {},
        "activeDeadlineSeconds": 86400,
        "schedulingGates": [{"name": "kueue.x-k8s.io/admission"}],
    }
    if unscheduled:
        condition = {"type": "PodScheduled", "status": "False", "message": unscheduled}
        status["conditions"] = [condition | {"reason": status.pop("because", "Unschedulable")}]
    pod = {"metadata": {"name": "p"}, "spec": spec, "status": status}
    happened = [
        {"reason": reason, "message": text, "type": "Warning", "involvedObject": {"name": "p"}}
        for reason, text in events
    ]
    return Pod(pod, happened, OURS)


def _waiting(reason: str, text: str = "", name: str = "main") -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": text}}
    return {"containerStatuses": [{"name": name, "image": "argoexec:v4", "state": state}]}


NODES = "0/3 nodes are available: "
MOUNT = 'MountVolume.SetUp failed for volume "s" : references non-existent secret key: token'


@pytest.mark.parametrize(
    ("pod", "sentence"),
    [
        (
            _pod(gpus="2", unscheduled=f"{NODES}3 Insufficient nvidia.com/gpu. preemption: no."),
            "no node has 2 nvidia.com/gpu: change gpu_type or gpu_count, or wait until one",
        ),
        (
            _pod(
                labels={"disk": "ssd"},
                unscheduled=f"{NODES}3 node(s) didn't match Pod's node affinity/selector.",
            ),
            "no node has disk=ssd: change node_selector, or wait until one is there.",
        ),
        (
            _pod(unscheduled=f"{NODES}1 Insufficient cpu, 2 Insufficient memory."),
            "no node has 500m of cpu free and 4Gi of memory free: lower cpu_request in your site's "
            "settings, lower memory_request",
        ),
        (
            _pod(unscheduled=f"{NODES}3 node(s) had untolerated taint {{dedicated: gpu}}."),
            "the nodes are reserved (taint dedicated): add a toleration",
        ),
        (
            _pod(unscheduled='persistentvolumeclaim "medseg-data" not found.'),
            "the claim medseg-data does not exist: make it (manifests/claim.yaml), or name yours "
            "with -p pvc_name=NAME.",
        ),
        (
            _pod(unscheduled="pod has unbound immediate PersistentVolumeClaims. preemption: no"),
            "the claim medseg-data has no volume yet: ask the administrator",
        ),
        (
            _pod(unscheduled=f"{NODES}3 node(s) had volume node affinity conflict."),
            "the volume of the claim medseg-data is tied to another node or zone",
        ),
        (
            _pod(unscheduled="Scheduling is blocked", because="SchedulingGated"),
            "it waits for its queue to let it in (kueue.x-k8s.io/admission): wait",
        ),
        (
            _pod(unscheduled=f"{NODES}3 node(s) had a new fault. preemption: no"),
            "no node takes it: 0/3 nodes are available: 3 node(s) had a new fault.",
        ),
        (
            _pod(**_waiting("ErrImagePull", "pull access denied, unauthorized")),
            "runtime:1 cannot be pulled (the registry asks for a login): push it, or name another "
            "with -p image=NAME, or set image_pull_secrets",
        ),
        (
            _pod(("Failed", "x509: unknown authority"), **_waiting("ImagePullBackOff")),
            "cannot be pulled (the nodes do not trust the registry's certificate)",
        ),
        (
            _pod(**_waiting("ErrImagePull", "dial tcp: no such host", name="wait")),
            "Kubeflow's own image argoexec:v4 cannot be pulled (the registry does not answer)",
        ),
        (
            _pod(
                **_waiting(
                    "CreateContainerConfigError",
                    "couldn't find key token in Secret team/medseg-dicomweb",
                )
            ),
            "the Secret medseg-dicomweb has no key token: write it with 'medseg secrets dicomweb'.",
        ),
        (
            _pod(**_waiting("CreateContainerConfigError", 'secret "mine" not found')),
            "the Secret mine does not exist: make it, or write all of its keys.",
        ),
        (
            _pod(
                **_waiting(
                    "CreateContainerConfigError",
                    "container has runAsNonRoot and image will run as root (pod: x)",
                )
            ),
            "its container cannot be made: container has runAsNonRoot and image will run as root",
        ),
        (
            _pod(("FailedMount", MOUNT), **_waiting("ContainerCreating")),
            "what the volume s is made of has no key token: add it.",
        ),
        (
            _pod(("FailedAttachVolume", 'Multi-Attach error for volume "pvc-1"')),
            "the claim medseg-data is in use on another node: use a claim that several nodes can",
        ),
        (
            _pod(("FailedMount", "mount failed: exit status 32. more")),
            "the claim medseg-data cannot be mounted: mount failed: exit status 32.",
        ),
        (
            _pod(("Pulling", 'Pulling image "registry.example.org/runtime:1"')),
            "the node is fetching the image registry.example.org/runtime:1.",
        ),
        (_pod(**_waiting("ContainerCreating")), ""),
        (Pod({"metadata": {"name": "p"}}), ""),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_why_it_waits(pod: Pod, sentence: str) -> None:
    found = pod.why_waiting()
    assert sentence in found
    assert bool(found) == bool(sentence)


@pytest.mark.parametrize(
    ("pod", "sentence"),
    [
        (
            _pod(reason="Evicted", message="The node was low on resource: memory. Threshold 100Mi"),
            "its node evicted it (The node was low on resource: memory): run it again, on a node",
        ),
        (_pod(reason="DeadlineExceeded"), "it took longer than its time limit (86400 s): raise"),
        (
            _pod(
                conditions=[
                    {
                        "type": "DisruptionTarget",
                        "status": "True",
                        "reason": "PreemptionByScheduler",
                        "message": "preempted for a more important pod",
                    }
                ]
            ),
            "its node was taken away (preempted for a more important pod): run it again",
        ),
        (
            _pod(
                containerStatuses=[
                    {"name": "main", "lastState": {"terminated": {"reason": "OOMKilled"}}}
                ]
            ),
            "out of memory (limit memory=8Gi): raise it with -p memory=AMOUNT",
        ),
        (_pod(reason="Error"), ""),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_ended_it(pod: Pod, sentence: str) -> None:
    cause, remedy = pod.why_ended()
    assert f"{cause}: {remedy}".startswith(sentence or ": ")
    assert bool(cause) == bool(remedy) == bool(sentence)


def test_affinity_of_nodes() -> None:
    pod = _pod(unscheduled="didn't match Pod's node affinity/selector")
    rules = [{"key": "zone", "operator": "In", "values": ["a", "b"]}]
    terms = {"nodeSelectorTerms": [{"matchExpressions": rules}]}
    needed = {"requiredDuringSchedulingIgnoredDuringExecution": terms}
    pod.spec["spec"]["affinity"] = {"nodeAffinity": needed}
    assert pod.why_waiting() == (
        "no node has zone In a, b: change node_affinity in your site's settings, or wait until one "
        "is there."
    )


def test_somebody_elses_pipeline_has_other_parameters() -> None:
    pod = _pod(labels={"a": "b"}, gpus="1", unscheduled="didn't match Pod's node affinity/selector")
    theirs = Pod(pod.spec, [])
    assert theirs.why_waiting() == (
        "no node has nvidia.com/gpu and a=b: ask for other nodes, or wait until one is there."
    )
    state = {"name": "main", "state": {"terminated": {"reason": "OOMKilled"}}}
    killed = Pod(_pod(containerStatuses=[state]).spec, [])
    assert killed.why_ended() == ("out of memory (limit 8Gi)", "raise its memory limit")
