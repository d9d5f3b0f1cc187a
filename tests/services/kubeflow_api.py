"""Kubeflow Pipelines' v2beta1 API for tests, over HTTP.

Routes, query parameters and the models of bodies are those of the published client library
(``kfp-server-api``): a request that does not follow them is refused and remembered in
``violations``; the answers are checked in the same way. What the real API server checks beyond them
(names, references, a run's parameters, cron, namespaces) is checked here as far as the project
depends on it.
"""

from __future__ import annotations

import inspect
import json
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import kfp_server_api
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from requests_toolbelt.multipart.decoder import MultipartDecoder

from tests.services.http import Answer, Request
from tests.services.models import Refused, check_model

SERVICES = ("Pipeline", "PipelineUpload", "Run", "Experiment", "RecurringRun", "Healthz")
LOG = re.compile(r"/apis/v1alpha1/runs/(?P<run>[^/]+)/nodes/(?P<pod>[^/]+)/log")
Body = dict[str, Any]


@dataclass(frozen=True)
class Route:
    name: str
    method: str
    path: re.Pattern[str]
    query: frozenset[str]
    body: str
    response: str


def published_routes() -> list[Route]:
    """Every method of the API, read from the client library."""
    routes = []
    for service in SERVICES:
        for name, method in inspect.getmembers(getattr(kfp_server_api, f"{service}ServiceApi")):
            if not name.endswith("_with_http_info") or "update" in name:
                continue
            source = inspect.getsource(method)
            path, verb = re.search(r"call_api\(\s*'([^']+)', '(\w+)'", source).groups()
            argument = re.search(r"body_params = local_var_params\['(\w+)'\]", source)
            body = argument and re.search(rf":type {argument[1]}: (\w+)", source)[1]
            response = re.search(r"response_type='?(\w+)", source)[1]
            routes.append(
                Route(
                    name=name.removesuffix("_with_http_info"),
                    method=verb,
                    path=re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/:]+)", path)),
                    query=frozenset(re.findall(r"query_params.append\(\('([\w.]+)'", source)),
                    body=body or "",
                    response=response,
                )
            )
    return routes


