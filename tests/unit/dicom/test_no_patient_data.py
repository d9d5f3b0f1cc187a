"""Whatever fails in whatever stage, nothing that leaves the process quotes a header."""

from __future__ import annotations

import io
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from medseg.cli import main
from medseg.components import (
    collect_dataset,
    convert_studies,
    list_studies,
    nifti_to_dicom,
    segment,
)
from medseg.imaging import write_nifti
from medseg.project import DataRoot
from medseg.project.variables import EVENTS
from tests.cases.threshold import write_threshold_model

MARKER = "Zyzzyva"
DATE = "17.05.1980"
MARKED = {
    "PatientName": f"{MARKER}^Anna",
    "PatientBirthDate": DATE,
    "PatientBirthTime": f"{MARKER}",
    "PatientSex": MARKER,
    "PatientAge": MARKER,
    "PatientWeight": MARKER,
    "PatientSize": DATE,
    "OtherPatientIDs": MARKER,
    "PatientAddress": MARKER,
    "PatientComments": MARKER,
    "EthnicGroup": MARKER,
    "ReferringPhysicianName": MARKER,
    "InstitutionName": MARKER,
    "AccessionNumber": MARKER,
    "StudyID": MARKER,
    "StudyDate": DATE,
    "StudyTime": MARKER,
    "StudyDescription": MARKER,
    "AcquisitionDateTime": DATE,
    "SeriesNumber": MARKER,
    "SpecificCharacterSet": MARKER,
    "PositionReferenceIndicator": MARKER,
    "FrameOfReferenceUID": MARKER,
    "LossyImageCompressionRatio": MARKER,
    "RescaleType": MARKER,
    "BodyPartExamined": MARKER,
}
"""Every kind of text, date and number of a header, each with what must not be told."""

FAULTS = (
    "pydicom.dcmread",
    "medseg.dicom.series.pixel_array",
    "medseg.dicom.seg.Segmentation",
    "medseg.dicom.seg.normalised_header",
    "medseg.dicom.sources.FolderSource._scan",
    "medseg.dicom.to_nifti.write_nifti",
    "medseg.dicom.to_nifti.volume_from_instances",
    "medseg.dicom.to_dicom.read_nifti",
    "medseg.bundle.inference.read_image",
    "medseg.bundle.inference.load_packaged",
    "medseg.nnunet.prediction.CasePredictor.preprocess",
    "medseg.dataset.quality.QualityRow.from_json",
)
"""What fails; no file makes a library fail on demand in every place."""

