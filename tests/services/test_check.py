"""The pipeline ``check`` with a real Orthanc, MLflow, S3 and registry: well, and broken."""

from __future__ import annotations

import base64
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from medseg.check import Row, read_rows
from medseg.project import DataRoot, UserError
from medseg.tracking import TryRun
from tests.containers.engine import Registry
from tests.pipelines.harness import medseg
from tests.services.authority import Authority, behind_tls
from tests.services.http import Answer, Request, serve
from tests.services.mlflow_server import free_port, start_server
from tests.services.object_store import ACCESS_KEY, SECRET_KEY, ObjectStore, serve_objects
from tests.services.orthanc import Orthanc, serve_orthanc

PASSWORD = "right-password"
WRONG = "wrong-password"
BUCKET = "models"


@dataclass
class Site:
    """Servers of a hospital.

    Attributes:
        hook: URL of the webhook.
        messages: What it was sent.
        login: URL of a proxy that asks everybody for a login.
    """

    orthanc: Orthanc
    mlflow: str
    store: ObjectStore
    registry: Registry
    hook: str
    login: str
    messages: list[dict[str, Any]] = field(default_factory=list)

    def secrets(self, **changes: str) -> dict[str, dict[str, str]]:
        """The Secrets by kind and key; ``changes`` by the name of a part."""
        login = f"medseg:{changes.get('registry', PASSWORD)}"
        auth = {"auth": base64.b64encode(login.encode()).decode()}
        return {
            "dicomweb": {
                "username": self.orthanc.username,
                "password": changes.get("pacs", self.orthanc.password),
            },
            "mlflow_artifacts": {
                "access_key": ACCESS_KEY,
                "secret_key": changes.get("s3", SECRET_KEY),
                "endpoint": changes.get("endpoint", f"http://127.0.0.1:{self.store.port}"),
            },
            "notify": {"url": changes.get("hook", self.hook)},
            "registry": {".dockerconfigjson": json.dumps({"auths": {self.registry.host: auth}})},
        }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    for name in ("orthanc", "mlflow", "s3"):
        (folder / name).mkdir()
    port = free_port()
    messages: list[dict[str, Any]] = []

    def hear(request: Request) -> Answer:
        if request.path != "/hook/secret-part":
            return Answer(404)
        messages.append(json.loads(request.body))
        return Answer(200, b"ok")

    mlflow = start_server(
        folder / "mlflow",
        port,
        (
            *("--artifacts-destination", str(folder / "artifacts")),
            *("--default-artifact-root", f"s3://{BUCKET}/mlflow"),
        ),
    )
    registry = Registry(folder / "registry", password=PASSWORD)
    try:
        with (
            serve_orthanc(folder / "orthanc") as orthanc,
            serve_objects(folder / "s3", BUCKET) as store,
            serve(hear) as hook,
            serve(lambda _: Answer(401, b"log in first")) as login,
        ):
            yield Site(
                orthanc,
                f"http://127.0.0.1:{port}",
                store,
                registry,
                f"{hook}/hook/secret-part",
                login,
                messages,
            )
    finally:
        registry.stop()
        os.killpg(mlflow.pid, signal.SIGKILL)
        mlflow.wait()


