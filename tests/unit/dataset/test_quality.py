"""The quality table: its rows, as JSON and as HTML, and the dataset's own description."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from medseg.dataset import CONVERSION, QualityRow, collect_dataset, read_quality
from medseg.imaging import Volume
from medseg.project import DataRoot, Manifest, UserError


def row(case: str = "a", warnings: tuple[str, ...] = ()) -> QualityRow:
    affine = np.diag([-2.0, -1.00004, 3.0, 1.0])
    image = Volume(np.arange(24, dtype=np.int16).reshape(2, 3, 4) - 4, affine, case)
    label = np.zeros((2, 3, 4), np.uint8)
    label[0] = 1
    return QualityRow.measured(case, image, label, {"Tumor": 1, "Cyst": 2}, warnings)


def convert(root: DataRoot, *rows: QualityRow) -> None:
    """What the conversion leaves of the cases."""
    for each in rows:
        Manifest(root.path / "NIFTI" / each.case, CONVERSION).record("", [], each.to_json())


def test_what_is_measured() -> None:
    assert row(warnings=("slices overlap",)).to_json() == {
        "case": "a",
        "size": [2, 3, 4],
        "spacing": [2.0, 1.0, 3.0],
        "orientation": "LPS",
        "intensity": [-4.0, 19.0],
        "labels": {"Tumor": 1, "Cyst": 2},
        "volumes_ml": {"Tumor": 0.072, "Cyst": 0.0},
        "warnings": ["slices overlap", "Cyst is empty"],
    }
    image = Volume(np.ones((1, 1, 1)), np.eye(4), "b")
    assert QualityRow.measured("b", image, None, {}).volumes_ml == {}


def test_the_table_is_read_as_it_was_written(root: DataRoot) -> None:
    convert(root, row("b"), row("a", ("first",)))
    assert read_quality(root.path / "NIFTI") == []
    collected = collect_dataset(root, "NIFTI")
    assert (
        collected["rows"] == read_quality(root.path / "NIFTI") == [row("a", ("first",)), row("b")]
    )
    content = json.loads((root.path / "NIFTI" / "dataset.json").read_text())
    assert content["quality"][0]["warnings"] == ["first", "Cyst is empty"]
    assert {**collected["dataset"], "quality": content["quality"]} == content
    assert collected["dataset"]["labels"] == {"background": 0, "Tumor": 1, "Cyst": 2}


def test_names_cannot_become_markup(root: DataRoot) -> None:
    convert(root, row("a", ("<b>x</b> & y",)))
    html = collect_dataset(root, "NIFTI")["html"]
    cells = re.findall(r"<td>(.*?)</td>", html)
    assert cells == [
        *("a", "2 x 3 x 4", "2 x 1 x 3", "LPS", "-4 to 19", "Tumor: 0.072, Cyst: 0"),
        "&lt;b&gt;x&lt;/b&gt; &amp; y; Cyst is empty",
    ]
    assert html.count("<tr>") == 2


def test_nothing_converted_and_a_damaged_table(root: DataRoot, tmp_path: Path) -> None:
    (root.path / "NIFTI").mkdir()
    with pytest.raises(UserError, match="holds no converted case: run dicom_to_nifti"):
        collect_dataset(root, "NIFTI")
    for table in ('{"quality": [{"case": "a"}]}', '{"quality": 3}', '{"quality": ["a"]}', "{"):
        (tmp_path / "dataset.json").write_text(table)
        with pytest.raises(UserError, match=r"dataset\.json"):
            read_quality(tmp_path)
