"""A hospital's network: every server behind TLS, with certificates of the hospital's own authority.

Credentials reach the stages as on a cluster, as the files of mounted Secrets.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from minio import Minio

from medseg import components
from medseg.bundle import prepare_bundle
from medseg.nnunet import plan_and_preprocess, prepare_dataset
from medseg.project import DataRoot, own_authorities
from medseg.project.variables import SECRETS
from tests.containers.engine import Registry
from tests.hippocampus import add_tiny_configuration, copy_cases, write_config
from tests.services.authority import Authority, behind_tls
from tests.services.http import Answer, Request, serve
from tests.services.mlflow_server import free_port, start_server
from tests.services.object_store import ACCESS_KEY, SECRET_KEY, ObjectStore, serve_objects
from tests.services.orthanc import Orthanc, serve_orthanc

UNTRUSTED = (
    r'the certificate of {}:{} is not trusted: its issuer is "Hospital Root, Hospital"\. Put that '
    r"authority's certificate \(PEM\) under the key ca\.crt into the ConfigMap that ca_config_map "
    r"names \(kubectl create configmap medseg-ca --from-file=ca\.crt=FILE\)"
)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority") / "ca")


@pytest.fixture(autouse=True)
def stage_in_a_pod(
    root: DataRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """No variable of a Secret or of certificates; SIGTERM as it was."""
    names = [key.variable for kind in SECRETS.values() for key in kind.keys]
    for name in (*names, "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "AWS_CA_BUNDLE", "MEDSEG_CA_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MEDSEG_SECRETS_FOLDER", str(tmp_path / "secrets"))
    yield


@pytest.fixture
def secrets(tmp_path: Path) -> Any:
    """Mounts a Secret."""

    def mount(kind: str, **values: str) -> None:
        folder = tmp_path / "secrets" / kind
        folder.mkdir(parents=True)
        for key, value in values.items():
            (folder / key).write_text(f"{value}\n")

    return mount


def assert_untrusted(text: str, host: str, port: int) -> None:
    assert re.search(UNTRUSTED.format(re.escape(host), port), text), text


def run(name: str, **arguments: Any) -> Any:
    """Executes a component's body, as KFP does."""
    return getattr(components, name).python_func(**arguments)


def fails(capfd: pytest.CaptureFixture[str], name: str, **arguments: Any) -> str:
    """Executes it too; it must fail with one sentence, which is returned."""
    capfd.readouterr()
    with pytest.raises(SystemExit):
        run(name, **arguments)
    error = capfd.readouterr().err
    assert "Traceback" not in error
    return error[error.index("error: ") :]


class _Output:
    """What KFP gives a stage for an artifact."""

    def __init__(self) -> None:
        self.metadata: dict[str, Any] = {}


# --- the PACS ---


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with serve_orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


def test_the_pacs(
    orthanc: Orthanc,
    authority: Authority,
    root: DataRoot,
    shared_data: Path,
    secrets: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    secrets("dicomweb", username=orthanc.username, password=orthanc.password)
    (case,) = copy_cases(shared_data, root.path / "in", 1)
    with behind_tls(int(orthanc.rest.rpartition(":")[2]), authority.context()) as port:
        url = f"https://localhost:{port}/dicom-web"
        stages: dict[str, dict[str, Any]] = {
            "nifti_to_dicom": {"input_folder": "in", "output": url, "dicom": _Output()},
            "list_studies": {"studies": url, "output_folder": "out"},
            "convert_studies": {
                "studies": url,
                "output_folder": "out",
                "shard": 0,
                "nifti": _Output(),
            },
        }
        for name, arguments in stages.items():
            with monkeypatch.context() as trusting:
                if name == "convert_studies":  # needs what list_studies has written
                    trusting.setenv("MEDSEG_CA_FILE", str(authority.file))
                    run("list_studies", **stages["list_studies"])
            assert_untrusted(fails(capfd, name, **arguments), "localhost", port)
            with monkeypatch.context() as trusting:
                trusting.setenv("MEDSEG_CA_FILE", str(authority.file))
                run(name, **arguments)
    assert (root.path / f"out/{case}/{case}_image.nii.gz").is_file()


# --- MLflow and its S3 storage ---


@dataclass(frozen=True)
class Tracking:
    """An MLflow server that leaves artifacts to its clients, and their store."""

    port: int
    store: ObjectStore


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracking]:
    folder = tmp_path_factory.mktemp("tracking")
    port = free_port()
    with serve_objects(tmp_path_factory.mktemp("objects"), "mlflow") as store:
        direct = ("--no-serve-artifacts", "--default-artifact-root", f"s3://{store.bucket}/")
        server = start_server(folder, port, direct)
        try:
            yield Tracking(port, store)
        finally:
            os.killpg(server.pid, signal.SIGKILL)


LOG = """
import os
from medseg.config import fold_stage
from medseg.evaluation.summary import log_summary

with fold_stage("validate", "config.yaml") as config:
    mean = {"Dice": 0.5}
    summary = {"mean": {"1": mean}, "foreground_mean": mean, "metric_per_case": []}
    path = config.root.path / "summary.json"
    path.write_text("{}")
    log_summary(config, "validation", path, summary)
    assert not [name for name in os.environ if name.startswith(("AWS_ACC", "AWS_SEC"))]
"""
"""What validate and test_model do with their results; in a process of its own, as a stage is."""


