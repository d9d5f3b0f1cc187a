"""What hospitals send, and what of it is left out: `dicom_to_nifti` and `medseg segment`.

All cases lie below one data root, so that one run serves them all: what fails fails alone.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from medseg.imaging import Volume, read_nifti
from tests.cases.conftest import run
from tests.conftest import made_once

CASES = (
    "cd_with_dicomdir/L04_cd",
    *(
        f"{name}/DICOM"
        for name in (
            "empty_rescale",
            "jpeg_lossless_htj2k",
            "localizer_in_series",
            "lost_files",
            "no_preamble",
            "real_world_value_mapping",
            "rounded_positions",
            "rtstruct",
            "same_segment_label_lost",
            "same_uids_two_patients",
            "scout_and_dose_report",
        )
    ),
)


@dataclass
class Converted:
    """What the run left."""

    folder: Path
    output: str
    dataset: dict[str, Any]

    def volume(self, case: str, kind: str = "image") -> Volume:
        return read_nifti(self.folder / case / f"{case}_{kind}.nii.gz")

    def warnings(self, name: str) -> str:
        rows = [
            row for row in self.dataset["quality"] if name in (row.get("case"), row.get("left_out"))
        ]
        assert len(rows) == 1, name
        told = "; ".join(rows[0]["warnings"])
        assert all(
            warning in self.output for warning in told.split("; ") if "failed" not in warning
        )
        return told


@pytest.fixture(scope="session")
def converted(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    def convert(folder: Path) -> None:
        root = folder / "root"
        for case in CASES:
            name = case.split("/")[0]
            shutil.copytree(real_data / "cases" / case, root / "DICOM" / name)
        for path in root.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        arguments = [
            "studies=file:///mnt/Data/DICOM",
            "output_folder=NIFTI/T",
            "max_failed_cases=1",
        ]
        given = [part for argument in arguments for part in ("-p", argument)]
        result = run("run", "dicom_to_nifti", "--data-root", root, *given)
        (folder / "output.txt").write_text(f"{result.exit_code}\n{result.output}")

    folder = made_once("source_cases", convert, tmp_path_factory)
    code, output = (folder / "output.txt").read_text().split("\n", 1)
    assert code == "0", output
    dataset = folder / "root" / "NIFTI" / "T"
    logs = "".join(path.read_text() for path in (folder / "root").rglob("*.log"))
    return Converted(dataset, output + logs, json.loads((dataset / "dataset.json").read_text()))


def check_phantom(volume: Volume, slices: int = 8, spacing: float = 2.5) -> None:
    assert volume.shape == (20, 24, slices)
    np.testing.assert_allclose(volume.spacing, (0.9, 0.8, spacing))
    np.testing.assert_allclose(volume.affine[:3, 3], (50, 60, 100))
    assert (volume.array.min(), volume.array.max()) == (-110, 690)


@pytest.mark.parametrize(
    "case", ["PA", "PB", "C03_emptyrescale", "T_jpegll", "T_htj2k", "C16_nopreamble"]
)
def test_what_hospitals_send_is_read(converted: Converted, case: str) -> None:
    check_phantom(converted.volume(case))
    other = converted.volume("C03_emptyrescale")
    np.testing.assert_array_equal(converted.volume(case).array, other.array)


def test_stored_values_count_and_no_real_world_map(converted: Converted) -> None:
    array = converted.volume("C38_rwvm").array
    assert (array.min(), array.max()) == (-215, 1385)


def test_rounded_positions(converted: Converted) -> None:
    check_phantom(converted.volume("C07_rounded"), spacing=0.625)
    warnings = converted.warnings("C07_rounded")
    assert "off by up to 0.050 mm from slices every 0.625 mm" in warnings
    assert "within the tolerance of 0.05 mm" in warnings


def test_localizers_and_captures_are_left_out(converted: Converted) -> None:
    check_phantom(converted.volume("C09_localizer"))
    assert "IM0001.dcm (instance 0) was left out" in converted.warnings("C09_localizer")
    check_phantom(converted.volume("C10_dose"))
    warnings = converted.warnings("C10_dose")
    assert "CT 'Scout' (1 instances) was left out: a localizer" in warnings
    assert "CT 'Dose Report' (1 instances) was left out: a secondary capture" in warnings


def test_lost_files_have_rows(converted: Converted) -> None:
    check_phantom(converted.volume("C13_zerobyte"), slices=7)
    for case, reason in (("C13_zerobyte", "is empty"), ("C15_cutheader", "header is damaged")):
        name = f"lost_files/{case}/IM0008.dcm"
        assert reason in converted.warnings(name)
        assert f"{name} left out: it" in converted.warnings(case)
    assert "IM0005.dcm (instance 5) cannot be decoded" in converted.warnings("C14_truncated")
    assert "C14_truncated failed" in converted.output
    assert "C14_truncated" not in converted.dataset["cases"]


def test_contours_are_not_read(converted: Converted) -> None:
    assert "RTSTRUCT 'Surface' (1 instances) is not read" in converted.warnings("C30_rtstruct")


def test_segments_of_one_label(converted: Converted) -> None:
    assert np.count_nonzero(converted.volume("C01_samelabel", "label").array) == 42
    assert "2 segments named 'Lesion' in one DICOM SEG were joined" in converted.warnings(
        "C01_samelabel"
    )
    assert np.count_nonzero(converted.volume("C02_twosegs", "label").array) == 24
    assert "SEG/IM0001.dcm (instance 1) was replaced" in converted.warnings("C02_twosegs")


def test_equal_uids_of_two_patients(converted: Converted) -> None:
    check_phantom(converted.volume("C23_first"))
    for number in range(1, 9):
        warnings = converted.warnings(f"same_uids_two_patients/C23_b/IM{number:04}.dcm")
        assert "that of another patient's study" in warnings
    assert "and 5 more left out" in converted.warnings("C23_first")


def test_index_of_a_medium_is_told_of(converted: Converted) -> None:
    assert "the index of a medium" in converted.warnings("cd_with_dicomdir/DICOMDIR")


# --- medseg segment ---


def segmented(model: Path, source: Path, output: Path) -> str:
    done = run("segment", source, "--model", model, "-o", output, "--device", "cpu")
    assert "Traceback" not in done.output
    assert done.exit_code == 0, done.output
    return done.output


def test_cd_gives_a_case_for_each_patient(cases: Path, model: Path, tmp_path: Path) -> None:
    output = segmented(model, cases / "cd_with_dicomdir/L04_cd", tmp_path / "out")
    assert "DICOMDIR was left out: it is the index of a medium" in output
    results = sorted((tmp_path / "out").glob("*.dcm"))
    assert [path.name for path in results] == ["PT000000.dcm", "PT000001.dcm"]
    patients = {str(pydicom.dcmread(path).PatientID) for path in results}
    assert patients == {"PA", "PB"}


@pytest.mark.parametrize(
    ("folder", "told"),
    [
        ("scout_and_dose_report/DICOM/C10_dose", "CT 'Scout' (1 instances) was left out"),
        ("localizer_in_series/DICOM/C09_localizer", "IM0001.dcm (instance 0) was left out"),
        ("lost_files/DICOM/C13_zerobyte", "IM0008.dcm was left out: it is empty"),
        ("no_preamble/DICOM/C16_nopreamble", ""),
        ("empty_rescale/DICOM/C03_emptyrescale", ""),
        ("jpeg_lossless_htj2k/DICOM", ""),
        ("same_uids_two_patients/DICOM", ""),
    ],
)
def test_series_to_segment(
    cases: Path, model: Path, tmp_path: Path, folder: str, told: str
) -> None:
    assert told in segmented(model, cases / folder, tmp_path / "out")
    count = 2 if folder.endswith("DICOM") else 1
    assert len(list((tmp_path / "out").glob("*.dcm"))) == count


def test_damaged_pixels_to_segment(cases: Path, model: Path, tmp_path: Path) -> None:
    source = cases / "lost_files/DICOM/C14_truncated"
    done = run("segment", source, "--model", model, "-o", tmp_path / "o.dcm", "--device", "cpu")
    assert done.exit_code == 1
    assert "IM0005.dcm (instance 5) cannot be decoded" in done.output
    assert not list(tmp_path.iterdir())
