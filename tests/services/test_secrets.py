"""Secrets, written through the Kubernetes API."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import Result

from medseg.kubeflow.settings import PlatformSettings
from medseg.project.variables import SECRETS
from tests.services.kubernetes_api import KubernetesApi

Medseg = Callable[..., Result]


def _data(kubernetes: KubernetesApi, name: str) -> dict[str, str]:
    data = kubernetes.objects["secrets"][name]["data"]
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


@pytest.mark.parametrize("kind", sorted(set(SECRETS) - {"registry"}))
def test_a_secret_has_the_keys_that_stages_read(
    kubernetes: KubernetesApi, medseg: Medseg, tmp_path: Path, kind: str
) -> None:
    values = {key: f"value of {key}" for key in SECRETS[kind].variables}
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    name = getattr(PlatformSettings(), f"{kind}_secret")
    assert medseg("secrets", kind, "--from-file", str(file)).stdout == (
        f"created the Secret {name} in the namespace team\n"
    )
    assert _data(kubernetes, name) == values
    assert kubernetes.objects["secrets"][name]["type"] == "Opaque"


def test_from_the_prompt_and_again(kubernetes: KubernetesApi, medseg: Medseg) -> None:
    result = medseg("secrets", "dicomweb", input="alice\nhunter2\n\n")
    assert "hunter2" not in result.output
    assert _data(kubernetes, "medseg-dicomweb") == {"username": "alice", "password": "hunter2"}
    result = medseg("secrets", "dicomweb", input="\n\nabc\n")
    assert result.stdout.endswith("updated the Secret medseg-dicomweb in the namespace team\n")
    assert _data(kubernetes, "medseg-dicomweb") == {"token": "abc"}, "old keys must go"


def test_registry(kubernetes: KubernetesApi, medseg: Medseg, tmp_path: Path) -> None:
    medseg("secrets", "registry", input="registry.site\nbob\npw\n")
    stored = kubernetes.objects["secrets"]["medseg-registry"]
    assert stored["type"] == "kubernetes.io/dockerconfigjson"
    config = json.loads(_data(kubernetes, "medseg-registry")[".dockerconfigjson"])
    assert base64.b64decode(config["auths"]["registry.site"]["auth"]) == b"bob:pw"

    file = tmp_path / "config.json"
    file.write_text(json.dumps({"auths": {"r.site": {"auth": "Ym9iOnB3"}}, "credsStore": "x"}))
    medseg("secrets", "registry", "--from-file", str(file), "--name", "mine")
    config = json.loads(_data(kubernetes, "mine")[".dockerconfigjson"])
    assert config == {"auths": {"r.site": {"auth": "Ym9iOnB3"}}}


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("mlflow", '{"user": "s3cret"}', "a mlflow Secret has no 'user', only username"),
        ("mlflow", '{"password": 12345678}', "password of the mlflow Secret must be text"),
        ("mlflow", "{}", "the mlflow Secret would be empty"),
        ("mlflow", "s3cret", "must hold 'key: value' lines"),
        ("mlflow", "{s3cret: [", "cannot be read as JSON or YAML"),
        ("registry", '{"server": "r.site"}', "the registry Secret needs username, password"),
        ("registry", '{"auths": {"r": {}}}', "holds no password (a credential helper keeps it)"),
    ],
)
def test_wrong_values(
    kubernetes: KubernetesApi,
    medseg: Medseg,
    tmp_path: Path,
    kind: str,
    content: str,
    message: str,
) -> None:
    file = tmp_path / "values"
    file.write_text(content)
    error = medseg("secrets", kind, "--from-file", str(file), status=1).stderr
    assert message in error
    assert "s3cret" not in error
    assert "12345678" not in error
    assert kubernetes.objects.get("secrets", {}) == {}


def test_another_type_or_no_rights(
    kubernetes: KubernetesApi, medseg: Medseg, monkeypatch: pytest.MonkeyPatch
) -> None:
    medseg("secrets", "registry", "--name", "x", input="r.site\nbob\npw\n")
    error = medseg("secrets", "mlflow_artifacts", "--name", "x", input="a\nb\n\n", status=1).stderr
    assert "is of type kubernetes.io/dockerconfigjson, which cannot become Opaque" in error
    arguments = ("mlflow_artifacts", "-n", "strangers")
    error = medseg("secrets", *arguments, input="a\nb\n\n", status=1).stderr
    assert "does not allow this" in error


def test_values_are_no_arguments(medseg: Medseg) -> None:
    error = medseg("secrets", "mlflow_artifacts", "--access_key", "x", status=2).stderr
    assert "No such option" in error


def test_no_cluster(medseg: Medseg) -> None:
    error = medseg("secrets", "mlflow_artifacts", input="a\nb\n\n", status=1).stderr
    assert "no kube config" in error
