"""Watching runs as a real Kubeflow 2.17 answered about them: lists, reasons, logs."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from rich.console import Console

from medseg.cli import watch
from medseg.kubeflow.client import Cluster
from tests.services.kubeflow_api import KubeflowApi
from tests.services.kubernetes_api import KubernetesApi

Medseg = Callable[..., Result]
Record = Callable[[str], str]
NO_CONFIG = "the config /mnt/Data/configs/none.yaml does not exist: check config_file_path."
NO_NODE = (
    "no node has nvidia.com/gpu and accelerator=a100: change gpu_type, gpu_count or node_selector, "
    "or wait until one is there."
)
NO_IMAGE = (
    "the image registry.kubeflow:5000/none/runtime:9 cannot be pulled (not found): push it, or "
    "name another with -p image=NAME."
)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)


@pytest.fixture
def recorded(kubeflow: KubeflowApi, kubernetes: KubernetesApi, real_data: Path) -> Record:
    """Serves a recorded run, and gives its identifier."""

    def record(name: str) -> str:
        kubernetes.record(real_data / "kfp" / name)
        return kubeflow.record(real_data / "kfp" / name)

    return record


def _listed(text: str) -> list[str]:
    """What `medseg runs RUN` prints, without the heading of the table and the page."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines.pop().startswith("http")
    assert lines.pop(1) == "task state seconds"
    return lines


# --- tasks as people know them ---


def test_shards_stand_in_order_with_their_number(recorded: Record, medseg: Medseg) -> None:
    assert _listed(medseg("runs", recorded("dicom_to_nifti_shards")).stdout) == [
        "dicom_to_nifti 2026-11-25 08:32:33 succeeded",
        "list-studies succeeded 10",
        "convert-studies shard 1 of 3 succeeded 21",
        "convert-studies shard 2 of 3 succeeded 21",
        "convert-studies shard 3 of 3 succeeded 21",
        "collect-dataset succeeded 10",
    ]


def test_a_pod_that_was_replaced_is_a_second_attempt(recorded: Record, medseg: Medseg) -> None:
    lines = _listed(medseg("runs", recorded("lifecycle")).stdout)
    assert [line.split()[0] for line in lines[1:]] == [
        *("list-studies", "convert-studies", "collect-dataset", "decide-retraining"),
        *("prepare-dataset", "plan-and-preprocess", "prepare-bundle", "train", "validate"),
        *("convert-pt-to-ts", "test-model", "promote", "report", "notify"),
    ]
    assert lines[8] == "train succeeded (attempt 2) 317"


def test_stages_have_their_display_names(recorded: Record, medseg: Medseg) -> None:
    lines = _listed(medseg("runs", recorded("docker_build")).stdout)
    assert [line.split()[0] for line in lines[1:]] == [
        *("create-docker-context", "docker-build-dicom", "docker-build-nifti"),
    ]


def test_a_value_that_the_run_was_given_stands_beside_its_stage(
    recorded: Record, kubeflow: KubeflowApi, medseg: Medseg
) -> None:
    run = recorded("train_mlflow")
    kubeflow.runs[run]["runtime_config"]["parameters"]["folds"] = [2]
    assert _listed(medseg("runs", run).stdout)[1] == "train fold 2 succeeded 66"


def test_a_pipeline_that_is_gone_leaves_the_names_of_the_workflow(
    recorded: Record, kubeflow: KubeflowApi, medseg: Medseg
) -> None:
    run = recorded("dicom_to_nifti_shards")
    kubeflow.versions.clear()
    lines = _listed(medseg("runs", run).stdout)
    assert lines[1:3] == ["list-studies succeeded 10", "convert-studies 1 of 3 succeeded 21"]


@pytest.mark.parametrize("name", ["segment_no_gpu", "report_no_image"])
def test_a_run_that_was_cancelled_is_called_cancelled(
    recorded: Record, medseg: Medseg, name: str
) -> None:
    heading, stage = _listed(medseg("runs", recorded(name)).stdout)
    assert heading.endswith("cancelled")
    assert " cancelled " in stage
    run, *_ = Cluster().runs()
    assert run.state == "CANCELED"