ERRORS = (ValueError, RuntimeError, KeyError, TypeError, OSError, AttributeError, Exception)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = {"background": 0, "Low": 1, "High": 2}
    return write_threshold_model(tmp_path_factory.mktemp("model") / "model.ts", labels)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A CT series and its SEG."""
    root = DataRoot.at(tmp_path_factory.mktemp("study"))
    image = np.arange(480, dtype=np.int16).reshape(10, 12, 4)
    write_nifti(image, np.eye(4), root.path / "in/a/a_image.nii.gz")
    write_nifti((image > 90).astype(np.uint8), np.eye(4), root.path / "in/a/a_label.nii.gz")
    from medseg import dicom

    dicom.nifti_to_dicom(root, "in", "DICOM", modality="CT")
    return sorted((root.path / "DICOM").rglob("*.dcm"))


def mark(files: list[Path], folder: Path, keywords: set[str]) -> None:
    """Copies a study with markers in its headers."""
    for number, path in enumerate(files):
        dataset = pydicom.dcmread(path)
        for keyword in keywords:
            value = MARKED[keyword].encode()
            value += b" " * (len(value) % 2)
            tag = Tag(keyword)
            dataset[tag] = RawDataElement(
                tag, dictionary_VR(tag), len(value), value, 0, False, True
            )
        kind = "seg" if "SEG" in path.parts else "ct"
        (folder / kind).mkdir(parents=True, exist_ok=True)
        dataset.save_as(folder / kind / f"{number}.dcm")


@contextmanager
def everything_told(root: Path) -> Iterator[Callable[[], str]]:
    """Console, events, and the log with every logger's lines, as Kubeflow's executor shows them."""
    told, log = io.StringIO(), logging.StreamHandler(io.StringIO())
    logging.getLogger().addHandler(log)
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.INFO)
    events = root / "events.jsonl"

    def text() -> str:
        written = events.read_text() if events.exists() else ""
        return told.getvalue() + log.stream.getvalue() + written

    try:
        with redirect_stdout(told), redirect_stderr(told):
            yield text
    finally:
        logging.getLogger().setLevel(level)
        logging.getLogger().removeHandler(log)


def stages(model: Path, root: Path) -> dict[str, Callable[[], Any]]:
    artifact = SimpleNamespace(metadata={}, path=str(root / "table.html"))

    def convert() -> None:
        list_studies.python_func("DICOM", "out")
        convert_studies.python_func("DICOM", 0, artifact, "out")
        collect_dataset.python_func(artifact, artifact, "out")

    def console() -> None:
        command = ["segment", str(root / "DICOM/ct"), "--model", str(model)]
        done = CliRunner().invoke(main, [*command, "-o", str(root / "out.dcm"), "--no-tta"])
        print(done.output)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            print(f"{type(done.exception)}: {done.exception}")  # Python would show a traceback

    return {
        "dicom_to_nifti": convert,
        "nifti_to_dicom": lambda: nifti_to_dicom.python_func("in", "back", artifact, modality="CT"),
        "segment": lambda: segment.python_func("model.ts", "DICOM/ct", "out", artifact),
        "medseg segment": console,
    }


def check(
    study: list[Path],
    model: Path,
    stage: str,
    fault: str,
    kind: type[Exception],
    keywords: set[str],
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        root = Path(folder)
        patch.setenv("MEDSEG_DATA_ROOT", folder)
        patch.setenv(EVENTS.name, str(root / "events.jsonl"))
        mark(study, root / "DICOM", keywords)
        shutil.copyfile(model, root / "model.ts")
        write_nifti(np.ones((2, 3, 4), np.int16), np.eye(4), root / "in/a/a_image.nii.gz")
        quoted = f"Invalid value: {MARKED}"

        def fail(*_: Any, **__: Any) -> None:
            logging.getLogger("pydicom").warning(quoted)
            raise kind(quoted)

        if fault:
            patch.setattr(fault, fail)
        with everything_told(root) as told:
            try:
                stages(model, root)[stage]()
            except SystemExit as error:
                assert error.code == 1
        text = told()
        assert MARKER not in text, text
        assert DATE not in text, text
        for path in root.rglob("*.html"):
            assert MARKER not in path.read_text()


@settings(max_examples=40, derandomize=True, database=None, deadline=None)
@given(
    stage=st.sampled_from(["dicom_to_nifti", "nifti_to_dicom", "segment", "medseg segment"]),
    fault=st.sampled_from(["", *FAULTS]),
    kind=st.sampled_from(ERRORS),
    keywords=st.sets(st.sampled_from(sorted(MARKED)), min_size=3),
)
def test_no_header_leaves_the_process(
    study: list[Path],
    model: Path,
    stage: str,
    fault: str,
    kind: type[Exception],
    keywords: set[str],
) -> None:
    check(study, model, stage, fault, kind, keywords)


@pytest.mark.slow
@settings(max_examples=500, derandomize=True, database=None, deadline=None)
@given(
    stage=st.sampled_from(["dicom_to_nifti", "nifti_to_dicom", "segment", "medseg segment"]),
    fault=st.sampled_from(["", *FAULTS]),
    kind=st.sampled_from(ERRORS),
    keywords=st.sets(st.sampled_from(sorted(MARKED))),
)
def test_no_header_leaves_the_process_at_length(
    study: list[Path],
    model: Path,
    stage: str,
    fault: str,
    kind: type[Exception],
    keywords: set[str],
) -> None:
    check(study, model, stage, fault, kind, keywords)
