"""Servers that tests of the cluster talk to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from medseg.cli import main
from tests.services.http import serve
from tests.services.kubeflow_api import KubeflowApi
from tests.services.kubernetes_api import KubernetesApi, write_kube_config

Medseg = Callable[..., Result]


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster of the person who runs the tests."""
    for name in ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_SA_TOKEN_PATH", "MEDSEG_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))


@pytest.fixture
def kubeflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeflowApi]:
    """A multi-user Kubeflow with a token, where the namespace ``team`` is ours."""
    api = KubeflowApi(token="good", namespace="team")
    (tmp_path / "token").write_text("good\n")
    with serve(api.answer) as url:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", url)
        monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("MEDSEG_NAMESPACE", "team")
        yield api
    assert api.violations == []


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    """A Kubernetes with the claim ``medseg-data`` in the namespace ``team``."""
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"}}
    api = KubernetesApi(objects={"persistentvolumeclaims": {"medseg-data": claim}})
    with serve(api.answer) as url:
        write_kube_config(tmp_path / "kube", url)
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kube"))
        yield api
    assert api.violations == []


@pytest.fixture
def medseg() -> Medseg:
    """Runs the command."""

    def run(*arguments: str, status: int = 0, **options: object) -> Result:
        result = CliRunner().invoke(main, arguments, catch_exceptions=False, **options)
        assert result.exit_code == status, result.output
        return result

    return run
