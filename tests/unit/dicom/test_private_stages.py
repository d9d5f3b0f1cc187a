"""The stages that read DICOM say nothing of what an unforeseen error quotes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import medseg.bundle
import medseg.dicom
from medseg.components import convert_studies, list_studies, nifti_to_dicom, segment
from medseg.project import DataRoot, read_events
from medseg.project.variables import EVENTS

HEADER = "DOE^JANE"


def _broken(*_: Any, **__: Any) -> None:
    raise ValueError(f"Invalid value for VR PN: {HEADER!r}")


# what fails inside cannot be foreseen, so no header makes it fail on demand
@pytest.mark.parametrize(
    ("stage", "work"),
    [
        (lambda: list_studies.python_func("DICOM", "NIFTI"), (medseg.dicom, "list_studies")),
        (
            lambda: convert_studies.python_func("DICOM", 0, None, "NIFTI"),
            (medseg.dicom, "convert_studies"),
        ),
        (
            lambda: nifti_to_dicom.python_func("NIFTI", "DICOM", None),
            (medseg.dicom, "nifti_to_dicom"),
        ),
        (
            lambda: segment.python_func("model.ts", "DICOM", "OUT", None),
            (medseg.bundle, "segment"),
        ),
    ],
    ids=["list_studies", "convert_studies", "nifti_to_dicom", "segment"],
)
def test_an_unforeseen_error_quotes_no_header(
    stage: Callable[[], None],
    work: tuple[object, str],
    root: DataRoot,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(EVENTS.name, str(tmp_path / "events.jsonl"))
    monkeypatch.setattr(*work, _broken)
    with pytest.raises(SystemExit) as caught:
        stage()
    assert caught.value.code == 1
    error = read_events(tmp_path / "events.jsonl")[-1]
    assert error.message.startswith("ValueError in test_private_stages.py, line ")
    shown = capsys.readouterr()
    assert error.message in shown.err
    assert "DOE" not in f"{error}{shown.out}{shown.err}"
