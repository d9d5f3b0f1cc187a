"""Whatever fails in whatever stage, nothing that leaves the process quotes a header."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.filereader import dcmread as read_header
from pydicom.tag import Tag

from medseg.cli import main
from medseg.components import (
    collect_dataset,
    convert_studies,
    list_studies,
    nifti_to_dicom,
    segment,
    test_model,
)
from medseg.deploy import load_segmentation_task
from medseg.deploy.application import Package
from medseg.deploy.dicom_input import segment_studies
from medseg.imaging import write_nifti
from medseg.project import DataRoot, UserError, explained_os_errors, unquoted_errors
from medseg.project.variables import EVENTS
from tests.cases.talkative import talkative
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

STAGES = ["dicom_to_nifti", "nifti_to_dicom", "segment", "medseg segment", "inference image"]

CODE = {"code": "1", "scheme": "99TEST", "meaning": "Bright"}
TASK = {
    "Modalities": {"image": {"Rules_Text": ""}},
    "Segments": [
        {
            "segment_label": name,
            "segmented_property_category": CODE,
            "segmented_property_type": CODE,
            "algorithm_name": "Threshold",
        }
        for name in ("Low", "High")
    ],
}
"""What an inference image segments."""

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


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store of MLflow, which takes seconds to make its tables."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@contextmanager
def everything_told(root: Path) -> Iterator[Callable[[], str]]:
    """Console, events, MLflow's store, and the log with every logger's lines."""
    told, log = io.StringIO(), logging.StreamHandler(io.StringIO())
    logging.getLogger().addHandler(log)
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.INFO)
    events = root / "events.jsonl"

    def text() -> str:
        files = [events, root / "mlflow.db", *(root / "mlartifacts").rglob("*")]
        kept = [path.read_bytes().decode("latin-1") for path in files if path.is_file()]
        return "".join([told.getvalue(), log.stream.getvalue(), *kept])

    try:
        with redirect_stdout(told), redirect_stderr(told):
            yield text
    finally:
        logging.getLogger().setLevel(level)
        logging.getLogger().removeHandler(log)


def stages(model: Path, root: Path) -> dict[str, Callable[[], Any]]:
    artifact = SimpleNamespace(
        metadata={}, path=str(root / "table.html"), log_metric=lambda *_: None
    )

    def convert() -> None:
        list_studies.python_func("DICOM", "out")
        convert_studies.python_func("DICOM", 0, artifact, "out")
        collect_dataset.python_func(artifact, artifact, "out")

    def measure() -> None:
        convert()
        cases = [path.parent.name for path in (root / "out").glob("*/*_image.nii.gz")]
        config = {
            "data_dir": "out",
            "dataset_name_or_id": "4",
            "experiment_name": "Task",
            "labels": {"background": 0, "Low": 1, "High": 2},
            "test_cases": sorted(cases),
            "bundle_config": {"bundle_root": "bundle"},
        }
        (root / "config.yaml").write_text(yaml.safe_dump(config))
        (root / "bundle/models/fold_0").mkdir(parents=True)
        shutil.copyfile(model, root / "bundle/models/fold_0/model.ts")
        test_model.python_func("config.yaml", artifact)

    def console() -> None:
        command = ["segment", str(root / "DICOM/ct"), "--model", str(model)]
        done = CliRunner().invoke(main, [*command, "-o", str(root / "out.dcm"), "--no-tta"])
        print(done.output)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            print(f"{type(done.exception)}: {done.exception}")  # Python would show a traceback

    def inference_image() -> None:  # from where MONAI Deploy has chosen the series
        header = read_header(next((root / "DICOM/ct").iterdir()))
        chosen = {header.StudyInstanceUID: {"image": [header.SeriesInstanceUID]}}
        (root / "task.yaml").write_text(yaml.safe_dump({"tasks": {"Bright": TASK}}))
        with explained_os_errors(), unquoted_errors():
            package = Package(root / "model.ts", load_segmentation_task(root / "task.yaml"))
            segment_studies(package, chosen, root / "DICOM", root / "out")

    return {
        "inference image": inference_image,
        "dicom_to_nifti": convert,
        "test_model": measure,
        "nifti_to_dicom": lambda: nifti_to_dicom.python_func("in", "back", artifact, modality="CT"),
        "segment": lambda: segment.python_func("model.ts", "DICOM/ct", "out", artifact),
        "medseg segment": console,
    }


def check(
    study: list[Path],
    model: Path,
    store: Path,
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
        shutil.copyfile(store, root / "mlflow.db")
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
            except UserError as error:
                print(error)  # as the image's command does
        text = told()
        assert MARKER not in text, text
        assert DATE not in text, text
        assert stage != "test_model" or list((root / "mlartifacts").rglob("summary.json")), text
        for path in root.rglob("*.html"):
            assert MARKER not in path.read_text()


@settings(max_examples=40, derandomize=True, database=None, deadline=None)
@given(
    stage=st.sampled_from(STAGES),
    fault=st.sampled_from(["", *FAULTS]),
    kind=st.sampled_from(ERRORS),
    keywords=st.sets(st.sampled_from(sorted(MARKED)), min_size=3),
)
def test_no_header_leaves_the_process(
    study: list[Path],
    model: Path,
    store: Path,
    stage: str,
    fault: str,
    kind: type[Exception],
    keywords: set[str],
) -> None:
    check(study, model, store, stage, fault, kind, keywords)


@settings(max_examples=3, derandomize=True, database=None, deadline=None)
@given(keywords=st.sets(st.sampled_from(sorted(MARKED)), min_size=15))
def test_no_header_gets_into_mlflow(
    study: list[Path], model: Path, store: Path, keywords: set[str]
) -> None:
    check(study, model, store, "test_model", "", ValueError, keywords)


@pytest.mark.slow
@settings(max_examples=500, derandomize=True, database=None, deadline=None)
@given(
    stage=st.sampled_from(STAGES),
    fault=st.sampled_from(["", *FAULTS]),
    kind=st.sampled_from(ERRORS),
    keywords=st.sets(st.sampled_from(sorted(MARKED))),
)
def test_no_header_leaves_the_process_at_length(
    study: list[Path],
    model: Path,
    store: Path,
    stage: str,
    fault: str,
    kind: type[Exception],
    keywords: set[str],
) -> None:
    check(study, model, store, stage, fault, kind, keywords)


# --- as Kubeflow runs it ---


def in_a_pod(component: Any, folder: Path, **parameters: Any) -> str:
    """All that the command of a stage's container says: what pod log and artifact hold."""
    container = component.component_spec.implementation.container
    artifacts = {
        name: {
            "artifacts": [{"name": name, "type": {"schemaTitle": "system.Artifact"}, "uri": uri}]
        }
        for name in component.component_spec.outputs or ()
        for uri in [str(folder / "artifacts" / name)]
    }
    given = {
        "inputs": {"parameterValues": parameters},
        "outputs": {"artifacts": artifacts, "outputFile": str(folder / "outputs.json")},
    }
    arguments = [json.dumps(given) if each == "{{$}}" else each for each in container.args]
    done = subprocess.run(
        [*container.command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "MEDSEG_DATA_ROOT": str(folder),
            EVENTS.name: str(folder / "events.jsonl"),
        },
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_log_of_a_pod_holds_our_lines_alone(study: list[Path], tmp_path: Path) -> None:
    mark(study, tmp_path / "DICOM", set(MARKED))
    write_nifti(np.ones((2, 3, 4), np.int16), np.eye(4), tmp_path / "in/a/a_image.nii.gz")
    write_nifti(np.ones((2, 3, 4), np.uint8), np.eye(4), tmp_path / "in/a/a_label.nii.gz")
    said = in_a_pod(list_studies, tmp_path, studies="DICOM", output_folder="out")
    said += in_a_pod(convert_studies, tmp_path, studies="DICOM", shard=0, output_folder="out")
    said += in_a_pod(nifti_to_dicom, tmp_path, input_folder="in", output="back", modality="CT")
    said += in_a_pod(talkative, tmp_path)
    assert "convert_studies: [1/1]" in said
    assert "nifti_to_dicom: [1/1]" in said
    assert "talkative: ours" in said
    assert "a warning" in said
    kfp = ("Looking for comp", "Loading KFP component", "Got executor_input", "Wrote executor")
    for line in said.splitlines():
        ours = "[KFP Executor" not in line or any(each in line for each in kfp)
        assert ours or "WARNING]" in line, line
    said += (tmp_path / "events.jsonl").read_text()
    headers = [pydicom.dcmread(path) for path in tmp_path.rglob("*.dcm")]
    for secret in (MARKER, DATE, *(str(header.SOPInstanceUID) for header in headers)):
        assert secret not in said