def log_results(root: DataRoot, uri: str, **environment: str) -> str:
    bundle = {"bundle_root": "bundle", "tracking_uri": uri}
    write_config(root.path, bundle_config=bundle)
    done = subprocess.run(
        [sys.executable, "-c", LOG],
        env={**os.environ, **environment},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_mlflow_and_its_store(
    tracking: Tracking,
    authority: Authority,
    root: DataRoot,
    secrets: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = authority.context()
    with (
        behind_tls(tracking.port, context) as mlflow,
        behind_tls(tracking.store.port, context) as store,
    ):
        secrets(
            "mlflow_artifacts",
            access_key=ACCESS_KEY,
            secret_key=SECRET_KEY,
            endpoint=f"https://127.0.0.1:{store}",
        )
        uri = f"https://localhost:{mlflow}"
        text = log_results(root, uri)
        assert_untrusted(text, "localhost", mlflow)
        assert "going on, values are sent when it is back" in text
        assert_untrusted(log_results(root, f"http://127.0.0.1:{tracking.port}"), "127.0.0.1", store)
        assert tracking.store.names() == []

        text = log_results(root, uri, MEDSEG_CA_FILE=str(authority.file))
        assert "cannot be reached" not in text, text

        monkeypatch.setenv("MEDSEG_CA_FILE", str(authority.file))
        with own_authorities():
            client = Minio(f"localhost:{store}", ACCESS_KEY, SECRET_KEY)
            assert [bucket.name for bucket in client.list_buckets()] == ["mlflow"]
    (key,) = tracking.store.names()
    assert key.endswith("/artifacts/validation/summary.json")


# --- the registry ---


def test_the_registry(
    authority: Authority,
    root: DataRoot,
    tmp_path: Path,
    secrets: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    registry = Registry(tmp_path / "registry", password="right")
    login = {"auths": {}}
    with (
        closing(_Stopped(registry)),
        behind_tls(int(registry.host.rpartition(":")[2]), authority.context()) as port,
    ):
        host = f"0.0.0.0:{port}"  # one on localhost may do without certificates
        login["auths"][host] = {"auth": "bWVkc2VnOnJpZ2h0"}
        secrets("registry", **{".dockerconfigjson": json.dumps(login, indent=1)})
        (root.path / "context" / "rootfs").mkdir(parents=True)
        (root.path / "context" / "rootfs" / "model.ts").write_text("model")
        description = {"base": f"{host}/base:1", "labels": {"a": "b"}, "environment": {}}
        (root.path / "context" / "image.json").write_text(json.dumps(description))
        _push_base(tmp_path, registry.host)
        arguments = {"context": "context", "destination": f"{host}/spleen:1"}
        assert_untrusted(fails(capfd, "docker_build", **arguments), "0.0.0.0", port)
        monkeypatch.setenv("MEDSEG_CA_FILE", str(authority.file))
        assert re.fullmatch("sha256:[0-9a-f]{64}", run("docker_build", **arguments))


class _Stopped:
    def __init__(self, registry: Registry) -> None:
        self.close = registry.stop


def _push_base(folder: Path, registry: str) -> None:
    """An image without a layer, as the base."""
    layout = f"{folder}/layout"
    for command in (
        f"umoci init --layout {layout}",
        f"umoci new --image {layout}:base",
        f"skopeo copy --quiet --dest-tls-verify=false --dest-creds medseg:right oci:{layout}:base "
        f"docker://{registry}/base:1",
    ):
        subprocess.run(command.split(), check=True, capture_output=True)


# --- the webhook ---


def test_the_webhook(
    authority: Authority,
    root: DataRoot,
    secrets: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    heard: list[Request] = []

    def answer(request: Request) -> Answer:
        heard.append(request)
        return Answer(200)

    arguments = {"pipeline": "train", "run": "r", "last_stage": "train"}
    with serve(answer, authority.context()) as url:
        secrets("notify", url=url)
        port = int(url.rpartition(":")[2])
        assert_untrusted(fails(capfd, "notify", **arguments), "127.0.0.1", port)
        assert heard == []
        monkeypatch.setenv("MEDSEG_CA_FILE", str(authority.file))
        run("notify", **arguments)
    assert json.loads(heard[0].body)["status"] == "FAILED"


TRAIN = """
from kfp.dsl import Metrics
from medseg import components

if __name__ == "__main__":
    components.train.python_func(config_file_path="config.yaml", metrics=Metrics())
    components.validate.python_func(config_file_path="config.yaml", metrics=Metrics())
"""


@pytest.mark.slow
def test_a_training(
    tracking: Tracking,
    authority: Authority,
    root: DataRoot,
    shared_data: Path,
    secrets: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The stages train and validate themselves."""
    copy_cases(shared_data, root.path / "NIFTI")
    config = write_config(root.path)
    prepare_dataset(config)
    plan_and_preprocess(config)
    add_tiny_configuration(config)
    plan_and_preprocess(write_config(root.path, configuration="tiny"))
    prepare_bundle(config)
    context = authority.context()
    with (
        behind_tls(tracking.port, context) as mlflow,
        behind_tls(tracking.store.port, context) as store,
    ):
        endpoint = f"https://127.0.0.1:{store}"
        secrets("mlflow_artifacts", access_key=ACCESS_KEY, secret_key=SECRET_KEY, endpoint=endpoint)
        bundle = {"bundle_root": "bundle", "tracking_uri": f"https://localhost:{mlflow}"}
        write_config(root.path, bundle_config=bundle, configuration="tiny", num_epochs=2)
        monkeypatch.setenv("MEDSEG_CA_FILE", str(authority.file))
        script = root.path / "stages.py"
        script.write_text(TRAIN)
        done = subprocess.run(
            [sys.executable, str(script)], check=False, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    assert "cannot be reached" not in done.stdout + done.stderr
    keys = {key.rpartition("/")[2] for key in tracking.store.names()}
    assert {"progress.png", "plans.json", "summary.json"} <= keys
