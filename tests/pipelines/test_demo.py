"""``medseg demo`` as a user runs it: on phantoms, and on a folder in the Decathlon format."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from medseg.demo import write_demo_config
from tests.hippocampus import copy_cases
from tests.pipelines.harness import medseg, newest_log, partial_files


def run_demo(root: Path, *options: object) -> tuple[dict[tuple[str, str], list[float]], Path]:
    """Runs the demo; returns the table that it ends with, and the report that it names.

    The table's rows are those of part and structure (``("test", "spleen")``) to the number of
    cases, Dice, IoU, ASD and HD95; what is undefined is left out.
    """
    done = medseg("demo", "--data-root", root, *options, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr + newest_log(root)
    end = done.stdout[done.stdout.rindex("Metrics (mean over cases)") :]
    assert [c for c in ("Dice", "IoU", "ASD / mm", "HD95 / mm") if c not in end] == []
    rows = {
        (part, structure): [float(value) for value in re.findall(r"[\d.]+", f"{count} {values}")]
        for part, count, structure, values in re.findall(
            r"^│ (\w+) \((\d+)\) +│ (\w+) +│(.*)│$", end, re.MULTILINE
        )
    }
    report = Path(end.splitlines()[-1].removeprefix("report: "))
    assert report.is_relative_to(root / "reports")
    assert partial_files(root) == []
    return rows, report


def test_phantoms(tmp_path: Path) -> None:
    rows, report = run_demo(tmp_path / "new" / "demo")
    assert list(rows) == [("validation", "spleen"), ("test", "spleen")]
    for count, dice, iou, asd, hd95 in rows.values():
        assert count == 3
        assert dice >= 0.85
        assert 0 < iou < dice
        assert 0 < asd < hd95 < 20
    page = report.read_text()
    assert page.count("<img ") == 4 + 6 + 2  # metrics; best, median and worst; curves, dataset
    for row in rows.values():
        assert f"<b>{row[1]:.3f}</b>" in page


def test_a_folder_that_is_no_dataset(tmp_path: Path) -> None:
    done = medseg("demo", "--data-root", tmp_path / "demo", "--dataset", tmp_path)
    assert done.returncode == 1
    assert f"error: {tmp_path} holds no dataset.json: give a folder in the Decathlon" in done.stderr


@pytest.mark.slow
def test_a_dataset_of_the_decathlon(shared_data: Path, tmp_path: Path) -> None:
    dataset, root = tmp_path / "Task04_Hippocampus", tmp_path / "demo"
    copy_cases(shared_data, dataset)
    # A config that is there already stays; this one trains for a moment only.
    config = root / "configs" / f"{dataset.name}_config.yaml"
    write_demo_config(config, dataset, dataset.name)
    short = {"num_epochs": 1, "iterations_per_epoch": 2, "save_every": 1}
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | short))
    before = config.read_bytes()

    rows, report = run_demo(root, "--dataset", dataset)
    assert config.read_bytes() == before
    assert {key: row[0] for key, row in rows.items()} == {
        ("validation", "Anterior"): 1,
        ("validation", "Posterior"): 1,
        ("test", "Anterior"): 1,
        ("test", "Posterior"): 1,
    }
    page = report.read_text()
    assert "Anterior, Posterior on MRI" in page
    assert "6 cases: 4 for training, 1 for validation, 1 held back as a test set." in page