def test_a_group_stands_there_where_it_failed_by_itself(
    recorded: Record, kubeflow: KubeflowApi, medseg: Medseg
) -> None:
    """A driver that fails, as with platform parameters in a group (kubeflow/pipelines#12617)."""
    run = recorded("train_failed")
    details = kubeflow.runs[run]["run_details"]["task_details"]
    gone = ("train", "executor", "notify", "medseg-train-fold(", "exit-handler-1.onExit")
    details[:] = [each for each in details if not each["display_name"].startswith(gone)]
    driver = next(each for each in details if each["display_name"] == "medseg-train-fold-driver")
    driver["state"] = "FAILED"
    pod = "medseg-train-fn6mn-system-dag-driver-276704128"
    kubeflow.logs[pod] += b"F1125 08:21:42.5 16 main.go:83] driver.DAG(x): no input node_selector\n"
    assert _listed(medseg("runs", run).stdout)[1:] == [
        "medseg-train-fold failed 10",
        "error: medseg-train-fold: Kubeflow could not prepare it: driver.DAG(x): no input "
        "node_selector",
    ]


# --- the reason, where the person looks ---


def test_the_reason_stands_once_with_its_stage(recorded: Record, medseg: Medseg) -> None:
    run = recorded("train_failed")
    assert _listed(medseg("runs", run).stdout) == [
        "train 2026-11-25 08:20:48 failed",
        "train failed 50",
        "notify succeeded 10",
        f"error: train: {NO_CONFIG}",
    ]
    seen: list[Any] = []
    ended = Cluster().wait(run, seen.append)
    assert [task.reason for task in ended.tasks] == [NO_CONFIG, ""]


def test_waiting_for_a_run_that_fails(
    recorded: Record, kubeflow: KubeflowApi, medseg: Medseg, real_data: Path
) -> None:
    recorded("train_failed")
    answer = json.loads((real_data / "kfp/train_failed/run.json").read_text())
    kubeflow.progress = [{key: answer[key] for key in ("state", "state_history", "run_details")}]
    options = ("-p", "config_file_path=configs/none.yaml", "--name", "first", "--wait")
    result = medseg("submit", "train", *options, status=1)
    assert result.stdout.splitlines()[2:] == [
        f"  train: failed: {NO_CONFIG}",
        "  notify: succeeded",
        "first failed",
    ]


def test_on_a_terminal_the_reason_stands_below_the_table(
    recorded: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, run = Cluster(), recorded("train_failed")
    console = Console(force_terminal=True, width=120, record=True)
    monkeypatch.setattr(watch, "_console", lambda: console)
    watch.show_wait(cluster, cluster.run(run))
    text = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert text[1:4] == ["train failed 50", "notify succeeded 10", f"error: train: {NO_CONFIG}"]
    assert text[4:] == ["train 2026-11-25 08:20:48 failed"]


def test_out_of_memory_names_the_limit(
    recorded: Record, kubernetes: KubernetesApi, medseg: Medseg
) -> None:
    run = recorded("train_oom")
    sentence = "out of memory (limit memory=700Mi): raise it with -p memory=AMOUNT."
    assert _listed(medseg("runs", run).stdout)[-1] == f"error: train: {sentence}"
    assert medseg("logs", run, "train").stdout.splitlines()[-1] == f"({sentence})"
    kubernetes.objects["pods"].clear()  # an hour later only the log is left
    killed = f"it was killed, most likely {sentence}"
    assert _listed(medseg("runs", run).stdout)[-1] == f"error: train: {killed}"


def test_a_log_that_is_gone(
    recorded: Record, kubeflow: KubeflowApi, kubernetes: KubernetesApi, medseg: Medseg
) -> None:
    run = recorded("train_failed")
    kubeflow.logs.clear()
    kubernetes.objects["pods"].clear()
    assert "error: train: its log is gone, and so is what it said" in medseg("runs", run).stdout
    message = medseg("logs", run, status=1).stderr
    assert "there is no log of notify: Kubeflow has no log of it (its pod is gone" in message
    assert f"Its page may show what is kept: {Cluster().run(run).url}" in message


# --- why it does not start ---


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("segment_no_gpu.pending", NO_NODE), ("report_no_image.pending", NO_IMAGE)],
)
def test_why_it_does_not_start(
    recorded: Record, kubeflow: KubeflowApi, medseg: Medseg, name: str, sentence: str
) -> None:
    run = recorded(name)
    stage = name.partition("_")[0]
    started = datetime(2026, 11, 25, 8, 37 if stage == "segment" else 38, tzinfo=UTC)
    started += timedelta(seconds=31 if stage == "segment" else 7)
    kubeflow.now = started  # a day behind this machine's clock
    (line,) = _listed(medseg("runs", run).stdout)[1:]
    assert line.startswith(f"{stage} pending ")
    assert medseg("logs", run).stdout == f"--- {stage}\n(no log yet: its pod has not started.)\n"
    kubeflow.now += timedelta(seconds=31)
    assert _listed(medseg("runs", run).stdout)[-1] == f"waiting: {stage}: {sentence}"
    assert medseg("logs", run).stdout == f"--- {stage}\n(no log yet: {sentence})\n"