@dataclass
class KubeflowApi:
    """The state of an installation; hand ``answer`` to :func:`tests.services.http.serve`.

    Attributes:
        token: The bearer token that it takes; empty: no login.
        namespace: The only namespace with rights; empty: a single-user installation.
        failures: What the next calls of an API method answer in place of their result.
        progress: What a run looks like, one entry for each look at it; the last one stays.
        created: What its answer to a new run has beside what was asked for.
        healthz: What it says of itself beside ``multi_user``.
        now: The time on its clock; None: this machine's.
        logs: The logs that it has, by pod; one that is JSON is an error.
        log_refused: The status with which it refuses to read logs; 0: it does not.
        pages: Whether one comes in by its pages, as from outside a cluster: these hand only the
            published API on, and have an address of their own for logs.
        violations: Requests that did not follow the published API.
        calls: The API methods that were called.
    """

    token: str = ""
    namespace: str = ""
    failures: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    progress: list[Body] = field(default_factory=list)
    created: Body = field(default_factory=dict)
    healthz: Body = field(default_factory=lambda: {"tag_name": "2.17.0", "commit_sha": "0"})
    now: datetime | None = None
    logs: dict[str, bytes] = field(default_factory=dict)
    log_refused: int = 0
    pages: bool = False
    violations: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    pipelines: dict[str, Body] = field(default_factory=dict)
    versions: dict[str, Body] = field(default_factory=dict)
    experiments: dict[str, Body] = field(default_factory=dict)
    runs: dict[str, Body] = field(default_factory=dict)
    recurring_runs: dict[str, Body] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.routes = published_routes()

    @property
    def writes(self) -> list[str]:
        """The calls that change something."""
        return [c for c in self.calls if not re.search("_(list|get)_", c)]

    def answer(self, request: Request) -> Answer:
        date = format_datetime(self.now, usegmt=True) if self.now else ""
        try:
            self._login(request)
            log = LOG.fullmatch(request.path)
            if log and not self.pages:
                return self._log(log["run"], log["pod"])
            if self.pages and request.path == "/k8s/pod/logs":
                return self._log_of_pages(**request.query)
            if log or request.path == "/k8s/pod/logs":
                return Answer(404, b"<pre>Cannot GET</pre>", "text/html")
            status, content = 200, self._answer(request)
        except Refused as refused:
            status = refused.status
            content = {"error": refused.message, "code": 3, "message": refused.message}
            if status == 400:
                self.violations.append(refused.message)
        return Answer(status, json.dumps(content).encode(), date=date)

    def _login(self, request: Request) -> None:
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            raise Refused(401, "the token has expired")

    def _log(self, run: str, pod: str) -> Answer:
        self.calls.append("log")
        if self.log_refused:
            raise Refused(self.log_refused, "no")
        text = self.logs.get(pod, b"") if run in self.runs else b""
        if not text or text.startswith(b"{"):
            lost = {"error_message": f"Failed to read logs for run {run}", "error_details": ""}
            return Answer(500, text or json.dumps(lost).encode())
        return Answer(200, text, "text/plain")

    def _log_of_pages(self, podname: str, runid: str, podnamespace: str) -> Answer:
        self._in_namespace(podnamespace)
        answer = self._log(runid, podname)
        lost = Answer(500, b"Could not get main container logs: Error", "text/plain")
        return lost if answer.status == 500 else answer

    def record(self, folder: Path) -> str:
        """Serves a run as a real Kubeflow answered, with its logs and the pipeline it had.

        Args:
            folder: With ``run.json`` and ``log.POD.txt``.

        Returns:
            The run's identifier.
        """
        run = json.loads((folder / "run.json").read_text())
        self.runs[run["run_id"]] = run
        logs = {file.name[4:-4]: file.read_bytes() for file in folder.glob("log.*.txt")}
        self.logs |= logs
        reference = run["pipeline_version_reference"]
        self.versions[reference["pipeline_version_id"]] = {
            **reference,
            "name": folder.name,
            "pipeline_spec": {"pipeline_spec": pipeline_of(log.decode() for log in logs.values())},
        }
        return str(run["run_id"])

    def _answer(self, request: Request) -> Body:
        for route in self.routes:
            match = route.path.fullmatch(request.path)
            if match and route.method == request.method:
                break
        else:
            raise Refused(404, f"no such method: {request.method} {request.path}")
        self.calls.append(route.name)
        if self.failures.get(route.name):
            raise Refused(*self.failures[route.name].pop(0))
        unknown = set(request.query) - route.query
        if unknown:
            raise Refused(400, f"{route.name} has no query parameter {sorted(unknown)}")
        body: Any = None
        if route.body:
            body = json.loads(request.body)
            check_model(route.body, body, route.name, kfp_server_api)
        handler = getattr(self, route.name, None)
        if handler is None:
            raise Refused(501, f"{route.name} is not part of this server")
        result: Body = handler(request, match.groupdict(), body)
        check_model(route.response, result, f"answer of {route.name}", kfp_server_api)
        if route.name == "healthz_service_get_healthz":  # it says more than is published
            result |= self.healthz
            if self.pages:
                names = {"tag_name": "apiServerTagName", "pipeline_store": "pipelineStore"}
                result = {names.get(key, key): value for key, value in result.items()}
                result["apiServerReady"] = True
        return result

    # --- healthz, pipelines ---

    def healthz_service_get_healthz(self, *_: Any) -> Body:
        return {"multi_user": bool(self.namespace)}

    def _in_namespace(self, namespace: str | None) -> None:
        if self.namespace and namespace != self.namespace:
            raise Refused(403, f"User is not authorized in namespace {namespace!r}")
        if not self.namespace and namespace:
            raise Refused(400, "In single-user mode, the namespace must be empty")

    def pipeline_service_list_pipelines(self, request: Request, *_: Any) -> Body:
        self._in_namespace(request.query.get("namespace"))
        return {"pipelines": _filtered(self.pipelines, request)}

    def pipeline_service_create_pipeline(self, _: Request, __: Any, body: Body) -> Body:
        self._in_namespace(body.get("namespace"))
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", body.get("name", "")):
            raise Refused(400, f"the pipeline's name {body.get('name')!r} is not valid")
        if any(p["name"] == body["name"] for p in self.pipelines.values()):
            raise Refused(409, f"pipeline {body['name']} exists already")
        return _add(self.pipelines, "pipeline_id", body)

    def pipeline_service_delete_pipeline(
        self, request: Request, path: dict[str, str], _: Any
    ) -> Body:
        own = [k for k, v in self.versions.items() if v["pipeline_id"] == path["pipeline_id"]]
        if own and request.query.get("cascade", "").lower() != "true":
            raise Refused(400, "the pipeline has versions")
        for key in own:
            del self.versions[key]
        del self.pipelines[path["pipeline_id"]]
        return {}

    def pipeline_service_list_pipeline_versions(
        self, request: Request, path: dict[str, str], _: Any
    ) -> Body:
        own = {k: v for k, v in self.versions.items() if v["pipeline_id"] == path["pipeline_id"]}
        return {"pipeline_versions": _filtered(own, request)}

    def pipeline_service_get_pipeline_version(
        self, _: Request, path: dict[str, str], __: Any
    ) -> Body:
        return _get(self.versions, path["pipeline_version_id"])

    def pipeline_service_delete_pipeline_version(
        self, _: Request, path: dict[str, str], __: Any
    ) -> Body:
        assert self.versions[path["pipeline_version_id"]]["pipeline_id"] == path["pipeline_id"]
        del self.versions[path["pipeline_version_id"]]
        return {}

    def upload_pipeline_version(self, request: Request, *_: Any) -> Body:
        (part,) = MultipartDecoder(request.body, request.headers["content-type"]).parts
        assert b'name="uploadfile"' in part.headers[b"Content-Disposition"]
        pipeline, platform = yaml.safe_load_all(part.content)
        try:
            json_format.ParseDict(pipeline, pipeline_spec_pb2.PipelineSpec())
            json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
        except json_format.ParseError as error:
            raise Refused(400, f"the pipeline spec is invalid: {error}") from None
        name, owner = request.query["name"], request.query["pipelineid"]
        if owner not in self.pipelines:
            raise Refused(404, "the pipeline does not exist")
        if any(v["name"] == name and v["pipeline_id"] == owner for v in self.versions.values()):
            raise Refused(409, f"version {name} exists already")
        version = {"pipeline_id": owner, "name": name, "display_name": name}
        version["description"] = request.query["description"]
        version["pipeline_spec"] = {"pipeline_spec": pipeline, "platform_spec": platform}
        return _add(self.versions, "pipeline_version_id", version)

    # --- experiments, runs, recurring runs ---

    def experiment_service_list_experiments(self, request: Request, *_: Any) -> Body:
        self._in_namespace(request.query.get("namespace"))
        return {"experiments": _filtered(self.experiments, request)}

    def experiment_service_create_experiment(self, _: Request, __: Any, body: Body) -> Body:
        self._in_namespace(body.get("namespace"))
        return _add(self.experiments, "experiment_id", body)

    def experiment_service_delete_experiment(
        self, _: Request, path: dict[str, str], __: Any
    ) -> Body:
        del self.experiments[path["experiment_id"]]
        return {}

    def _check_run(self, body: Body) -> None:
        reference = body.get("pipeline_version_reference") or {}
        version = self.versions.get(reference.get("pipeline_version_id", ""))
        if version is None or version["pipeline_id"] != reference.get("pipeline_id"):
            raise Refused(404, "the pipeline version does not exist")
        if body.get("experiment_id") not in self.experiments:
            raise Refused(404, "the experiment does not exist")
        root = version["pipeline_spec"]["pipeline_spec"]["root"]
        inputs = root["inputDefinitions"]["parameters"]
        kinds = {"STRING": str, "BOOLEAN": bool, "LIST": list, "STRUCT": dict}
        given = body["runtime_config"].get("parameters", {})
        for name, definition in inputs.items():
            if name not in given and not definition.get("isOptional"):
                raise Refused(400, f"the parameter {name} is missing")
        for name, value in given.items():
            if name not in inputs:
                raise Refused(400, f"the parameter {name} is not one of the pipeline's")
            if not isinstance(value, kinds.get(inputs[name]["parameterType"], (int, float))):
                raise Refused(400, f"the parameter {name} is of the wrong type")

    def run_service_create_run(self, _: Request, __: Any, body: Body) -> Body:
        self._check_run(body)
        return _add(self.runs, "run_id", {**body, "state": "PENDING", **self.created})

    def run_service_list_runs(self, request: Request, *_: Any) -> Body:
        wanted = request.query.get("experiment_id")
        if wanted is None:
            self._in_namespace(request.query.get("namespace"))
        assert request.query["sort_by"] == "created_at desc"
        found = [r for r in self.runs.values() if wanted in (None, r["experiment_id"])]
        return {"runs": found[::-1][: int(request.query["page_size"])]}

    def run_service_get_run(self, _: Request, path: dict[str, str], __: Any) -> Body:
        run = _get(self.runs, path["run_id"])
        if self.progress and not run["state"].startswith("CANCEL"):
            run.update(self.progress.pop(0) if len(self.progress) > 1 else self.progress[0])
        return run

    def run_service_terminate_run(self, _: Request, path: dict[str, str], __: Any) -> Body:
        _get(self.runs, path["run_id"])["state"] = "CANCELING"
        return {}

    def recurring_run_service_create_recurring_run(self, _: Request, __: Any, body: Body) -> Body:
        self._check_run(body)
        if not 1 <= int(body.get("max_concurrency", 0)) <= 10:
            raise Refused(400, "max_concurrency must be from 1 to 10")
        cron = (body["trigger"].get("cron_schedule") or {}).get("cron")
        if cron is not None and len(cron.split()) != 6:
            raise Refused(400, f"the cron {cron!r} is invalid")
        return _add(self.recurring_runs, "recurring_run_id", body)

    def recurring_run_service_list_recurring_runs(self, request: Request, *_: Any) -> Body:
        self._in_namespace(request.query.get("namespace"))
        return {"recurringRuns": list(self.recurring_runs.values())}

    def recurring_run_service_get_recurring_run(
        self, _: Request, path: dict[str, str], __: Any
    ) -> Body:
        return _get(self.recurring_runs, path["recurring_run_id"])

    def recurring_run_service_delete_recurring_run(
        self, _: Request, path: dict[str, str], __: Any
    ) -> Body:
        del self.recurring_runs[path["recurring_run_id"]]
        return {}


