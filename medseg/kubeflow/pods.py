"""Why a stage's pod does not start, or was ended from outside: one sentence with the remedy.

Read from the pod's specification and state and from its events, as Kubernetes' API gives them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from medseg.project.variables import SECRETS

Json = dict[str, Any]

_NO_IMAGE = {"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"}
_FIRST = re.compile(r"(.+?)(\. |\.?$)", re.DOTALL)


@dataclass(frozen=True)
class Pod:
    """A pod of a run.

    Attributes:
        spec: The pod, as Kubernetes' API gives it.
        events: What has happened to it; each is one of Kubernetes' events.
        parameters: The parameters of the run's pipeline: a remedy that is a parameter is named only
            where the pipeline has it.
    """

    spec: Json
    events: list[Json] = field(default_factory=list)
    parameters: set[str] = field(default_factory=set)

    def why_waiting(self) -> str:
        """Why it does not start; empty where nothing says so."""
        for find in (self._not_scheduled, self._no_container, self._no_volume):
            sentence = find()
            if sentence:
                return sentence
        fetching = next(self._with("Pulling"), {}).get("message", "")
        image = re.search(r'image "([^"]+)"', fetching)
        done = any(image and image[0] in event.get("message", "") for event in self._with("Pulled"))
        if image and not done:
            return f"the node is fetching the image {image[1]}."
        return ""

    def why_ended(self) -> tuple[str, str]:
        """What ended it from outside, and the remedy; empty where nothing did."""
        status = self.spec.get("status", {})
        main = self._state("main")
        reasons = {main.get("terminated", {}).get("reason"), main.get("last", {}).get("reason")}
        if "OOMKilled" in reasons:
            return out_of_memory(self._limit("memory"), self.parameters)
        lost = self._condition("DisruptionTarget")
        said = _first(status.get("message") or lost.get("message") or "")
        if status.get("reason") == "Evicted" or lost.get("reason") == "TerminationByKubelet":
            return (
                f"its node evicted it ({said or 'short of memory or disk'})",
                "run it again, on a node with more room or with a larger memory_request (your "
                "site's settings)",
            )
        if status.get("reason") == "DeadlineExceeded":
            seconds = self.spec.get("spec", {}).get("activeDeadlineSeconds", "")
            return (
                f"it took longer than its time limit ({seconds} s)",
                "raise time_limit_s (your site's settings)",
            )
        if lost or status.get("reason") in ("NodeLost", "NodeShutdown", "Terminated", "Preempting"):
            why = said or lost.get("reason") or status.get("reason")
            return f"its node was taken away ({why})", "run it again"
        return "", ""

    # --- not on a node ---

    def _not_scheduled(self) -> str:
        condition = self._condition("PodScheduled")
        if condition.get("status") != "False":
            return ""
        text = condition.get("message") or ""
        if not text:
            text = next((e.get("message", "") for e in self._with("FailedScheduling")), "")
        if condition.get("reason") == "SchedulingGated":
            gates = [gate["name"] for gate in self.spec["spec"].get("schedulingGates") or []]
            named = ", ".join(gates) or "a gate"
            return (
                f"it waits for its queue to let it in ({named}): wait, or ask who runs the queue."
            )
        if any(self._with("TriggeredScaleUp")):
            return "no node suits it yet, and the cluster is adding one."
        return self._no_claim(text) or self._no_node(text)

    def _no_claim(self, text: str) -> str:
        missing = re.search(r'persistentvolumeclaim "([^"]+)" (not found|is being deleted)', text)
        if missing:
            fault = "does not exist" if missing[2] == "not found" else "is being deleted"
            name = self._remedy("pvc_name", "name yours with -p pvc_name=NAME", "name another")
            return f"the claim {missing[1]} {fault}: make it (manifests/claim.yaml), or {name}."
        claims = ", ".join(self._claims()) or "of a volume"
        if "unbound immediate PersistentVolumeClaims" in text:
            return (
                f"the claim {claims} has no volume yet: ask the administrator for a storage class "
                "that provides one."
            )
        if "volume node affinity conflict" in text:
            return (
                f"the volume of the claim {claims} is tied to another node or zone than the ones "
                "that suit the stage: use a claim that all nodes can mount (ReadWriteMany)."
            )
        return ""

    def _no_node(self, text: str) -> str:
        gpus = [
            name if count == "1" else f"{count} {name}"
            for name, count in self._container("main")["resources"].get("limits", {}).items()
            if "/" in name and str(count) != "0"
        ]
        labels = [f"{key}={value}" for key, value in self._node_selector().items()]
        short = re.findall(r"Insufficient ([\w.\-/]*\w)", text)
        unlike = "node affinity/selector" in text  # the GPUs were then not looked at
        wanted, causes = [], []
        if gpus and (unlike or any("/" in name for name in short)):
            wanted += gpus
            causes += ["gpu_type", "gpu_count"]
        if labels and unlike:
            wanted += labels
            causes.append("node_selector")
        remedies = self._change([name for name in causes if name in self.parameters], bool(causes))
        if unlike and self._affinity():
            wanted += self._affinity()
            remedies.append("change node_affinity in your site's settings")
        for name in ("cpu", "memory"):
            if name in short:
                wanted.append(f"{self._request(name)} of {name} free")
                remedies.append(f"lower {name}_request in your site's settings")
        taint = re.search(r"untolerated taints? \{([^:}]+)", text)
        if taint and not wanted:
            return (
                f"the nodes are reserved (taint {taint[1]}): add a toleration to your site's "
                "settings, or ask the administrator."
            )
        if wanted:
            return (
                f"no node has {' and '.join(wanted)}: {', '.join(remedies)}, or wait until one is "
                "there."
            )
        why = f": {_first(text)}" if text else " yet"
        return f"no node takes it{why}. Wait, or ask the administrator."

    @staticmethod
    def _change(names: list[str], needed: bool) -> list[str]:
        if not names:
            return ["ask for other nodes"] if needed else []
        *first, last = names
        return [f"change {', '.join(first)} or {last}" if first else f"change {last}"]

    # --- on a node, without its container ---

    def _no_container(self) -> str:
        status = self.spec.get("status", {})
        every = [*(status.get("initContainerStatuses") or [])]
        every += status.get("containerStatuses") or []
        for container in every:
            waiting = container.get("state", {}).get("waiting") or {}
            reason, text = waiting.get("reason", ""), waiting.get("message", "")
            if reason in _NO_IMAGE:
                return self._no_image(container["name"], container.get("image", ""), text)
            if reason.endswith("Error"):
                return self._no_secret(text) or (
                    f"its container cannot be made: {_first(text) or reason}. Ask the "
                    "administrator, or whoever made the image."
                )
            if reason == "CrashLoopBackOff":
                return f"its container {container['name']} ends again and again: read its log."
        return ""

    def _no_image(self, container: str, image: str, text: str) -> str:
        named = self._container(container).get("image") or image
        texts = [text, *(event.get("message", "") for event in self._with("Failed"))]
        cause = next(filter(None, map(_image_fault, texts)), "")
        why = f" ({cause})" if cause else ""
        if container != "main":
            return (
                f"Kubeflow's own image {named} cannot be pulled{why}: ask the administrator to "
                "make it reachable for the nodes."
            )
        name = self._remedy("image", "name another with -p image=NAME", "name another")
        login = ", or set image_pull_secrets in your site's settings" if "login" in cause else ""
        return f"the image {named} cannot be pulled{why}: push it, or {name}{login}."

    def _no_secret(self, text: str) -> str:
        key = re.search(r"couldn't find key (\S+) in (Secret|ConfigMap) (?:[^/\s]+/)?(\S+)", text)
        if key:
            kind, name = key[2], key[3].rstrip(",.")
            return f"the {kind} {name} has no key {key[1]}: {_fill(kind, name)}."
        key = re.search(r'volume "([^"]+)".*non-existent (?:secret|config) key: (\S+)', text)
        if key:
            return f"what the volume {key[1]} is made of has no key {key[2]}: add it."
        gone = re.search(r'(secret|configmap)s? "([^"]+)" not found', text)
        if gone:
            kind = {"secret": "Secret", "configmap": "ConfigMap"}[gone[1]]
            return f"the {kind} {gone[2]} does not exist: {_fill(kind, gone[2])}."
        return ""

    def _no_volume(self) -> str:
        for event in (*self._with("FailedAttachVolume"), *self._with("FailedMount")):
            text = event.get("message") or ""
            sentence = self._no_secret(text)
            if sentence:
                return sentence
            claims = ", ".join(self._claims()) or "a volume"
            if "Multi-Attach" in text:
                return (
                    f"the claim {claims} is in use on another node: use a claim that several nodes "
                    "can mount (ReadWriteMany), or wait until the other is done."
                )
            return f"the claim {claims} cannot be mounted: {_first(text)}. Ask the administrator."
        return ""

    # --- reading the pod ---

    def _state(self, name: str) -> Json:
        statuses = self.spec.get("status", {}).get("containerStatuses") or []
        found: Json = next((each for each in statuses if each.get("name") == name), {})
        last = (found.get("lastState") or {}).get("terminated") or {}
        return {**(found.get("state") or {}), "last": last}

    def _condition(self, kind: str) -> Json:
        conditions = self.spec.get("status", {}).get("conditions") or []
        return next((each for each in conditions if each.get("type") == kind), {})

    def _with(self, reason: str) -> Iterator[Json]:
        """Its events of a kind, the latest first."""
        name = self.spec.get("metadata", {}).get("name")
        for event in reversed(self.events):
            about = event.get("involvedObject") or {}
            if event.get("reason") == reason and about.get("name") == name:
                yield event

    def _container(self, name: str) -> Json:
        spec = self.spec.get("spec", {})
        every = [*(spec.get("containers") or []), *(spec.get("initContainers") or [])]
        found: Json = next((each for each in every if each.get("name") == name), {})
        return {**found, "resources": found.get("resources") or {}}

    def _limit(self, name: str) -> str:
        return str(self._container("main")["resources"].get("limits", {}).get(name, ""))

    def _request(self, name: str) -> str:
        return str(self._container("main")["resources"].get("requests", {}).get(name, ""))

    def _node_selector(self) -> dict[str, str]:
        return dict(self.spec.get("spec", {}).get("nodeSelector") or {})

    def _affinity(self) -> list[str]:
        """What the nodes' labels must be beside the selector's; of alternatives the first."""
        every = (self.spec.get("spec", {}).get("affinity") or {}).get("nodeAffinity") or {}
        needed = every.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
        first: Json = next(iter(needed.get("nodeSelectorTerms") or []), {})
        return [
            " ".join([rule["key"], rule["operator"], ", ".join(rule.get("values") or [])]).strip()
            for rule in first.get("matchExpressions") or []
        ]

    def _claims(self) -> list[str]:
        volumes = self.spec.get("spec", {}).get("volumes") or []
        claims = [volume.get("persistentVolumeClaim") or {} for volume in volumes]
        return [claim["claimName"] for claim in claims if "claimName" in claim]

    def _remedy(self, name: str, own: str, otherwise: str) -> str:
        return own if name in self.parameters else otherwise


def out_of_memory(limit: str, parameters: set[str]) -> tuple[str, str]:
    """What to say of a stage that needed more memory than it may have, and the remedy.

    Args:
        limit: Its limit, such as ``8Gi``, if it is known.
        parameters: The parameters of the run's pipeline.
    """
    if "memory" in parameters:
        return f"out of memory (limit memory={limit})", "raise it with -p memory=AMOUNT"
    return f"out of memory (limit {limit or 'unknown'})", "raise its memory limit"


def _fill(kind: str, name: str) -> str:
    """How a Secret is filled."""
    if kind != "Secret":
        return "ask the administrator for it"
    for row in SECRETS.values():
        if name in (row.default_name, *row.site_names):
            named = "" if name == row.default_name else f" --name {name}"
            return f"write it with 'medseg secrets {row.kind}{named}'"
    return "make it, or write all of its keys"


_IMAGE_FAULTS: tuple[tuple[str, str], ...] = (
    (r"x509|certificate", "the nodes do not trust the registry's certificate"),
    (r"unauthorized|denied|forbidden|401|403|no basic auth", "the registry asks for a login"),
    (r"no such host|connection refused|timeout|dial tcp|EOF", "the registry does not answer"),
    (r"not found|manifest unknown|does not exist", "not found"),
    (r"couldn't parse image|invalid reference", "that is no name of an image"),
    (r"no space left", "the node's disk is full"),
)


def _image_fault(text: str) -> str:
    for pattern, fault in _IMAGE_FAULTS:
        if re.search(pattern, text, re.IGNORECASE):
            return fault
    return ""


def _first(text: str) -> str:
    """The first sentence of a message of Kubernetes', without its stop."""
    match = _FIRST.match(text.strip())
    return match[1] if match else text.strip()