def test_it_is_told_while_it_waits_and_then_cancelled(
    recorded: Record, kubeflow: KubeflowApi, medseg: Medseg, real_data: Path
) -> None:
    run = recorded("segment_no_gpu.pending")
    keys = ("state", "state_history", "run_details")
    kubeflow.progress = [
        {key: json.loads((real_data / "kfp" / name / "run.json").read_text())[key] for key in keys}
        for name in ("segment_no_gpu.pending", "segment_no_gpu.pending", "segment_no_gpu")
    ]
    seen = []
    Cluster().wait(run, lambda now: seen.extend((t.state, t.reason) for t in now.tasks))
    assert seen == [("PENDING", NO_NODE), ("PENDING", NO_NODE), ("CANCELED", "")]


def test_without_rights_to_pods_only_that_is_lacking(
    recorded: Record, kubernetes: KubernetesApi, medseg: Medseg
) -> None:
    kubernetes.forbidden = {"pods", "events"}
    waiting = _listed(medseg("runs", recorded("segment_no_gpu.pending")).stdout)[-1]
    assert waiting.startswith("waiting: segment: it has not started; why is not known, as pods")
    assert "does not allow this: ask the owner of the namespace." in waiting
    assert waiting.endswith("It takes the right to list pods and events.")
    run = recorded("train_failed")
    assert _listed(medseg("runs", run).stdout)[-1] == f"error: train: {NO_CONFIG}"
    assert medseg("logs", run).stdout == f"--- train\nerror: {NO_CONFIG}\n"


def test_events_that_name_no_pod(
    recorded: Record, kubernetes: KubernetesApi, medseg: Medseg
) -> None:
    run = recorded("report_no_image.pending")
    for event in kubernetes.objects["events"].values():
        event["involvedObject"] = {"kind": "Pod"}
    for pod in kubernetes.objects["pods"].values():  # what is left says only that it waits
        for container in pod["status"].get("containerStatuses", []):
            container["state"] = {"waiting": {"reason": "ImagePullBackOff"}}
    assert _listed(medseg("runs", run).stdout)[-1] == (
        "waiting: report: the image registry.kubeflow:5000/none/runtime:9 cannot be pulled: push "
        "it, or name another with -p image=NAME."
    )
    kubernetes.forbidden = {"events"}
    assert "cannot be pulled: push it" in medseg("runs", run).stdout


def test_no_pod_at_all(recorded: Record, kubernetes: KubernetesApi, medseg: Medseg) -> None:
    run = recorded("segment_no_gpu.pending")
    kubernetes.objects["pods"].clear()
    assert "waiting: segment: it has no pod: a quota may be used up" in medseg("runs", run).stdout


