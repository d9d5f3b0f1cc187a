"""``medseg check``: what it sees from here, then the table that the run's stage tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

from medseg.check import Row, cluster_rows, kubeflow_row, lines, looked, pod_rows
from tests.services.kubeflow_api import KubeflowApi
from tests.services.kubernetes_api import KubernetesApi

Medseg = Callable[..., Result]


def claim(phase: str = "Bound", *modes: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "medseg-data"},
        "spec": {"accessModes": list(modes or ("ReadWriteMany",))},
        "status": {"phase": phase, "capacity": {"storage": "200Gi"}},
    }


@pytest.fixture
def ready(kubernetes: KubernetesApi) -> KubernetesApi:
    kubernetes.objects["persistentvolumeclaims"] = {"medseg-data": claim()}
    kubernetes.labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return kubernetes


def run_tells(kubeflow: KubeflowApi, kubernetes: KubernetesApi, rows: list[Row]) -> None:
    """Lets the run that is created end well, its stage ``check`` having told these rows."""
    create = kubeflow.run_service_create_run

    def created(*given: Any) -> Any:
        run = create(*given)
        kubernetes.objects["pods"] = {
            "p": {
                "metadata": {
                    "name": "p",
                    "labels": {"pipeline/runid": run["run_id"]},
                    "annotations": {
                        "workflows.argoproj.io/node-name": "medseg-check-x.root.check.executor"
                    },
                    "creationTimestamp": "2026-01-01T00:00:00Z",
                },
                "status": {"phase": "Succeeded"},
            }
        }
        kubernetes.logs = {"p": "\n".join(["check: ok: GPU: there", "", *lines(rows)])}
        return run

    kubeflow.run_service_create_run = created  # type: ignore[method-assign]
    kubeflow.progress = [{"state": "SUCCEEDED"}]


def test_one_table(kubeflow: KubeflowApi, ready: KubernetesApi, medseg: Medseg) -> None:
    rows = [Row("claim", "warning", "could not be looked at", "x"), Row("GPU", "ok", "H100")]
    run_tells(kubeflow, ready, rows)
    output = medseg("check", "-p", "studies=https://pacs.example.org/dicom-web").stdout
    assert "leaves out nothing of what the stages ask for" in output
    assert "all that the command does in team" in output
    assert "medseg-data is Bound, ReadWriteMany, 200Gi" in output
    assert "team enforces restricted" in output
    assert "H100" in output
    assert "5 ok" in output, "what was seen from here is not told twice"
    (run,) = kubeflow.runs.values()
    assert run["runtime_config"]["parameters"]["studies"] == "https://pacs.example.org/dicom-web"


def test_a_failed_row_fails_the_command(
    kubeflow: KubeflowApi, ready: KubernetesApi, medseg: Medseg
) -> None:
    run_tells(kubeflow, ready, [Row("S3", "failed", "no bucket", "make it")])
    output = medseg("check", status=1).stdout
    assert "-> make it" in output
    assert "1 failed" in output


def test_a_run_without_a_table(kubeflow: KubeflowApi, ready: KubernetesApi, medseg: Medseg) -> None:
    run_tells(kubeflow, ready, [])
    assert "told no table" in medseg("check", status=1).stderr


def test_nothing_is_started_where_it_cannot_work(
    kubeflow: KubeflowApi, ready: KubernetesApi, medseg: Medseg
) -> None:
    ready.objects["persistentvolumeclaims"] = {}
    kubeflow.healthz = {"tag_name": "2.4.0"}
    output = medseg("check", status=1).stdout
    assert "team has no claim medseg-data" in output
    assert "older than 2.5" in output
    assert "mend what failed" in output
    assert kubeflow.writes == []


def test_no_kubeflow(medseg: Medseg) -> None:
    output = medseg("check", "--host", "http://127.0.0.1:1", status=1).stdout
    assert "127.0.0.1:1 cannot be reached" in output


def test_without_a_kube_config_the_pods_look(kubeflow: KubeflowApi, medseg: Medseg) -> None:
    kubeflow.healthz = {}
    kubeflow.progress = [{"state": "FAILED"}]
    result = medseg("check", status=1)
    # the stage has no log here; that it was started is what counts
    assert kubeflow.runs
    assert "there is no" in result.stdout + result.stderr


def test_rights_and_what_may_not_be_seen(ready: KubernetesApi) -> None:
    from medseg.check import rights_rows

    (row,) = rights_rows("team")
    assert row.state == "ok"
    ready.forbidden = {"runs", "pods/log", "namespaces", "persistentvolumeclaims"}
    (row,) = rights_rows("team")
    assert "you may not start runs, see the claim, read logs" in row.found
    rows = list(cluster_rows("medseg-data", "team"))
    assert [row.state for row in rows] == ["warning", "warning"]


@pytest.mark.parametrize(
    ("found", "state", "text"),
    [
        (claim("Pending"), "warning", "waits for the first pod"),
        (claim("Lost"), "failed", "make the claim anew"),
        (claim("Bound", "ReadWriteOnce"), "warning", "ReadWriteMany"),
    ],
)
def test_claims(ready: KubernetesApi, found: dict[str, Any], state: str, text: str) -> None:
    ready.objects["persistentvolumeclaims"] = {"medseg-data": found}
    row, _ = cluster_rows("medseg-data", "team")
    assert row.state == state
    assert text in row.remedy


def test_restricted_pods_of_an_old_kubeflow(ready: KubernetesApi) -> None:
    _, row = cluster_rows("medseg-data", "team", {"tag_name": "2.5.0"})
    assert row.state == "failed"
    assert "enforce=baseline" in row.remedy
    _, row = cluster_rows("medseg-data", "team", {"tag_name": "2.17.0"})
    assert row.state == "ok"


def test_what_a_pod_sees(kubeflow: KubeflowApi, ready: KubernetesApi) -> None:
    assert [row.state for row in pod_rows("medseg-data")] == ["ok", "ok", "ok"]
    kubeflow.token = "another"
    ready.namespace = "elsewhere"
    rows = list(pod_rows("medseg-data"))
    assert [row.state for row in rows] == ["warning"] * 3
    assert "cannot ask it for its version" in rows[0].found


def test_versions() -> None:
    def state(**server: str) -> str:
        return kubeflow_row(dict(server), "https://k").state

    assert state(tag_name="2.17.0") == "ok"
    assert state(tag_name="2.5.0") == state() == "warning"
    assert state(tag_name="2.4.1") == "failed"
    assert list(looked("x", lambda: iter(()))) == []
