"""The report: complete, self-contained, and whole in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops

from medseg.config import TaskConfig
from medseg.evaluation import evaluate, write_report
from medseg.imaging import read_nifti, write_nifti
from medseg.project import write_json
from tests.browser import arguments
from tests.hippocampus import copy_cases
from tests.unit.evaluation.finished import (
    finished_project,
)

# Runs in the page: what was drawn and where, and what was asked for.
PROBE = """
<script>
window.addEventListener("load", () => {
  const box = image => {
    const at = image.getBoundingClientRect();
    return [at.left, at.top, at.right, at.bottom].map(Math.round);
  };
  const result = {
    images: [...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth, i.alt]),
    boxes: [...document.images].map(box),
    height: document.documentElement.scrollHeight,
    requests: performance.getEntriesByType("resource").map(entry => entry.name.slice(0, 80)),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  };
  document.body.innerHTML = "<pre id='probe'></pre>";
  document.getElementById("probe").textContent = JSON.stringify(result);
});
</script>
"""


class Links(HTMLParser):
    """Everything that a page points to."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.targets += [
            value or ""
            for name, value in attrs
            if name in ("src", "href", "srcset", "data", "action", "poster")
        ]


def browse(page: Path, folder: Path, width: int, height: int, *wanted: str) -> str:
    """Opens a page in a fresh browser; returns what that wrote to its output."""
    with tempfile.TemporaryDirectory(dir=folder) as profile:
        done = subprocess.run(
            [*arguments(profile, width, height), *wanted, page.as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
    return done.stdout


def policy(page: str) -> str:
    found = re.search(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", page)
    assert found is not None
    return found[0]


def probe(page: Path, folder: Path, width: int) -> dict[str, Any]:
    """Opens a copy of the page that reports on itself: its policy allows that script besides."""
    text = page.read_text()
    allowing = re.sub('script-src [^"]*', "script-src 'unsafe-inline'", policy(text))
    copy = folder / "probe.html"
    copy.write_text(text.replace(policy(text), allowing).replace("</body>", PROBE + "</body>"))
    dom = browse(copy, folder, width, 1000, "--virtual-time-budget=20000", "--dump-dom")
    found = re.search(r"<pre id=\"probe\">(.*?)</pre>", dom, re.DOTALL)
    assert found, dom[:2000]
    content: dict[str, Any] = json.loads(found[1].replace("&lt;", "<").replace("&amp;", "&"))
    return content


def screenshot(page: Path, folder: Path, width: int, height: int) -> Image.Image:
    """The page as it is, from its head to its foot."""
    file = folder / "screenshot.png"
    file.unlink(missing_ok=True)
    browse(page, folder, width, height, f"--screenshot={file}")
    with Image.open(file) as picture:
        assert picture.size == (width, height)
        return picture.convert("RGB")


def is_drawn(picture: Image.Image, box: list[int]) -> bool:
    """Whether a figure fills its rectangle: with many colours, and from edge to edge.

    In place of a picture that is not shown stands nothing, or a line of text in its upper corner.
    """
    figure = picture.crop(tuple(box))  # type: ignore[arg-type]
    colours = figure.getcolors(maxcolors=figure.width * figure.height)
    ink = ImageChops.difference(figure, Image.new("RGB", figure.size, "white")).getbbox()
    if colours is None or len(colours) < 32 or ink is None:
        return False
    return ink[2] - ink[0] > 0.9 * figure.width and ink[3] - ink[1] > 0.9 * figure.height


def test_every_figure_is_drawn_and_nothing_is_fetched(complete: TaskConfig, tmp_path: Path) -> None:
    page = write_report(complete, complete.root.path / "reports" / "r" / "report.html")
    assert page.stat().st_size < 5_000_000
    for width in (1200, 500):
        (tmp_path / str(width)).mkdir()
        seen = probe(page, tmp_path / str(width), width)
        # Four metrics, three validation cases, one test case, curves, dataset.
        assert len(seen["images"]) == 4 + 3 + 1 + 1 + 1
        for whole, natural, shown, alt in seen["images"]:
            assert whole and natural > 0 and shown > 0, alt
            assert len(alt) > 20
        assert all(name.startswith("data:") for name in seen["requests"])
        assert seen["overflow"] <= 0
    links = Links()
    links.feed(page.read_text())
    assert "link" not in links.tags and "iframe" not in links.tags
    assert all(target.startswith(("#", "data:image/")) for target in links.targets)
    styles = "".join(re.findall(r"<style>.*?</style>", page.read_text(), re.DOTALL))
    assert "url(" not in styles and "@import" not in styles


def test_the_screenshot_shows_all_figures(complete: TaskConfig, tmp_path: Path) -> None:
    page = write_report(complete, tmp_path / "report.html")
    seen = probe(page, tmp_path, 1200)
    height = seen["height"]
    assert len(seen["boxes"]) == 10
    assert all(0 <= box[1] < box[3] <= height for box in seen["boxes"])
    picture = screenshot(page, tmp_path, 1200, height)
    for box, (*_, alt) in zip(seen["boxes"], seen["images"], strict=True):
        assert is_drawn(picture, box), alt
    # The same, were the pictures forbidden: the check must see it.
    text = page.read_text()
    blocked = tmp_path / "blocked.html"
    blocked.write_text(text.replace(policy(text), policy(text).replace("img-src data:; ", "")))
    picture = screenshot(blocked, tmp_path, 1200, height)
    assert not all(is_drawn(picture, box) for box in seen["boxes"])


def test_it_says_what_was_measured(complete: TaskConfig, tmp_path: Path) -> None:
    text = write_report(complete, tmp_path / "r.html").read_text()
    summary = json.loads((complete.fold_folder() / "validation" / "summary.json").read_text())
    assert f"<b>{summary['foreground_mean']['Dice']:.3f}</b>" in text
    for entry in summary["metric_per_case"]:
        assert f"{entry['metrics']['1']['HD95']:.2f}" in text
    ranked = sorted(
        (entry["metrics"]["1"]["Dice"], Path(entry["prediction_file"]).name[:-7])
        for entry in summary["metric_per_case"]
    )
    for title, (dice, case) in zip(("Worst", "Median", "Best"), ranked, strict=True):
        assert f"{title}: {case}, Dice {dice:.3f}" in text
    assert "Best, median, worst: phantom_006" in text  # the only test case
    assert "ab" * 32 in text  # the dataset's hash
    assert re.search(r"checkpoint_final\.pth</td><td class=\"hash\">[0-9a-f]{64}<", text)
    assert "nnunetv2 2.6.4" in text
    assert "24 × 32 × 40" in text
    # What comes from data cannot become markup.
    assert "slices &lt;b&gt;overlap&lt;/b&gt; &amp; differ" in text
    assert "<b>overlap" not in text


def test_settings_are_those_of_the_training(complete: TaskConfig, tmp_path: Path) -> None:
    def shown() -> str:
        text = write_report(complete, tmp_path / "r.html").read_text()
        return re.sub(r"\s+", " ", re.sub(r"data:image/[^\"]+|<[^>]+>", " ", text))

    assert "Epochs × steps 12 × 12 Initial learning rate 0.01 Seed 12345" in shown()
    record = complete.fold_folder() / ".medseg" / "training.json"
    settings = {"num_epochs": 250, "num_iterations_per_epoch": 77, "initial_lr": 0.001, "seed": 3}
    write_json(record, {"data": "x", "settings": settings})
    assert "Epochs × steps 250 × 77 Initial learning rate 0.001 Seed 3" in shown()
    assert "epochs of 77 steps" in shown()
    record.write_text("[]")  # not one of ours
    assert "Epochs × steps 12 × 12" in shown()


def test_missing_parts_say_why(finished: TaskConfig, tmp_path: Path) -> None:
    shutil.rmtree(finished.fold_folder())
    shutil.rmtree(finished.raw_folder)
    (finished.results_folder / "plans.json").unlink()
    text = write_report(finished, tmp_path / "r.html").read_text()
    for sentence in (
        "No validation results.</strong> There is no nnUNet/nnUNet_trained_models",
        "the stage validate has not run",
        "the stage test_model has not run",
        "No training curves.</strong> Fold 0 has no checkpoint",
        "No dataset.</strong> There is neither a quality table",
        "No plans.",
        "prepare_dataset has not run",
        "not there",
    ):
        assert sentence in text, sentence


def test_damaged_parts_do_not_stop_it(finished: TaskConfig, tmp_path: Path) -> None:
    (finished.fold_folder() / "checkpoint_final.pth").write_bytes(b"PK\3\4 half")
    image = finished.raw_folder / "imagesTr" / "phantom_001_0000.nii.gz"
    image.write_bytes(image.read_bytes()[:100])
    text = write_report(finished, tmp_path / "r.html").read_text()
    assert "checkpoint_final.pth cannot be read" in text
    assert re.search(r"Best: phantom_001[^<]*cannot be read as NIfTI", text)
    assert "Worst: phantom_" in text  # the others are there


def test_names_cannot_become_markup(complete: TaskConfig, tmp_path: Path) -> None:
    labels = {"background": 0, "<script>alert(1)</script> $\\frac$": 1, "'\"><img src=x>": 2}
    hostile = complete.model_copy(update={"labels": labels})
    page = write_report(hostile, tmp_path / "r.html")
    assert "<script>alert" not in page.read_text() and "src=x>" not in page.read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt; $\\frac$" in page.read_text()


def test_real_cases_with_two_structures(shared_data: Path, tmp_path: Path, root: Any) -> None:
    source = tmp_path / "Task04"
    copy_cases(shared_data, source, 7)
    config = finished_project(root, source, "Task04_Hippocampus")
    evaluate(config)
    text = write_report(config, tmp_path / "r.html").read_text()
    assert "Anterior, Posterior on MRI" in text
    assert "(mean of its structures)" in text
    data = r"data:image/[^\"]+|<script.*?</script>"
    assert "HU" not in re.sub(data, "", text, flags=re.DOTALL)


def test_other_peoples_style_does_not_leak_in() -> None:
    import matplotlib

    from medseg.evaluation.figures import metric_figure

    points = {"validation": {"spleen": [0.8, 0.9]}}
    clean = metric_figure("Dice", "", points)
    with matplotlib.rc_context({"font.size": 40, "axes.facecolor": "red"}):  # as nnU-Net leaves it
        assert metric_figure("Dice", "", points) == clean
        assert matplotlib.rcParams["font.size"] == 40


def test_sides_are_right(tmp_path: Path, finished: TaskConfig) -> None:
    """The spleen, which lies left and posterior, is at the right and low in the axial slice."""
    label = read_nifti(finished.raw_folder / "labelsTr" / "phantom_001.nii.gz")
    turned = label.turned("LPS").array
    centre = np.argwhere(turned).mean(axis=0) / turned.shape
    assert centre[0] > 0.55 and centre[1] > 0.5
    # The same anatomy, stored in another order of axes.
    write_nifti(
        label.array.transpose(2, 0, 1)[::-1],
        label.affine
        @ np.array([[0, 1, 0, 0], [0, 0, 1, 0], [-1, 0, 0, label.shape[2] - 1], [0, 0, 0, 1]]),
        tmp_path / "x.nii.gz",
    )
    other = read_nifti(tmp_path / "x.nii.gz").turned("LPS")
    assert np.array_equal(other.array, turned)
    assert other.spacing == pytest.approx(label.turned("LPS").spacing)
