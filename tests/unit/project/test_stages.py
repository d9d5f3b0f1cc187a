import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from medseg.project import (
    CasesFailedError,
    DataRoot,
    Failures,
    UserError,
    explained_os_errors,
    lock,
    progress,
    stage,
)
from medseg.project.variables import EVENTS, RUN_PID


def test_user_error_is_one_line_and_status_1(
    root: DataRoot, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught, stage("train"):
        raise UserError("the config x is empty.")
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: the config x is empty.\n"


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "the disk is full: writing /mnt/x failed. Free some space"),
        (errno.EROFS, "/mnt/x cannot be written: its volume is read-only"),
    ],
)
def test_errors_of_the_volume_become_sentences(
    root: DataRoot, capsys: pytest.CaptureFixture[str], number: int, sentence: str
) -> None:
    with pytest.raises(SystemExit) as caught, stage("train"):
        raise OSError(number, os.strerror(number), "/mnt/x")
    assert caught.value.code == 1
    assert sentence in capsys.readouterr().err


def test_other_errors_keep_their_traceback(root: DataRoot) -> None:
    with pytest.raises(FileNotFoundError), stage("train"):
        raise FileNotFoundError(errno.ENOENT, "gone", "x")


def test_an_error_that_is_not_the_volumes_is_not_its_own_cause() -> None:
    with pytest.raises(FileNotFoundError) as caught, explained_os_errors():
        raise FileNotFoundError(errno.ENOENT, "gone", "x")
    assert caught.value.__cause__ is None
    with pytest.raises(UserError, match="the disk is full") as explained, explained_os_errors():
        raise OSError(errno.ENOSPC, "full", "x")
    assert isinstance(explained.value.__cause__, OSError)


def test_events(root: DataRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = tmp_path / "events"
    monkeypatch.setenv(EVENTS.name, str(events))
    with stage("train", target="config"):
        progress("epoch", 1, 2)
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    assert [(e["stage"], e["event"]) for e in lines] == [
        ("train", "start"),
        ("train", "progress"),
        ("train", "end"),
    ]
    assert (lines[1]["done"], lines[1]["total"]) == (1, 2)


def test_one_failed_case_does_not_lose_the_others(root: DataRoot) -> None:
    failures, done = Failures(), []
    for case in ("a", "b", "c"):
        with failures.case(case):
            if case == "b":
                raise ValueError("broken")
            done.append(case)
    assert done == ["a", "c"]
    failures.check(total=3, allowed=1)
    with pytest.raises(CasesFailedError, match=r"1 of 3 cases failed \(0 allowed\).*b: ValueError"):
        failures.check(total=3)


def test_unforeseen_errors_of_private_stages_quote_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failures = Failures(private=True)
    with failures.case("a"):
        raise ValueError("Invalid value for PN: 'Doe^Jane'")
    assert failures.reasons["a"].startswith("ValueError in test_stages.py, line ")
    assert "Doe" not in capsys.readouterr().out


def test_unforeseen_errors_of_a_private_stage_quote_nothing(
    root: DataRoot,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(EVENTS.name, str(tmp_path / "events"))
    name = ("Doe", "Jane")  # not in the line of code that raises, which is shown
    with pytest.raises(SystemExit) as caught, stage("list_studies", private=True):
        raise ValueError("Invalid value for PN: " + "^".join(name))
    assert caught.value.code == 1
    assert caught.value.__suppress_context__  # Python itself shows no more of it
    shown = capsys.readouterr()
    told = (tmp_path / "events").read_text()
    assert "Jane" not in shown.err + shown.out + told
    assert "error: ValueError in test_stages.py, line " in shown.err
    assert "ValueError in test_stages.py, line " in told
    with pytest.raises(SystemExit), stage("list_studies", private=True):
        raise UserError("the folder x does not exist.")
    assert capsys.readouterr().err == "error: the folder x does not exist.\n"


def test_failures_are_those_of_the_stage_that_runs(root: DataRoot) -> None:
    failures = Failures()
    for case in ("a", "b"):
        with failures.case(case):
            raise UserError(f"{case} has no label: add one.")
    with pytest.raises(CasesFailedError) as caught:
        failures.check(3)
    assert str(caught.value).startswith("2 of 3 cases failed")
    with stage("validate"), pytest.raises(CasesFailedError) as caught:
        failures.check(3, allowed=1)
    assert str(caught.value) == (
        "validate: 2 of 3 cases failed (1 allowed); the others are finished and kept. "
        "a has no label: add one; b has no label: add one."
    )
    assert caught.value.reasons["a"] == "a has no label: add one."


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (UserError("a has no label: add one."), "a has no label: add one."),
        (UserError("the label is empty: draw it"), "a: the label is empty: draw it."),
        (ValueError("broken"), "a: ValueError: broken."),
    ],
)
def test_of_a_lone_case_the_reason_is_all(error: Exception, sentence: str) -> None:
    failures = Failures()
    with failures.case("a"):
        raise error
    with pytest.raises(CasesFailedError) as caught:
        failures.check(1)
    assert str(caught.value) == sentence
    failures.check(1, allowed=1)