def test_a_driver_that_does_not_start(
    recorded: Record, kubeflow: KubeflowApi, kubernetes: KubernetesApi, medseg: Medseg
) -> None:
    run = recorded("report_no_image.pending")
    details = kubeflow.runs[run]["run_details"]["task_details"]
    gone = ("report", "report(0)", "executor", "executor(0)")
    details[:] = [each for each in details if each["display_name"] not in gone]
    for each in details:
        if each["display_name"].startswith("report-driver"):
            each["state"] = "PENDING" if each["display_name"].endswith(")") else "RUNNING"
    name = "medseg-report-lc9cm-system-container-driver-865895796"
    kubernetes.objects["pods"][name]["status"] = {
        "phase": "Pending",
        "containerStatuses": [
            {"name": "main", "state": {"waiting": {"reason": "ImagePullBackOff", "message": ""}}}
        ],
    }
    stage, reason = _listed(medseg("runs", run).stdout)[1:]
    assert stage.startswith("report pending ")
    assert reason.startswith("waiting: report: the image ghcr.io/kubeflow/kfp-driver")


def test_somebody_elses_pipeline(recorded: Record, kubeflow: KubeflowApi, medseg: Medseg) -> None:
    """Its parameters are others; what is said names none of ours."""
    run = recorded("segment_no_gpu.pending")
    kubeflow.versions.clear()
    kubeflow.runs[run]["runtime_config"] = {"parameters": {"accelerator": "a100"}}
    assert _listed(medseg("runs", run).stdout)[-1] == (
        "waiting: segment: no node has nvidia.com/gpu and accelerator=a100: ask for other nodes, "
        "or wait until one is there."
    )


def test_an_eviction_is_told_while_the_next_attempt_runs(
    recorded: Record, kubeflow: KubeflowApi, kubernetes: KubernetesApi, medseg: Medseg
) -> None:
    run = recorded("lifecycle")
    for each in kubeflow.runs[run]["run_details"]["task_details"]:
        if each["display_name"] in ("train", "train(0)"):
            each["state"] = "RUNNING"
    node = "medseg-lifecycle-tk9x7-2134024326"
    evicted = {"phase": "Failed", "reason": "Evicted", "message": "low on resource: memory. So"}
    kubernetes.objects["pods"][node] = {
        "metadata": {
            "name": node,
            "labels": {"pipeline/runid": run},
            "annotations": {"workflows.argoproj.io/node-id": node},
        },
        "status": evicted,
    }
    assert _listed(medseg("runs", run).stdout)[-1] == (
        "note: train: attempt 1 was lost, its node evicted it (low on resource: memory)."
    )


# --- logs without kubectl ---


def test_logs_are_what_the_stage_says(
    recorded: Record, kubernetes: KubernetesApi, medseg: Medseg, real_data: Path
) -> None:
    kubernetes.forbidden = {"pods"}  # Kubeflow's token is enough
    run = recorded("nifti_to_dicom")
    cases = [f"nifti_to_dicom: [{number}/15] phantom_{number:03}" for number in range(1, 16)]
    assert medseg("logs", run).stdout.splitlines() == ["--- nifti-to-dicom", *cases]
    everything = medseg("logs", run, "nifti_to_dicom", "--all").stdout.splitlines()
    (file,) = (real_data / "kfp" / "nifti_to_dicom").glob("log.*impl*")
    assert everything == ["--- nifti-to-dicom", *file.read_text().splitlines()]


def test_from_outside_one_comes_by_the_pages(
    recorded: Record, kubeflow: KubeflowApi, kubernetes: KubernetesApi, medseg: Medseg
) -> None:
    kubernetes.forbidden = {"pods"}
    kubeflow.pages = True
    run = recorded("train_failed")
    assert _listed(medseg("runs", run).stdout)[-1] == f"error: train: {NO_CONFIG}"
    assert medseg("logs", run).stdout == f"--- train\nerror: {NO_CONFIG}\n"
    assert "note: Kubeflow Pipelines 2.17.0 leaves out" in medseg("upload", "train").stderr
    kubeflow.logs.clear()
    assert "Kubeflow has no log of it" in medseg("logs", run, status=1).stderr
    kubeflow.healthz["apiServerReady"] = False
    kubeflow.pages = False  # its pages alone answer
    assert "its API is not there: try again" in medseg("runs", run, status=1).stderr


