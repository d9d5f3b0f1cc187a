"""The report's table and viewer, used as a person does, in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.config import TaskConfig
from medseg.evaluation import evaluate, write_report
from medseg.evaluation.parts import case_files
from medseg.imaging import read_nifti, write_nifti
from medseg.nnunet import read_summary
from medseg.project import write_json
from tests.browser import Page, browsing, running
from tests.unit.evaluation.finished import worsened

COLUMN = (
    "[...document.querySelectorAll('.tabulator-row')].map(row => row.querySelector('{}').innerText)"
)
CASES = COLUMN.format(".case")
DICE = COLUMN.format("[tabulator-field=Dice]")
SHOWN = "document.getElementById('viewer-case').innerText"
SLICE = "document.getElementById('slice-number').innerText"
DRAWN = "document.querySelectorAll('#panels canvas').length"

COLOURS = """(() => {
  const count = canvas => {
    const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const near = (i, r, g, b) =>
      Math.abs(data[i] - r) + Math.abs(data[i + 1] - g) + Math.abs(data[i + 2] - b) < 90;
    const found = {blue: 0, orange: 0, grey: new Set()};
    for (let i = 0; i < data.length; i += 4) {
      if (near(i, 86, 180, 233)) found.blue++;
      if (near(i, 230, 159, 0)) found.orange++;
      if (data[i] === data[i + 1] && data[i] === data[i + 2]) found.grey.add(data[i]);
    }
    return {...found, grey: found.grey.size};
  };
  return [...document.querySelectorAll("#panels canvas")].map(count);
})()"""
"""What is drawn: pixels in the colours of the two outlines, and how many greys, of each panel."""


def expected(config: TaskConfig) -> dict[str, float]:
    """Case to Dice, of validation and test."""
    folder = config.fold_folder()
    return {
        Path(entry["prediction_file"]).name.removesuffix(".nii.gz"): entry["metrics"]["1"]["Dice"]
        for part in ("validation", "test")
        for entry in read_summary(folder / part / "summary.json")["metric_per_case"]
    }


def opened(page: Page, file: Path) -> None:
    page.open(file.as_uri())
    page.wait_for(DRAWN)


@pytest.fixture
def report(complete: TaskConfig) -> Path:
    return write_report(complete, complete.root.path / "reports" / "later" / "report.html")


def test_sort_filter_and_open_the_worst_case(complete: TaskConfig, report: Path) -> None:
    dice = expected(complete)
    ranked = sorted(dice, key=lambda case: dice[case])
    with browsing() as page:
        opened(page, report)
        assert page.run(CASES) == ranked
        assert page.run(DICE) == [f"{dice[case]:.3f}" for case in ranked]
        assert page.run(SHOWN) == ranked[0]  # the worst one is open
        page.click(".tabulator-col[tabulator-field=Dice]")
        assert page.run(CASES) == ranked[::-1]
        page.click(".tabulator-col[tabulator-field=case]")
        assert page.run(CASES) == sorted(dice)
        page.type("#filter-case", ranked[0][-2:])
        assert ranked[0] in page.run(CASES) and len(page.run(CASES)) < len(dice)
        assert page.run("document.getElementById('case-count').innerText").endswith("of 4 cases")
        page.type("#filter-case", "")
        page.type("#filter-dice", "0.9")
        assert sorted(page.run(CASES)) == sorted(case for case in dice if dice[case] <= 0.9)
        page.type("#filter-dice", "")
        page.choose("#filter-part", "test")
        assert page.run(CASES) == complete.test_cases
        page.choose("#filter-part", "all")
        page.click(".tabulator-row:nth-child(3)")
        page.wait_for(f"{SHOWN} === {json.dumps(sorted(dice)[2])}")
        assert (
            page.run("document.querySelector('.tabulator-row.chosen .case').innerText")
            == (sorted(dice)[2])
        )
        page.type("#filter-case", "nobody")
        assert "No case fits" in page.run("document.getElementById('case-table').innerText")
        assert page.errors == []
        assert [name for name in page.requests if not name.startswith("data:")] == [report.as_uri()]


def test_slices_and_layers(complete: TaskConfig, report: Path) -> None:
    with browsing() as page:
        opened(page, report)
        page.choose("#filter-part", "validation")
        worst = page.run(CASES)[0]
        page.click(".tabulator-row")
        page.wait_for(f"{SHOWN} === {json.dumps(worst)} && {DRAWN}")
        first = page.run(SLICE)
        number, total = map(int, re.findall(r"\d+", first))
        case = page.run(SHOWN)
        folder = complete.fold_folder() / "validation"
        prediction = read_nifti(folder / f"{case}.nii.gz").turned("LPS").array
        reference = complete.preprocessed_folder / "gt_segmentations" / f"{case}.nii.gz"
        wrong = (read_nifti(reference).turned("LPS").array != prediction).sum(axis=(0, 1))
        assert wrong[number - 1] == wrong.max() and total == len(wrong)
        (drawn,) = page.run(COLOURS)
        assert drawn["blue"] > 100 and drawn["orange"] > 50 and drawn["grey"] > 20
        page.click("#layer-prediction")
        assert page.run(COLOURS)[0]["orange"] < 10 and page.run(COLOURS)[0]["blue"] > 100
        page.click("#layer-reference")
        assert page.run(COLOURS)[0]["blue"] < 10 and page.run(COLOURS)[0]["grey"] > 20
        page.wheel("#panels canvas", 120)
        page.wait_for(f"{SLICE} !== {json.dumps(first)}")
        assert page.run(SLICE) == f"{number + 1} of {total}"
        page.run("document.getElementById('viewer').focus()")
        page.key("ArrowDown", 40)
        page.key("ArrowDown", 40)
        assert page.run(SLICE) == f"{number - 1} of {total}"
        page.key("Home", 36)
        assert page.run(SLICE) == f"{np.flatnonzero(wrong)[0]} of {total}"  # and the one below
        page.key("PageDown", 34)  # the next case
        page.wait_for(f"{SHOWN} !== {json.dumps(case)}")
        page.run("document.getElementById('slice').focus()")
        before = page.run(SLICE)
        page.key("ArrowRight", 39)
        assert page.run(SLICE) != before
        assert page.errors == []


def test_runs_side_by_side(complete: TaskConfig, report: Path) -> None:
    """What an earlier report kept, another fold, and the model before; not what fits no more."""
    folder = complete.fold_folder() / "validation"
    old = expected(complete)
    kept = report.parent / "predictions"
    same = [path.samefile(folder / path.name) for path in kept.rglob("validation/*.nii.gz")]
    assert len(same) == 3 and all(same)  # links, which cost no space
    for number, path in enumerate(sorted(folder.glob("*.nii.gz"))):
        reference = complete.preprocessed_folder / "gt_segmentations" / path.name
        label = read_nifti(reference)
        write_nifti(worsened(label.array, 4 - number), label.affine, path)
    evaluate(complete)
    other = complete.results_folder / "fold_1" / "test"
    shutil.copytree(complete.fold_folder() / "test", other)
    summary = read_summary(other / "summary.json")
    summary["metric_per_case"][0]["metrics"]["1"]["Dice"] = 0.123
    write_json(other / "summary.json", summary)
    # one whose reference was another
    summary["metric_per_case"][0]["metrics"]["1"]["n_ref"] += 1
    write_json(complete.results_folder / "present_model" / "summary.json", summary)
    new = expected(complete)
    second = write_report(complete, complete.root.path / "reports" / "last" / "report.html")
    validated = [case for case in new if case not in complete.test_cases]
    losses = {case: new[case] - old[case] for case in validated}
    with browsing() as page:
        opened(page, second)
        runs = page.run("[...document.getElementById('filter-run').options].map(o => o.text)")
        assert runs == ["no other", "later", "fold 1"]
        page.choose("#filter-run", "later")
        page.wait_for(f"{DRAWN} === 2")
        shown = page.run(CASES)
        assert shown[:3] == sorted(losses, key=lambda case: losses[case])
        assert page.run(SHOWN) == shown[0]
        changes = page.run(COLUMN.format('[tabulator-field="Dice difference"]'))
        for case, text in zip(shown[:3], changes, strict=False):
            value = float(re.sub("[▲▼ +]", "", text.replace("−", "-")))
            assert value == pytest.approx(losses[case], abs=6e-4)
            assert ("▼" in text) == (value < 0)
        assert changes[3] == "–"  # the test case's prediction is what it was: no other run
        sentence = page.run("document.getElementById('comparison').innerText")
        mean = np.mean([new[case] for case in validated])
        assert f"over 3 cases of both: mean {mean:.3f} here" in sentence
        left, right = page.run(COLOURS)
        assert left["orange"] > 20 and right["orange"] > 20 and left != right
        page.choose("#filter-run", "fold 1")
        page.wait_for(f"{SHOWN} === {json.dumps(complete.test_cases[0])}")
        assert "0.123" in page.run("document.getElementById('panels').innerText")
        assert page.errors == []


def test_within_kubeflows_frame(report: Path, tmp_path: Path) -> None:
    """Kubeflow's UI puts the text into a frame that may run scripts and has no origin."""
    outer = tmp_path / "ui.html"
    outer.write_text(
        "<!DOCTYPE html><title>UI</title><iframe sandbox='allow-scripts' width=1000 height=800 "
        f'srcdoc="{escape(report.read_text())}"></iframe>'
    )
    with running() as browser:
        browser.page.open(outer.as_uri())
        page = browser.target("iframe")
        page.wait_for(DRAWN)
        assert len(page.run(CASES)) == 4
        assert page.run(COLOURS)[0]["blue"] > 100
        assert page.errors == []


