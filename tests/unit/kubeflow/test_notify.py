"""The exit handler: what it sends, what it keeps to itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from medseg.kubeflow.compiled import compiled_folder, read_pipeline
from medseg.kubeflow.local import run_local
from medseg.kubeflow.notify import report_failure, report_run
from medseg.project import CasesFailedError, DataRoot, UserError, stage
from medseg.project.variables import EVENTS, RUN_ID, SECRETS_FOLDER, secret_variable
from tests.services.http import Answer, Request, serve

Received = list[dict[str, object]]


WEBHOOK = secret_variable("notify", "url")


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Received]:
    received: Received = []

    def take(request: Request) -> Answer:
        assert request.headers["content-type"] == "application/json"
        received.append(json.loads(request.body))
        return Answer(200)

    with serve(take) as url:
        monkeypatch.setenv(WEBHOOK, f"{url}/T0/secret-part")
        yield received


@pytest.fixture
def run_id(monkeypatch: pytest.MonkeyPatch) -> str:
    """On a cluster: the pod knows its run from its label."""
    monkeypatch.delenv(EVENTS.name, raising=False)
    monkeypatch.setenv(RUN_ID.name, "1234-abcd")
    return "1234-abcd"


def _fail(name: str, error: BaseException, target: str = "") -> None:
    with pytest.raises(BaseException), stage(name, target=target):  # noqa: B017
        raise error


def test_a_secret_that_cannot_be_read(
    root: DataRoot, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(SECRETS_FOLDER.name, str(root.path / "secrets"))
    (root.path / "secrets" / "notify" / "url").mkdir(parents=True)
    with pytest.raises(SystemExit):
        report_run("train", "r", "train")
    assert capfd.readouterr().err.startswith("error: the notify Secret: ")


def test_a_failed_run_on_a_cluster(root: DataRoot, run_id: str, hook: Received) -> None:
    with stage("list_studies"):
        pass
    _fail("train", UserError("the config x.yaml does not exist."), "x.yaml--1")
    report_failure(root, "lifecycle", "nightly 3", "report")
    assert list((root.path / "runs" / run_id).glob("events-*.jsonl"))
    assert hook == [
        {
            "text": "medseg: the run nightly 3 of lifecycle failed. "
            "train: the config x.yaml does not exist.",
            "pipeline": "lifecycle",
            "run": "nightly 3",
            "status": "FAILED",
            "errors": ["train: the config x.yaml does not exist."],
        }
    ]


def test_a_run_that_succeeds_sends_nothing(root: DataRoot, run_id: str, hook: Received) -> None:
    _fail("train", RuntimeError("out of luck"), "fold 0")
    with stage("train", target="fold 0"):
        pass  # the second try
    with stage("train", target="fold 1"):
        pass
    assert report_failure(root, "train", "r", "train") == {}
    assert hook == []


def test_one_of_two_folds_failed(root: DataRoot, run_id: str, hook: Received) -> None:
    _fail("train", UserError("no space."), "fold 0")
    with stage("train", target="fold 1"):
        pass
    assert report_failure(root, "train", "r", "train")["errors"] == ["train: no space."]


def test_a_stage_that_never_started(root: DataRoot, run_id: str, hook: Received) -> None:
    errors = report_failure(root, "train", "r", "train")["errors"]
    assert errors == ["train did not end: a stage could not start, or was killed"]


def test_one_of_two_folds_never_started(root: DataRoot, run_id: str, hook: Received) -> None:
    with stage("train", target="fold 0"):
        pass
    errors = report_failure(root, "train", "r", "train", times=2)["errors"]
    assert errors == ["train did not end 2 times: a stage could not start, or was killed"]
    with stage("train", target="fold 1"):
        pass
    assert report_failure(root, "train", "r", "train", times=2) == {}


def test_a_killed_stage(root: DataRoot, run_id: str, hook: Received) -> None:
    folder = root.path / "runs" / run_id
    folder.mkdir(parents=True)
    event = {"time": 1.0, "stage": "train", "target": "", "event": "start", "message": ""}
    (folder / "events-pod.jsonl").write_text(json.dumps(event) + "\n")
    errors = report_failure(root, "train", "r", "train")["errors"]
    assert errors == ["train: ended without a message (killed, or out of memory)."]


def test_no_patient_leaves_the_house(root: DataRoot, run_id: str, hook: Received) -> None:
    _fail("convert", CasesFailedError("convert", {"DOE^JANE": "bad DOE^JANE"}, 7, 0))
    _fail("collect", ValueError("DOE^JANE, 1970"))
    report_failure(root, "lifecycle", "r", "report")
    assert "DOE" not in json.dumps(hook)
    assert hook[0]["errors"] == [
        "convert: 1 of 7 cases failed (0 allowed).",
        "collect: ValueError; its log says more.",
    ]


def test_a_webhook_that_fails(root: DataRoot, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(lambda _: Answer(410)) as url:
        monkeypatch.setenv(WEBHOOK, f"{url}/secret-part")
        with pytest.raises(UserError, match=r"the webhook at 127\.0\.0\.1 did not take") as caught:
            report_failure(root, "train", "r", "train")
    assert "secret-part" not in str(caught.value)
    monkeypatch.setenv(WEBHOOK, "file:///etc/passwd")
    with pytest.raises(UserError, match=r"is no http\(s\) URL"):
        report_failure(root, "train", "r", "train")


def _train_without_retry(folder: Path) -> str:
    """``train`` as it is compiled, but for the half minute between two tries."""
    pipeline, platform = yaml.safe_load_all((compiled_folder() / "train.yaml").read_text())
    for component in pipeline["components"].values():
        for task in component.get("dag", {}).get("tasks", {}).values():
            task.pop("retryPolicy", None)
    file = folder / "train.yaml"
    file.write_text(yaml.safe_dump_all([pipeline, platform]))
    return str(file)


def test_the_local_runner_calls_it(root: DataRoot, hook: Received, tmp_path: Path) -> None:
    pipeline = read_pipeline(_train_without_retry(tmp_path))
    run = run_local(pipeline, root, {"config_file_path": "configs/none.yaml"})
    assert not run.succeeded
    (message,) = hook
    assert message["pipeline"] == "train"
    assert str(message["run"]).startswith("medseg-train-")
    assert "none.yaml does not exist" in str(message["text"])


def test_without_a_webhook_it_is_not_seen(
    root: DataRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(WEBHOOK, raising=False)
    pipeline = read_pipeline(_train_without_retry(tmp_path))
    run = run_local(pipeline, root, {"config_file_path": "configs/none.yaml"})
    assert "Executing task" in run.log.read_text()
    assert [stage.name for stage in run.stages] == ["train"], "the user sees nothing of it"
