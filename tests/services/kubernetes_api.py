"""The corner of Kubernetes' API that the project uses, over HTTP, for tests.

Bodies and answers are checked against the models of the published ``kubernetes`` client.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client

from tests.services.http import Answer, Request
from tests.services.models import Refused, check_model

PATH = re.compile(
    r"/api/v1/namespaces/(?P<namespace>[^/]+)/(?P<kind>\w+)(/(?P<name>[^/]+))?(/log)?"
)
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


@dataclass
class KubernetesApi:
    """The state of a cluster; hand ``answer`` to :func:`tests.services.http.serve`.

    Attributes:
        namespace: The only namespace with rights.
        objects: All objects by kind (plural) and name.
        logs: Logs by pod.
        forbidden: The kinds of objects (plural) that may not be read.
        labels: The namespace's.
    """

    namespace: str = "team"
    objects: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    forbidden: set[str] = field(default_factory=set)
    labels: dict[str, str] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    version: int = 0

    def record(self, folder: Path) -> None:
        """Serves the pods and events of a run as a real Kubernetes had them.

        Args:
            folder: With ``pods.json`` and ``events.json``.
        """
        for kind in ("pods", "events"):
            items = json.loads((folder / f"{kind}.json").read_text())
            self.objects[kind] = {item["metadata"]["name"]: item for item in items}

    def answer(self, request: Request) -> Answer:
        try:
            result = self._answer(request)
        except Refused as refused:
            if refused.status == 400 and request.method != "GET":
                self.violations.append(refused.message)
            reply = {"kind": "Status", "code": refused.status, "message": refused.message}
            return Answer(refused.status, json.dumps(reply).encode())
        if isinstance(result, str):
            return Answer(200, result.encode(), "text/plain")
        return Answer(200, json.dumps(result).encode())

    def _answer(self, request: Request) -> Any:
        if request.path == REVIEWS:
            return self._review(json.loads(request.body))
        if request.path == f"/api/v1/namespaces/{self.namespace}":
            if "namespaces" in self.forbidden:
                raise Refused(403, "may not read namespaces")
            named = {"name": self.namespace, "labels": self.labels}
            return {"kind": "Namespace", "apiVersion": "v1", "metadata": named}
        match = PATH.fullmatch(request.path)
        if not match:
            raise Refused(404, f"no path {request.path}")
        if match["namespace"] != self.namespace:
            raise Refused(403, f"forbidden in {match['namespace']}")
        kind, name = match["kind"], match["name"]
        if kind in self.forbidden:
            raise Refused(403, f"may not read {kind}")
        store = self.objects.setdefault(kind, {})
        if name and request.method != "POST" and name not in store:
            raise Refused(404, f'{kind} "{name}" not found')
        if request.path.endswith("/log"):
            assert request.query["container"] == "main"
            if name not in self.logs:
                raise Refused(400, "container is waiting to start")
            return self.logs[name]
        if request.method == "GET" and not name:
            if kind == "events":
                key, value = request.query["fieldSelector"].split("=")
                assert key == "involvedObject.name"
                items = [o for o in store.values() if o["involvedObject"].get("name") == value]
                return {"kind": "EventList", "apiVersion": "v1", "items": items}
            key, value = request.query["labelSelector"].split("=")
            items = [o for o in store.values() if o["metadata"]["labels"].get(key) == value]
            return {"kind": "PodList", "apiVersion": "v1", "items": items}
        if request.method == "GET":
            return store[name]
        assert kind == "secrets"
        body = json.loads(request.body)
        check_model("V1Secret", body, "Secret", client)
        if body.get("type") == "kubernetes.io/dockerconfigjson":
            assert list(body["data"]) == [".dockerconfigjson"]
        if request.method == "POST":
            name = body["metadata"]["name"]
            if name in store:
                raise Refused(409, f"{name} exists already")
        else:
            assert request.method == "PUT"
            before = store[name]
            if body["metadata"].get("resourceVersion") != before["metadata"]["resourceVersion"]:
                raise Refused(409, "the object has been modified")
            if body["type"] != before["type"]:
                raise Refused(422, "type is immutable")
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        store[name] = body
        return body

    def _review(self, body: Any) -> Any:
        """Whether the person may do something: all that is not forbidden."""
        check_model("V1SelfSubjectAccessReview", body, "review", client)
        asked = body["spec"]["resourceAttributes"]
        what = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
        allowed = asked["namespace"] == self.namespace and what not in self.forbidden
        return {**body, "status": {"allowed": allowed}}


def write_kube_config(file: Path, url: str, namespace: str = "team") -> None:
    """Writes a kube config that leads to ``url``."""
    file.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "clusters": [{"name": "test", "cluster": {"server": url}}],
                "users": [{"name": "test", "user": {"token": "good"}}],
                "contexts": [
                    {
                        "name": "test",
                        "context": {"cluster": "test", "user": "test", "namespace": namespace},
                    }
                ],
            }
        )
    )