def test_a_case_that_cannot_be_shown_says_why(complete: TaskConfig, tmp_path: Path) -> None:
    dice = expected(complete)
    worst = min(dice, key=lambda case: dice[case])
    part = "test" if worst in complete.test_cases else "validation"
    image = case_files(complete, part, tmp_path, worst).image
    image.write_bytes(image.read_bytes()[:100])
    report = write_report(complete, tmp_path / "r.html")
    assert not (tmp_path / "predictions").exists()  # no run's folder
    with browsing() as page:
        page.open(report.as_uri())
        message = page.wait_for("document.getElementById('viewer-message').innerText")
        assert "cannot be read as NIfTI" in message and page.run(SHOWN) == worst
        page.click("#next-case")
        page.wait_for(DRAWN)
        assert page.run("document.getElementById('viewer-message').hidden")


def test_names_are_text(complete: TaskConfig, tmp_path: Path) -> None:
    """A structure's name is no markup in the table's controls, and no end of the data."""
    hostile: Any = {"background": 0, "</script><img src=x onerror=alert(1)>": 1}
    config = complete.model_copy(update={"labels": hostile})
    report = write_report(config, tmp_path / "r.html")
    assert "<img src=x" not in report.read_text()
    with browsing() as page:
        opened(page, report)
        assert page.errors == []


def test_scripts_from_elsewhere_are_refused(report: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.html"
    changed.write_text(
        report.read_text().replace("</body>", "<script>var foreign=1</script></body>")
    )
    with browsing() as page:
        opened(page, changed)
        assert page.run("typeof foreign") == "undefined"
        assert any("Content Security Policy" in error for error in page.errors)