def pipeline_of(logs: Iterable[str]) -> Body:
    """The pipeline that a run's drivers were given, as they print it at the head of their logs."""
    pipeline: Body = {"root": {}, "components": {}}
    for log in logs:
        given = {
            name: json.JSONDecoder().raw_decode(log, match.end())[0]
            for name in ("ComponentSpec", "TaskSpec")
            if (match := re.search(f" input {name}:", log))
        }
        if "TaskSpec" in given:
            name = given["TaskSpec"]["componentRef"]["name"]
            pipeline["components"][name] = given["ComponentSpec"]
        elif given:
            pipeline["root"] = given["ComponentSpec"]
    return pipeline


def _add(store: dict[str, Body], key: str, value: Body) -> Body:
    identifier = str(uuid.uuid4())
    store[identifier] = {**value, key: identifier, "created_at": datetime.now(UTC).isoformat()}
    return store[identifier]


def _get(store: dict[str, Body], key: str) -> Body:
    if key not in store:
        raise Refused(404, f"{key} not found")
    return store[key]


def _filtered(store: dict[str, Body], request: Request) -> list[Body]:
    found = list(store.values())
    for predicate in json.loads(request.query.get("filter") or "{}").get("predicates", []):
        assert predicate["operation"] in (1, "EQUALS")
        found = [v for v in found if v.get(predicate["key"]) == predicate["stringValue"]]
    return found