@pytest.fixture
def check(site: Site, root: DataRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs ``medseg run check`` with Secrets as files; gives its rows by name, and its output."""

    def run(
        parameters: dict[str, str], secrets: dict[str, dict[str, str]], status: int
    ) -> tuple[dict[str, Row], str]:
        for kind, values in secrets.items():
            (tmp_path / "secrets" / kind).mkdir(parents=True)
            for key, value in values.items():
                (tmp_path / "secrets" / kind / key).write_text(value)
        monkeypatch.setenv("MEDSEG_SECRETS_FOLDER", str(tmp_path / "secrets"))
        given = (part for key, value in parameters.items() for part in ("-p", f"{key}={value}"))
        done = medseg("run", "check", "--data-root", root.path, *given)
        output = done.stdout + done.stderr
        log = next((root.path / "runs").glob("*/log.txt")).read_text()
        assert done.returncode == status, output + log
        (report,) = (root.path / "reports").iterdir()
        everything = output + log + (report / "check.html").read_text()
        for value in (PASSWORD, WRONG, SECRET_KEY, "secret-part", site.orthanc.password):
            assert value not in everything, "a Secret is shown"
        return {row.name: row for row in read_rows(report)}, output

    return run


def parameters(site: Site, **changes: str) -> dict[str, str]:
    return {
        "studies": site.orthanc.url,
        "store": "true",
        "tracking_uri": site.mlflow,
        "registry": f"{site.registry.host}/imaging",
        "push": "true",
        **changes,
    }


def test_a_site_that_is_ready(site: Site, check: Any) -> None:
    site.orthanc.empty()
    rows, output = check(parameters(site), site.secrets(), 0)
    # this machine has no GPU, and its tests may be run by root
    assert {name for name, row in rows.items() if row.state != "ok"} <= {"GPU", "user"}
    assert set(rows) >= {
        *("image", "volume: writable", "volume: locks", "volume: space", "volume: speed"),
        *("/dev/shm", "GPU", "PACS", "PACS: store", "MLflow", "S3", "webhook", "clock"),
        *("registry", "registry: push"),
    }
    assert site.orthanc.count() == 1
    assert [message["pipeline"] for message in site.messages] == ["check"]
    (stored,) = site.store.names()
    assert stored.endswith("check.txt")
    assert "/v2/imaging/medseg-check/manifests/empty" in site.registry.log.read_text()
    assert "QIDO-RS answered" in output, "the table is in the terminal"


DENIED = {
    "PACS": "answered 401",
    "MLflow": "denies access",
    "registry": "denies access to imaging/medseg-check",
    "webhook": "did not take the message (Not Found)",
}
AWAY = {
    "PACS": "cannot be reached",
    "MLflow": "cannot be reached",
    "registry": "cannot be reached",
    "webhook": "did not take the message",
}
WRONG_PLACES = {
    "PACS": "answered 404",
    "S3": "denies access",
    "registry": "speaks no TLS",
    "webhook": "is no http(s) URL",
}
SILENT = {"PACS": "accepts no association", "S3": "cannot be reached", "registry": "no image name"}
GONE = {"PACS": "holds no DICOM file", "S3": "no bucket s3://x"}


def broken(site: Site, way: str) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Parameters and Secrets of a site that is broken in a way of :data:`WAYS`."""
    nobody = f"127.0.0.1:{free_port()}"
    if way == "denied":
        hook = site.hook.replace("/hook/", "/other/")
        secrets = site.secrets(pacs=WRONG, registry=WRONG, hook=hook)
        return parameters(site, tracking_uri=site.login), secrets
    if way == "away":
        dead = {"studies": f"http://{nobody}/dicom-web", "tracking_uri": f"http://{nobody}"}
        secrets = site.secrets(hook=f"http://{nobody}/secret-part")
        return parameters(site, registry=f"{nobody}/imaging", **dead), secrets
    if way == "wrong places":
        elsewhere = site.registry.host.replace("localhost", "0.0.0.0")
        secrets = site.secrets(s3=WRONG, hook="ftp://example.org/secret-part")
        place = f"{site.orthanc.rest}/somewhere"
        return parameters(site, studies=place, registry=f"{elsewhere}/imaging"), secrets
    if way == "silent":
        node = site.orthanc.node.replace("ORTHANC", "NOBODY")
        secrets = site.secrets(endpoint=f"http://{nobody}")
        return parameters(site, studies=node, registry="Not An Image"), secrets
    # a store that makes what buckets it lacks still refuses a name that none may have
    experiments = f"{site.mlflow}/api/2.0/mlflow/experiments"
    found = requests.get(f"{experiments}/get-by-name?experiment_name=medseg-check", timeout=10)
    if found.ok:
        renamed = {"experiment_id": found.json()["experiment"]["experiment_id"], "new_name": "old"}
        requests.post(f"{experiments}/update", json=renamed, timeout=10).raise_for_status()
    place = {"name": "medseg-check", "artifact_location": "s3://x/mlflow"}
    requests.post(f"{experiments}/create", json=place, timeout=10).raise_for_status()
    return parameters(site, studies="file:///mnt/Data/runs", push="false"), site.secrets()


WAYS = {
    "denied": DENIED,
    "away": AWAY,
    "wrong places": WRONG_PLACES,
    "silent": SILENT,
    "gone": GONE,
}


def test_mlflow_without_s3_and_without_keys(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "check.txt"
    file.write_text("1")
    place = {"name": "kept", "artifact_location": "mlflow-artifacts:/kept"}
    experiments = f"{site.mlflow}/api/2.0/mlflow/experiments"
    requests.post(f"{experiments}/create", json=place, timeout=10).raise_for_status()
    for _ in range(2):  # the second writes the run of the first
        attempt = TryRun(site.mlflow, "kept")
        attempt.write()
        attempt.write_file(file)
    assert not attempt.storage.startswith("s3:")
    runs = attempt._client.search_runs([attempt._run.info.experiment_id])
    assert len(runs) == 1

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    attempt = TryRun(site.mlflow, "without-keys")
    attempt.write()
    with pytest.raises(UserError, match=r"there is no key for s3://models: give it in the Secret"):
        attempt.write_file(file)

    nothing = site.hook.partition("/hook/")[0]
    with pytest.raises(UserError, match=r"what answers at 127\.0\.0\.1 is no MLflow server"):
        TryRun(nothing, "x").write()


def test_certificates_of_the_hospitals_own(site: Site, check: Any, tmp_path: Path) -> None:
    context = Authority(tmp_path / "ca").context()
    with (
        behind_tls(int(site.orthanc.rest.rpartition(":")[2]), context) as pacs,
        behind_tls(int(site.mlflow.rpartition(":")[2]), context) as mlflow,
    ):
        places = {
            "studies": f"https://127.0.0.1:{pacs}/dicom-web",
            "tracking_uri": f"https://127.0.0.1:{mlflow}",
        }
        rows, _ = check(parameters(site, **places), site.secrets(), 1)
    for name in ("PACS", "MLflow"):
        assert 'is not trusted: its issuer is "Hospital Root, Hospital"' in rows[name].found
        assert rows[name].remedy.startswith("Put that authority's certificate (PEM)")


@pytest.mark.parametrize("way", WAYS)
def test_a_site_that_is_not(site: Site, check: Any, way: str) -> None:
    rows, output = check(*broken(site, way), 1)
    for name, found in WAYS[way].items():
        assert rows[name].state == "failed", rows[name]
        assert found in rows[name].found, rows[name]
        assert rows[name].remedy, rows[name]
        assert f"-> {rows[name].remedy[:30]}" in output
    expected = set(WAYS[way]) | {"GPU", "user"}
    assert {name for name, row in rows.items() if row.state in ("failed", "warning")} <= expected
