"""The commands for a cluster, over HTTP against the published API."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from medseg.cli import watch
from medseg.kubeflow.client import Cluster
from medseg.kubeflow.compiled import compiled_folder, pipeline_names, read_pipeline
from tests.services.http import Answer, Request, serve
from tests.services.kubeflow_api import KubeflowApi
from tests.services.kubernetes_api import KubernetesApi

Medseg = Callable[..., Result]
TRAIN = ("-p", "config_file_path=configs/Task.yaml")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)


# --- upload ---


def test_upload_all_and_again(kubeflow: KubeflowApi, medseg: Medseg) -> None:
    lines = medseg("upload").stdout.splitlines()
    assert len(lines) == len(pipeline_names()) == len(kubeflow.pipelines)
    assert all(": uploaded, http" in line for line in lines)
    assert {p["namespace"] for p in kubeflow.pipelines.values()} == {"team"}
    assert all(": unchanged, http" in line for line in medseg("upload").stdout.splitlines())
    assert len(kubeflow.versions) == len(pipeline_names())


def test_a_changed_pipeline_becomes_a_new_version(
    kubeflow: KubeflowApi, medseg: Medseg, tmp_path: Path
) -> None:
    medseg("upload", "train")
    changed = tmp_path / "train.yaml"
    changed.write_text((compiled_folder() / "train.yaml").read_text() + "# site\n")
    medseg("upload", str(changed))
    assert len(kubeflow.pipelines) == 1
    (manual,) = {version["description"] for version in kubeflow.versions.values()}
    assert manual.startswith("Trains nnU-Net, one fold or several at the same time, tracked in MLf")
    assert "\n- `config_file_path` (required): The task's config." in manual
    assert "pvc_name" not in manual
    names = [version["name"] for version in kubeflow.versions.values()]
    assert len(set(names)) == 2
    assert all(name.startswith("0.") and len(name.rsplit("-", 1)[1]) == 12 for name in names)


def test_a_failed_upload_leaves_nothing(kubeflow: KubeflowApi, medseg: Medseg) -> None:
    kubeflow.failures["upload_pipeline_version"] = [(500, "the object store is full")]
    message = medseg("upload", "train", status=1).stderr
    assert message.startswith("error: uploading train.yaml failed: http")
    assert "answers 500: the object store is full." in message
    assert kubeflow.pipelines == {}
    assert kubeflow.calls[-1] == "pipeline_service_delete_pipeline"


def test_a_failed_new_version_keeps_the_pipeline(
    kubeflow: KubeflowApi, medseg: Medseg, tmp_path: Path
) -> None:
    medseg("upload", "train")
    changed = tmp_path / "train.yaml"
    changed.write_text((compiled_folder() / "train.yaml").read_text() + "# site\n")
    kubeflow.failures["upload_pipeline_version"] = [(503, "away")]
    medseg("upload", str(changed), status=1)
    assert len(kubeflow.pipelines) == len(kubeflow.versions) == 1


# --- submit ---


def test_submit(
    kubeflow: KubeflowApi, kubernetes: KubernetesApi, medseg: Medseg, tmp_path: Path
) -> None:
    file = tmp_path / "args.json"
    file.write_text(json.dumps({"config_file_path": "configs/a.yaml", "folds": [0, 1]}))
    result = medseg(
        *("submit", "train", "--args", str(file), "-p", "gpu_count=1"),
        *("-p", 'node_selector={"gpu": "a100"}', "--experiment", "spleen", "--name", "first"),
        *("--service-account", "default-editor"),
    )
    assert result.stderr == ""
    (run,) = kubeflow.runs.values()
    assert run["runtime_config"]["parameters"] == {
        "config_file_path": "configs/a.yaml",
        "folds": [0, 1],
        "gpu_count": "1",
        "node_selector": {"gpu": "a100"},
    }
    assert run["display_name"] == "first"
    assert run["service_account"] == "default-editor"
    (experiment,) = kubeflow.experiments.values()
    assert (experiment["display_name"], experiment["namespace"]) == ("spleen", "team")
    (version,) = kubeflow.versions.values()
    assert (
        run["pipeline_version_reference"]["pipeline_version_id"] == version["pipeline_version_id"]
    )
    assert result.stdout.splitlines()[1].endswith(f"/#/runs/details/{run['run_id']}")


def test_the_same_experiment_is_used_again(kubeflow: KubeflowApi, medseg: Medseg) -> None:
    for _ in range(2):
        result = medseg("submit", "train", *TRAIN)
    assert len(kubeflow.experiments) == len(kubeflow.versions) == 1
    assert len(kubeflow.runs) == 2
    assert "note: not checked whether the claim medseg-data exists" in result.stderr
    assert "there is no kube config" in result.stderr


def test_kubeflow_is_asked_for_an_mlflow_experiment(kubeflow: KubeflowApi, medseg: Medseg) -> None:
    medseg("submit", "train", *TRAIN)
    command = ("submit", "train", *TRAIN, "--mlflow-experiment", "spleen")
    old = medseg(*command).stderr
    kubeflow.created = {"plugins_output": {"mlflow": {"state": "PLUGIN_SUCCEEDED"}}}
    linked = medseg(*command).stderr
    failed = {"state": "PLUGIN_FAILED", "state_message": "MLflow does not answer."}
    kubeflow.created = {"plugins_output": {"mlflow": failed}}
    refused = medseg(*command).stderr
    without, *others = kubeflow.runs.values()
    assert "plugins_input" not in without
    for run in others:  # as KFP 2.17's API documents it
        assert run["plugins_input"] == {"mlflow": {"experiment_name": "spleen"}}
    said = "note: no run was opened in the MLflow experiment 'spleen'"
    assert f"{said}: this Kubeflow has no link to MLflow (KFP 2.17 or newer with" in old
    assert said not in linked
    assert f"{said}: MLflow does not answer.\n" in refused


def _task(name: str, state: str, **more: Any) -> dict[str, Any]:
    return {"display_name": name, "state": state, "start_time": "2026-01-01T00:00:00Z", **more}


def _states(state: str, *tasks: dict[str, Any], **more: Any) -> dict[str, Any]:
    steps = [
        *("root-driver", "root", "executor", "executor(0)", "iteration-driver", "for-loop-1"),
        *("iteration-iterations(0:0)", "exit-handler-1", "exit-handler-1-driver", "condition-2"),
    ]
    own = [*(_task(name, "RUNNING") for name in steps), *tasks]
    return {"state": state, "run_details": {"task_details": own}, **more}


def test_wait_shows_the_tasks(kubeflow: KubeflowApi, medseg: Medseg) -> None:
    kubeflow.progress = [
        _states("RUNNING"),
        _states("RUNNING", _task("train", "RUNNING")),
        _states("RUNNING", _task("train", "RUNNING")),
        _states("SUCCEEDED", _task("train", "SUCCEEDED"), _task("notify", "SUCCEEDED")),
    ]
    kubeflow.failures["run_service_get_run"] = [(503, "busy"), (502, "busy")]
    lines = medseg("submit", "train", *TRAIN, "--wait").stdout.splitlines()[2:]
    assert lines[:3] == ["  train: running", "  train: succeeded", "  notify: succeeded"]
    assert lines[3].endswith(" succeeded")


def test_wait_fails_with_the_run(kubeflow: KubeflowApi, medseg: Medseg) -> None:
    error = {"code": 1, "message": "the config configs/Task.yaml does not exist"}
    kubeflow.progress = [_states("FAILED", _task("train", "FAILED", error=error))]
    result = medseg("submit", "train", *TRAIN, "--wait", status=1)
    assert "  train: failed: the config configs/Task.yaml does not exist\n" in result.stdout


def test_wait_live(kubeflow: KubeflowApi, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    console = Console(force_terminal=True, width=100, record=True)
    monkeypatch.setattr(watch, "_console", lambda: console)
    kubeflow.progress = [
        _states("RUNNING", _task("train", "RUNNING")),
        _states("SUCCEEDED", _task("train", "SUCCEEDED", end_time="2026-01-01T00:01:30Z")),
    ]
    cluster = Cluster()
    run = cluster.submit(
        read_pipeline("train"), {"config_file_path": "c.yaml"}, note=lambda _: None
    )
    assert watch.show_wait(cluster, run).state == "SUCCEEDED"
    text = console.export_text()
    assert "train" in text
    assert "90" in text


# --- schedule ---


def test_schedule(kubeflow: KubeflowApi, medseg: Medseg) -> None:
    result = medseg("schedule", "train", *TRAIN, "--cron", "30 2 * * mon-fri")
    assert "note: cron '30 2 * * mon-fri' has five fields: passed on to KFP as" in result.stderr
    (recurring,) = kubeflow.recurring_runs.values()
    assert recurring["trigger"]["cron_schedule"]["cron"] == "0 30 2 * * MON-FRI"
    assert recurring["no_catchup"] is True
    assert recurring["max_concurrency"] == "1"
    assert recurring["mode"] == "ENABLE"
    assert recurring["display_name"] == "train"
    assert recurring["runtime_config"]["parameters"] == {"config_file_path": "configs/Task.yaml"}

    message = medseg("schedule", "train", *TRAIN, "--every", "1d", status=1).stderr
    assert "there is a recurring run 'train' already" in message
    medseg(
        *("schedule", "train", *TRAIN, "--every", "1d12h", "--name", "other"),
        *("--catch-up", "--concurrency", "3"),
    )
    other = list(kubeflow.recurring_runs.values())[1]
    assert other["trigger"]["periodic_schedule"]["interval_second"] == "129600"
    assert (other["no_catchup"], other["max_concurrency"]) == (False, "3")

    listed = medseg("runs", "--schedules").stdout
    assert "0 30 2 * * MON-FRI" in listed
    assert "every 129600 s" in listed
    medseg("cancel", "--schedule", recurring["recurring_run_id"])
    assert [r["display_name"] for r in kubeflow.recurring_runs.values()] == ["other"]


# --- runs, logs, cancel ---


def test_runs_and_cancel(kubeflow: KubeflowApi, medseg: Medseg) -> None:
    for name in ("one", "two"):
        medseg("submit", "train", *TRAIN, "--name", name)
    one, two = kubeflow.runs
    listed = medseg("runs", "--experiment", "medseg").stdout
    assert listed.index("two") < listed.index("one")
    assert one not in medseg("runs", "--count", "1").stdout
    assert "no experiment 'none'" in medseg("runs", "--experiment", "none", status=1).stderr
    medseg("cancel", one)
    assert kubeflow.runs[one]["state"] == "CANCELING"
    kubeflow.progress = [_states("SUCCEEDED", _task("train", "SUCCEEDED"))]
    assert "train" in medseg("runs", two).stdout
    assert "has already ended (succeeded)" in medseg("cancel", two, status=1).stderr
    assert "failed: http" in medseg("cancel", "nothing", status=1).stderr


def _pod(run: str, name: str, node: str, second: int, phase: str = "Succeeded") -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "labels": {"pipeline/runid": run},
            "annotations": {"workflows.argoproj.io/node-name": node},
            "creationTimestamp": f"2026-01-01T00:00:{second:02}Z",
        },
        "status": {"phase": phase},
    }


def test_logs_of_a_server_that_names_no_tasks(
    kubeflow: KubeflowApi, kubernetes: KubernetesApi, medseg: Medseg
) -> None:
    medseg("submit", "train", *TRAIN)
    (run,) = kubeflow.runs
    message = medseg("logs", run, status=1).stderr
    assert "there are no logs of the run" in message
    assert "Kubeflow names no tasks of it (yet). Its page: http" in message
    kubernetes.objects["pods"] = {
        "c": _pod(run, "c", "medseg-train-x.root.notify.executor", 3, "Pending"),
        "b": _pod(run, "b", "medseg-train-x.root.exit-handler-1.train.executor", 2),
        "a": _pod(run, "a", "medseg-train-x.root-driver", 1),
        "d": _pod("another", "d", "medseg-train-y.root.train.executor", 4),
    }
    kubernetes.logs = {"a": "driver", "b": "epoch 1", "d": "not ours"}
    output = medseg("logs", run).stdout.splitlines()
    assert output[:2] == ["--- train", "epoch 1"]
    assert output[2:4] == ["--- notify", "(no log yet: its pod has not started.)"]
    assert medseg("logs", run, "train").stdout == "--- train\nepoch 1\n"
    assert "no task 'trian', only train, notify" in medseg("logs", run, "trian", status=1).stderr


def test_logs_without_kubernetes(kubeflow: KubeflowApi, medseg: Medseg) -> None:
    medseg("submit", "train", *TRAIN)
    (run,) = kubeflow.runs
    message = medseg("logs", run, status=1).stderr
    assert "there is no kube config" in message
    assert f"/#/runs/details/{run}" in message


# --- bad input: one sentence, before anything is created ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("submit", "trian", *TRAIN), "there is no pipeline 'trian' (did you mean 'train'?)"),
        (("submit", "train"), "pipeline train needs config_file_path"),
        (("submit", "train", *TRAIN, "-p", "fold=1"), "has no parameter 'fold'"),
        (("submit", "train", *TRAIN, "-p", "folds=all"), "parameter folds: 'all' is not a JSON"),
        (("submit", "train", "-p", "config"), "-p config: write it as -p name=value"),
        (("submit", "{own}", *TRAIN), "own.yaml is no compiled pipeline"),
        (("schedule", "train", *TRAIN), "either a cron or an interval"),
        (("schedule", "train", *TRAIN, "--cron", "0 0 30 2 *"), "never fires"),
        (("schedule", "train", *TRAIN, "--cron", "0 25 * * *"), "has the hour '25'"),
        (("schedule", "train", *TRAIN, "--every", "soon"), "interval 'soon' cannot be read"),
        (("schedule", "train", *TRAIN, "--every", "1h", "--concurrency", "0"), "not from 1 to 10"),
    ],
)
def test_bad_input_is_refused_before_the_cluster_is_asked(
    kubeflow: KubeflowApi,
    medseg: Medseg,
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    (tmp_path / "own.yaml").write_text("a: 1\n")
    given = [word.format(own=tmp_path / "own.yaml") for word in arguments]
    error = medseg(*given, status=1).stderr
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert kubeflow.calls == []


@pytest.mark.parametrize("command", ["submit", "schedule"])
def test_a_claim_that_does_not_exist(
    kubeflow: KubeflowApi, kubernetes: KubernetesApi, medseg: Medseg, command: str
) -> None:
    more = ("--every", "1d") if command == "schedule" else ()
    error = medseg(command, "train", *TRAIN, "-p", "pvc_name=nowhere", *more, status=1).stderr
    assert error.startswith(
        "error: the namespace team in the cluster of the kube context test has no volume claim "
        "'nowhere': make it"
    )
    assert "or choose the kube context of the cluster that the run goes to." in error
    assert kubeflow.writes == []


def test_a_claim_that_may_not_be_looked_for(
    kubeflow: KubeflowApi, kubernetes: KubernetesApi, medseg: Medseg
) -> None:
    kubernetes.namespace = "another"
    note = medseg("submit", "train", *TRAIN).stderr
    assert (
        "not checked whether the claim medseg-data exists: the cluster of the kube context" in note
    )
    assert len(kubeflow.runs) == 1


COMMANDS = [
    ("upload", "train"),
    ("submit", "train", *TRAIN),
    ("schedule", "train", *TRAIN, "--every", "1d"),
    ("runs",),
    ("cancel", "x"),
    ("logs", "x"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_an_expired_token(
    kubeflow: KubeflowApi, medseg: Medseg, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "token").write_text("stale")
    error = medseg(*command, status=1).stderr
    assert "asks for a login or a token that has not expired" in error
    assert "KF_PIPELINES_SA_TOKEN_PATH" in error
    assert "stale" not in error
    assert kubeflow.calls == []


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_namespace_without_rights(
    kubeflow: KubeflowApi, medseg: Medseg, command: tuple[str, ...]
) -> None:
    error = medseg(*command, "-n", "strangers", status=1).stderr
    assert "is not allowed in the namespace strangers: ask its owner" in error
    assert kubeflow.writes == []


def test_a_token_that_expires_on_the_way(kubeflow: KubeflowApi, medseg: Medseg) -> None:
    kubeflow.failures["pipeline_service_create_pipeline"] = [(401, "expired")]
    assert "token that has not expired" in medseg("submit", "train", *TRAIN, status=1).stderr
    assert kubeflow.pipelines == kubeflow.runs == {}


START = [
    (("submit", "train", *TRAIN), "run_service_create_run"),
    (("schedule", "train", *TRAIN, "--every", "1d"), "recurring_run_service_create_recurring_run"),
]


@pytest.mark.parametrize(("command", "method"), START, ids=lambda value: value[0])
def test_no_right_to_start(
    kubeflow: KubeflowApi, medseg: Medseg, command: tuple[str, ...], method: str
) -> None:
    kubeflow.failures[method] = [(403, "no")]
    error = medseg(*command, status=1).stderr
    assert "is not allowed in the namespace team" in error
    assert kubeflow.pipelines == kubeflow.versions == kubeflow.experiments == {}
    assert kubeflow.runs == kubeflow.recurring_runs == {}


def test_what_was_there_before_stays(kubeflow: KubeflowApi, medseg: Medseg, tmp_path: Path) -> None:
    medseg("submit", "train", *TRAIN)
    before = dict(kubeflow.pipelines), dict(kubeflow.versions), dict(kubeflow.experiments)
    changed = tmp_path / "train.yaml"
    changed.write_text((compiled_folder() / "train.yaml").read_text() + "# site\n")
    for file in ("train", str(changed)):
        kubeflow.failures["run_service_create_run"] = [(403, "no")]
        medseg("submit", file, *TRAIN, status=1)
        assert before == (kubeflow.pipelines, kubeflow.versions, kubeflow.experiments)
    assert kubeflow.calls[-1] == "pipeline_service_delete_pipeline_version"


def test_what_could_not_be_removed_is_named(kubeflow: KubeflowApi, medseg: Medseg) -> None:
    kubeflow.failures["run_service_create_run"] = [(403, "no")]
    kubeflow.failures["pipeline_service_delete_pipeline"] = [(403, "no")]
    error = medseg("submit", "train", *TRAIN, status=1).stderr
    assert "starting the run is not allowed in the namespace team" in error
    assert "What it had created could not be removed: the pipeline medseg-train." in error
    assert kubeflow.experiments == {}


def test_the_claim_in_a_pod_without_a_token(
    kubeflow: KubeflowApi, medseg: Medseg, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    note = medseg("submit", "train", *TRAIN).stderr
    assert "claim medseg-data exists: this pod has no token to reach Kubernetes with" in note
    (run,) = kubeflow.runs
    assert "and this pod has no token" in medseg("logs", run, status=1).stderr


def _certificate(folder: Path) -> ssl.SSLContext:
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=site -keyout key.pem "
        "-out ca.pem -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.pem", folder / "key.pem")
    return context


def test_a_certificate_of_the_sites_own(
    kubeflow: KubeflowApi, medseg: Medseg, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    with serve(kubeflow.answer, _certificate(tmp_path)) as url:
        error = medseg("submit", "train", *TRAIN, "--host", url, status=1).stderr
        assert 'is not trusted: its issuer is "site"' in error
        for name in ("MEDSEG_CA_FILE", "REQUESTS_CA_BUNDLE"):
            with monkeypatch.context() as trusting:
                trusting.setenv(name, str(tmp_path / "ca.pem"))
                medseg("submit", "train", *TRAIN, "--host", url)
    assert len(kubeflow.runs) == 2


def test_a_proxy(kubeflow: KubeflowApi, medseg: Medseg, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def proxy(request: Request) -> Answer:
        asked.append(request.path)
        return kubeflow.answer(request)

    with serve(proxy) as url:
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("http_proxy", url)
        medseg("submit", "train", *TRAIN, "--host", "http://kf.site")
    assert len(kubeflow.runs) == 1
    assert len(asked) > 3


def test_a_host_that_is_no_kubeflow(medseg: Medseg) -> None:
    page = Answer(200, b"<html>Welcome</html>", "text/html")
    with serve(lambda _: page) as url:
        assert "is no Kubeflow Pipelines API" in medseg("runs", "--host", url, status=1).stderr
    assert f"{url} cannot be reached" in medseg("runs", "--host", url, status=1).stderr
    with serve(lambda _: Answer(404)) as url:
        assert "(healthz answers 404)" in medseg("runs", "--host", url, status=1).stderr
    with serve(lambda _: Answer(302)) as url:
        assert "asks for a login" in medseg("runs", "--host", url, status=1).stderr
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert "cannot be reached" in medseg("runs", "--host", url, status=1).stderr


def test_no_host_no_namespace_no_token(
    kubeflow: KubeflowApi, medseg: Medseg, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MEDSEG_NAMESPACE")
    assert "name your namespace with --namespace" in medseg("runs", status=1).stderr
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "gone"))
    assert "gone, which is no file" in medseg("runs", status=1).stderr
    assert "must start with https://" in medseg("runs", "--host", "kf.org", status=1).stderr
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT")
    assert "no host is known" in medseg("runs", status=1).stderr


def test_a_single_user_installation(kubeflow: KubeflowApi, medseg: Medseg, tmp_path: Path) -> None:
    kubeflow.namespace = kubeflow.token = ""
    medseg("submit", "train", *TRAIN)  # the namespace is only for the claim
    (experiment,) = kubeflow.experiments.values()
    assert not experiment.get("namespace")
    assert "train" in medseg("runs").stdout


def test_what_an_earlier_client_left_is_not_taken(
    kubeflow: KubeflowApi, medseg: Medseg, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also fails where kfp no longer keeps its namespace where ``Api`` puts the right one."""
    left = tmp_path / "context.json"
    left.write_text(json.dumps({"namespace": "strangers"}))
    monkeypatch.setattr("kfp.client.client.Client._LOCAL_KFP_CONTEXT", str(left))
    kubeflow.namespace = kubeflow.token = ""
    medseg("submit", "train", *TRAIN)
    assert medseg("runs").stdout.count("train") == 1