def test_logs_of_one_task(recorded: Record, medseg: Medseg) -> None:
    run = recorded("dicom_to_nifti_shards")
    one = medseg("logs", run, "convert-studies shard 2 of 3").stdout.splitlines()
    assert one[:2] == ["--- convert-studies shard 2 of 3", "convert_studies: [1/5] phantom_004"]
    assert len(medseg("logs", run, "convert_studies").stdout.splitlines()) == 3 * 6
    message = medseg("logs", run, "convert", status=1).stderr
    assert "has no task 'convert', only list-studies, convert-studies shard 1 of 3" in message


def test_logs_of_a_pod_that_was_replaced(recorded: Record, medseg: Medseg) -> None:
    lines = medseg("logs", recorded("lifecycle"), "train").stdout.splitlines()
    assert lines[0] == "--- train (attempt 1 of 2)"
    assert lines[1].startswith("(no log: Kubeflow has no log of it (its pod is gone")
    assert lines[2] == "--- train (attempt 2 of 2)"
    assert lines[3].startswith("train: fold 0: epochs 4 to 9")


def test_logs_are_followed(
    recorded: Record, kubeflow: KubeflowApi, medseg: Medseg, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = recorded("train_mlflow")
    pod = "medseg-train-lpqfr-retry-system-container-impl-2039404714"
    whole = kubeflow.logs[pod].split(b"\n")
    details = kubeflow.runs[run]["run_details"]["task_details"]
    ended = kubeflow.runs[run]["state"]
    kubeflow.runs[run]["state"] = "RUNNING"
    before = {each["task_id"]: each["state"] for each in details}
    for each in details:
        each["state"] = "RUNNING"
    lengths = iter([3, 62, 63, 64])

    def more(_: float) -> None:  # the log grows between two looks, also within a line
        kubeflow.failures["run_service_get_run"] = [(503, "busy")] * (len(kubeflow.calls) % 2)
        length = next(lengths, None)
        if length is not None:
            kubeflow.logs[pod] = b"\n".join([*whole[:length], whole[length][:20]])
            return
        kubeflow.logs[pod] = b"\n".join(whole)
        kubeflow.runs[run]["state"] = ended
        for each in details:
            each["state"] = before[each["task_id"]]

    more(0)
    monkeypatch.setattr("time.sleep", more)
    followed = medseg("logs", run, "train", "-f").stdout
    assert followed == medseg("logs", run, "train").stdout
    assert followed.splitlines()[1].startswith("train: fold 0: epochs 12 to 14")


def test_kubeflow_may_refuse_its_logs(
    recorded: Record, kubeflow: KubeflowApi, kubernetes: KubernetesApi, medseg: Medseg
) -> None:
    run = recorded("train_failed")
    kubernetes.logs = {pod: log.decode() for pod, log in kubeflow.logs.items()}
    kubeflow.log_refused = 403
    assert medseg("logs", run, "train").stdout == f"--- train\nerror: {NO_CONFIG}\n"
    kubernetes.forbidden = {"pods"}
    message = medseg("logs", run, "train", status=1).stderr
    assert "reading a log is not allowed in the namespace team" in message
    assert "and the cluster of the kube context test does not allow this" in message


def test_a_log_of_a_hundred_megabytes(recorded: Record, kubeflow: KubeflowApi) -> None:
    import tracemalloc

    run = recorded("train_failed")
    pod = "medseg-train-fn6mn-retry-system-container-impl-731761532"
    noise = (b"x" * 8191 + b"\n") * (100 * 128)
    kubeflow.logs[pod] = kubeflow.logs[pod].replace(b"error: ", noise + b"error: ", 1)
    cluster = Cluster()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        assert cluster.run(run).tasks[0].reason == NO_CONFIG
        lines = sum(1 for _ in cluster.logs(run, "train"))
        held = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert lines == 100 * 128 + 1
    assert held < 10e6


# --- bad input ---


def test_tasks_without_pods(
    recorded: Record, kubeflow: KubeflowApi, kubernetes: KubernetesApi, medseg: Medseg
) -> None:
    run = recorded("train_failed")
    for each in kubeflow.runs[run]["run_details"]["task_details"]:
        each.pop("child_tasks", None)
    lines = _listed(medseg("runs", run).stdout)
    assert lines[1:] == ["train failed 50", "notify succeeded 10", f"error: train: {NO_CONFIG}"]
    assert medseg("logs", run).stdout == f"--- train\nerror: {NO_CONFIG}\n"
    kubernetes.forbidden = {"pods"}
    lines = _listed(medseg("runs", run).stdout)
    assert lines[3].startswith("error: train: Kubeflow does not name its pod: its page says more")
    assert "does not name the pods of" in medseg("logs", run, status=1).stderr


def test_no_tasks(recorded: Record, kubeflow: KubeflowApi, medseg: Medseg) -> None:
    run = recorded("train_failed")
    del kubeflow.runs[run]["run_details"]
    shown = medseg("runs", run).stdout.splitlines()
    assert shown[1] == "Kubeflow names no tasks (yet)."
    assert medseg("logs", run).stdout == f"--- train\nerror: {NO_CONFIG}\n"


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_differs_by_an_hour(
    recorded: Record, kubeflow: KubeflowApi, medseg: Medseg, hours: int
) -> None:
    run = recorded("segment_no_gpu.pending")
    kubeflow.now = datetime.now(UTC) + timedelta(hours=hours)
    asked = f"{kubeflow.now - timedelta(seconds=60):%Y-%m-%dT%H:%M:%SZ}"
    for each in kubeflow.runs[run]["run_details"]["task_details"]:
        each["start_time"] = asked
    _, stage, reason = _listed(medseg("runs", run).stdout)
    assert 60 <= int(stage.removeprefix("segment pending ")) < 120
    assert reason == f"waiting: segment: {NO_NODE}"


# --- what the server leaves out ---


@pytest.mark.parametrize(
    ("healthz", "sentence"),
    [
        (
            {"tag_name": "2.17.0"},
            "Kubeflow Pipelines 2.17.0 leaves out nothing of what the stages ask for; it retries a "
            "pod that was lost, not a stage that failed.",
        ),
        (
            {"tag_name": "2.15.0"},
            "Kubeflow Pipelines 2.15.0 leaves out the security context of the stages (the image's "
            "own user 1000 holds).",
        ),
        (
            {"tag_name": "2.5.0"},
            "Kubeflow Pipelines 2.5.0 leaves out the security context of the stages (the image's "
            "own user 1000 holds) and their retries.",
        ),
        (
            {"tag_name": "2.4.1"},
            "Kubeflow Pipelines 2.4.1 is older than 2.5, which runs need at least: have it "
            "updated.",
        ),
        (
            {"tag_name": "unknown", "pipeline_store": "database"},
            "the server hides its version (2.14 or newer, as it names its pipeline store): before "
            "2.16 it leaves out the security context of the stages (the image's own user 1000 "
            "holds).",
        ),
        (
            {},
            "the server hides its version: before 2.14 it leaves out retries, and before 2.16 it "
            "leaves out the security context of the stages (the image's own user 1000 holds).",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else value.get("tag_name", "none"),
)
def test_an_upload_says_what_the_server_leaves_out(
    kubeflow: KubeflowApi, medseg: Medseg, healthz: dict[str, str], sentence: str
) -> None:
    kubeflow.healthz = healthz
    assert medseg("upload", "train").stderr == f"note: {sentence}\n"
