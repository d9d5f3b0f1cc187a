"""What a local run shows: stages on several targets kept apart, and where the results lie."""

from __future__ import annotations

import io
from pathlib import Path, PurePath

import pytest
from rich.console import Console

from medseg.cli.progress import LineDisplay, LiveDisplay, show_summary
from medseg.kubeflow.local import LocalRun
from medseg.project import Event
from medseg.project.events import Kind

CONFIG = "configs/Task04_config.yaml"


def events(*lines: tuple[str, str, Kind, str]) -> list[Event]:
    """Events one second apart, from stage, target, kind and message."""
    return [
        Event(
            stage,
            kind,
            target,
            message,
            time=100.0 + number,
            path=f"/mnt/Data/{message}" if kind == "result" else "",
        )
        for number, (stage, target, kind, message) in enumerate(lines)
    ]


# Two folds at the same time: the one that started first ends last, and fails.
FOLDS = events(
    ("prepare_bundle", CONFIG, "start", ""),
    ("prepare_bundle", CONFIG, "end", "1.0 s"),
    ("train", f"{CONFIG}-0", "start", ""),
    ("train", f"{CONFIG}-3", "start", ""),
    ("train", f"{CONFIG}-0", "progress", "epoch 1"),
    ("train", f"{CONFIG}-3", "progress", "epoch 2"),
    ("train", f"{CONFIG}-3", "result", "training"),
    ("train", f"{CONFIG}-3", "end", "4.0 s"),
    ("train", f"{CONFIG}-0", "error", "no memory"),
)


def noted(lines: list[Event], root: Path) -> LocalRun:
    run = LocalRun("train-1", root / "runs" / "train-1" / "log.txt", root, PurePath("/mnt/Data"))
    for line in lines:
        run.add(line)
    return run


def console() -> Console:
    return Console(file=io.StringIO(), width=60, highlight=False)


def written(where: Console) -> str:
    assert isinstance(where.file, io.StringIO)
    return where.file.getvalue()


def test_targets_of_one_stage_are_kept_apart(tmp_path: Path) -> None:
    run = noted(FOLDS, tmp_path)
    assert [(stage.name, stage.target, stage.state, stage.seconds) for stage in run.stages] == [
        ("prepare_bundle", CONFIG, "done", 1),
        ("train", f"{CONFIG}-0", "failed", 6),
        ("train", f"{CONFIG}-3", "done", 4),
    ]
    assert run.errors == ["train: no memory"]


def test_lines_name_the_target_where_there_are_several() -> None:
    where = console()
    lines = LineDisplay(where)
    for event in FOLDS:
        lines.handle(event)
    assert written(where).splitlines() == [
        "  prepare_bundle: started",
        "  prepare_bundle: done in 1.0 s",
        "  train: started",
        "  train 3: started",
        "  train 0: epoch 1",
        "  train 3: epoch 2",
        "  train 3: done in 4.0 s",
        "  train 0: failed: no memory",
    ]


def test_the_live_display_has_a_line_for_every_target() -> None:
    with LiveDisplay(console()) as live:
        for event in FOLDS:
            live.handle(event)
        tasks = [(task.fields["stage"], task.description) for task in live.progress.tasks]
    assert tasks == [
        ("prepare_bundle", "[green]done"),
        ("train 0", "[red]failed: no memory"),
        ("train 3", "[green]done"),
    ]


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (["NIFTI/Task04-0", "NIFTI/Task04-10"], ["0", "10"]),
        (["r.org/spleen-dicom:1", "r.org/spleen-nifti:1"], ["dicom:1", "nifti:1"]),
        (["configs/a.yaml", "configs/b.yaml"], ["a.yaml", "b.yaml"]),
    ],
)
def test_a_target_is_shown_by_what_differs(
    targets: list[str], names: list[str], tmp_path: Path
) -> None:
    where = console()
    show_summary(where, noted(events(*(("s", each, "start", "") for each in targets)), tmp_path))
    for name in names:
        assert f" s {name} " in written(where)
    assert written(where).count("stopped") == len(targets)  # killed: they never ended


def test_the_summary_ends_with_where_the_results_lie() -> None:
    root = Path("/a/folder with [brackets] and a name that is longer than a line of the terminal")
    run = noted(
        events(
            ("validate", CONFIG, "result", "validation"),
            ("report", CONFIG, "result", "report"),
            ("report", CONFIG, "result", "report"),
        ),
        root,
    )
    run.succeeded = True
    where = console()
    show_summary(where, run)
    assert written(where).splitlines()[-4:] == [
        f"validation: {root}/validation",  # of a container's /mnt/Data
        f"report:     {root}/report",
        f"log:        {root}/runs/train-1/log.txt",
        "succeeded after 0 s",
    ]