def test_a_single_user_installation_lives_in_kubeflow(
    kubeflow: KubeflowApi,
    kubernetes: KubernetesApi,
    medseg: Medseg,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MEDSEG_NAMESPACE")
    kubeflow.namespace = kubeflow.token = ""
    kubernetes.namespace = "kubeflow"  # the kube context names another
    assert medseg("submit", "train", *TRAIN).stderr == ""
    (run,) = kubeflow.runs
    kubernetes.objects["pods"] = {"b": _pod(run, "b", "medseg-train-x.root.train.executor(0)", 2)}
    kubernetes.logs = {"b": "epoch 1"}
    assert medseg("logs", run).stdout == "--- train\nepoch 1\n"
    error = medseg("submit", "train", *TRAIN, "-p", "pvc_name=nowhere", status=1).stderr
    assert error.startswith("error: the namespace kubeflow in the cluster of the kube context test")


def test_a_pipeline_of_ones_own(kubeflow: KubeflowApi, medseg: Medseg, tmp_path: Path) -> None:
    shutil.copy(compiled_folder() / "segment.yaml", tmp_path / "mine.yaml")
    values = ("-p", "model=m.ts", "-p", "input=a", "-p", "output=b")
    medseg("submit", str(tmp_path / "mine.yaml"), *values)
    (run,) = kubeflow.runs.values()
    assert run["display_name"].startswith("mine ")
