"""What stages tell, as it is written and as it is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medseg.project import (
    DataRoot,
    Event,
    UserError,
    duration,
    follow_events,
    progress,
    read_events,
    read_run,
    result,
    stage,
)
from medseg.project.variables import EVENTS


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(EVENTS.name, str(tmp_path / "events.jsonl"))
    return tmp_path / "events.jsonl"


def tell(root: DataRoot) -> None:
    with stage("train", target="config"):
        progress("epoch", 1, 2)
        result("training", root.path / "x")
    with pytest.raises(SystemExit), stage("report"):
        raise UserError("the config is empty.")


def test_stages_write_the_lines_that_earlier_versions_read(root: DataRoot, file: Path) -> None:
    tell(root)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    common = {"time", "stage", "target", "event", "message"}
    assert [(line["stage"], line["event"]) for line in lines] == [
        ("train", "start"),
        ("train", "progress"),
        ("train", "result"),
        ("train", "end"),
        ("report", "start"),
        ("report", "error"),
    ]
    assert [line.keys() - common for line in lines] == [
        set(),
        {"done", "total"},
        {"path"},
        set(),
        set(),
        {"error"},
    ]
    assert all(line.keys() >= common for line in lines)


def test_events_are_read_as_they_were_told(root: DataRoot, file: Path) -> None:
    tell(root)
    start, step, place, end, _, error = read_events(file)
    assert (start.stage, start.kind, start.target) == ("train", "start", "config")
    assert (step.message, step.done, step.total) == ("epoch", 1, 2)
    assert (place.message, place.path) == ("training", str(root.path / "x"))
    assert end.time >= start.time
    assert (error.message, error.error) == ("the config is empty.", "UserError")
    assert [Event.from_line(event.to_line()) for event in (step, place, error)] == [
        step,
        place,
        error,
    ]


def test_a_line_that_a_full_disk_cut_off_loses_no_other(root: DataRoot, file: Path) -> None:
    whole = Event("train", "start").to_line()
    file.write_text(f'{whole}\n{whole[:20]}\n[]\n{{"event": "x"}}\n{whole}\n')
    assert [event.kind for event in read_events(file)] == ["start", "start"]
    seen: list[Event] = []
    with follow_events(file, seen.append):
        pass
    assert len(seen) == 2


def test_the_pods_of_a_run_are_read_in_the_order_of_time(tmp_path: Path) -> None:
    for pod, times in (("a", (1.0, 4.0)), ("b", (2.0, 3.0))):
        lines = [Event("train", "progress", pod, time=time).to_line() for time in times]
        (tmp_path / f"events-{pod}.jsonl").write_text("\n".join(lines))
    assert [(event.target, event.time) for event in read_run(tmp_path)] == [
        ("a", 1.0),
        ("b", 2.0),
        ("b", 3.0),
        ("a", 4.0),
    ]


def test_a_run_is_followed_while_it_is_written(root: DataRoot, file: Path) -> None:
    file.touch()
    seen: list[Event] = []
    with follow_events(file, seen.append):
        tell(root)
    assert seen == read_events(file)
    assert len(seen) == 6


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3.42, "3.4 s"), (95, "95 s"), (1200, "20 min"), (7500, "2 h 5 min")],
)
def test_times_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