def test_a_full_disk_stops_the_stage_at_once() -> None:
    with pytest.raises(OSError), Failures().case("a"):
        raise OSError(errno.ENOSPC, "full")


HOLDER = """
import time
from medseg.project import stage
with stage("train", target="c.yaml") as root:
    (root.path / "started").touch()
    try:
        time.sleep(60)
    finally:
        (root.path / "saving").touch()
        time.sleep(0.5)
        (root.path / "saved").touch()
"""


def _start_holder(root: DataRoot, **environment: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER], env={**os.environ, **environment})
    deadline = time.monotonic() + 20
    while not (root.path / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def test_the_second_run_says_who_holds_the_lock(
    root: DataRoot, capsys: pytest.CaptureFixture[str]
) -> None:
    holder = _start_holder(root)
    try:
        with pytest.raises(SystemExit), stage("train", target="c.yaml"):
            pass
        message = capsys.readouterr().err
        assert f"(process {holder.pid})" in message
        assert "Wait until it ends" in message
        with stage("train", target="other.yaml"):
            pass  # another target is free
    finally:
        holder.kill()
        holder.wait()
    with stage("train", target="c.yaml"):
        pass  # a killed holder leaves no lock


def test_sigterm_lets_the_stage_clean_up(root: DataRoot) -> None:
    holder = _start_holder(root)
    holder.send_signal(signal.SIGTERM)
    while not (root.path / "saving").exists():
        time.sleep(0.02)
    holder.send_signal(signal.SIGTERM)  # being told again does not cut it short
    assert holder.wait(timeout=10) == 143
    assert (root.path / "saved").exists()


def test_a_stage_ends_with_its_run(root: DataRoot) -> None:
    run = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    holder = _start_holder(root, **{RUN_PID.name: f"{run.pid}@{socket.gethostname()}"})
    run.kill()
    run.wait()
    assert holder.wait(timeout=10) == 143


def test_a_stage_on_another_machine_than_its_run_goes_on(root: DataRoot) -> None:
    code = "import time; from medseg.project import stage\nwith stage('x'): time.sleep(1)"
    run = {RUN_PID.name: "4194305@elsewhere"}  # the kernel gives no process that number
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, **run}).returncode == 0


def test_locks_have_names(root: DataRoot) -> None:
    with (
        lock(root, "a"),
        lock(root, "b"),
        pytest.raises(UserError, match=r"a is already running on the data root .* holds the lock"),
        lock(root, "a"),
    ):
        pass


def test_a_short_lock_is_waited_for(root: DataRoot) -> None:
    order: list[str] = []

    def second() -> None:
        with lock(root, "a", wait=True):
            order.append("second")

    with lock(root, "a", wait=True):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.3)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]
