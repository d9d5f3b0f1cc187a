"""A data root that is full, read-only or in use: one sentence, nothing lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from medseg.demo import generate_phantoms
from tests.pipelines.harness import (
    medseg,
    partial_files,
    run_arguments,
    run_pipeline,
    running_until,
)
from tests.volumes import Volume, contents, says_that_the_disk_is_full

ARGUMENTS = {"input_folder": "decathlon", "output": "DICOM"}


@pytest.fixture
def small_volume(volume: Volume, tmp_path: Path) -> Volume:
    """A volume with two phantom cases on it."""
    generate_phantoms(tmp_path / "phantoms", training_cases=2, test_cases=0)
    shutil.copytree(tmp_path / "phantoms", volume.folder / "decathlon")
    return volume


def test_full_disk(small_volume: Volume) -> None:
    root = small_volume.folder
    before = contents(root)
    small_volume.leave(2 << 20)
    done = medseg(*run_arguments("nifti_to_dicom", root, **ARGUMENTS))
    assert done.returncode == 1
    says_that_the_disk_is_full(done.stdout + done.stderr)
    assert before.items() <= contents(root).items()
    small_volume.enlarge()
    run_pipeline("nifti_to_dicom", root, **ARGUMENTS)
    assert partial_files(root) == []
    assert before.items() <= contents(root).items()
    assert len([path for path in (root / "DICOM").iterdir() if path.name[0] != "."]) == 2


def test_read_only_data_root(small_volume: Volume) -> None:
    before = contents(small_volume.folder)
    small_volume.make_read_only()
    done = medseg(*run_arguments("nifti_to_dicom", small_volume.folder, **ARGUMENTS))
    assert done.returncode == 1
    assert "its volume is read-only or belongs to another user. Mount it writable" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert contents(small_volume.folder) == before


def test_second_run_of_a_pipeline_says_who_holds_the_lock(tmp_path: Path) -> None:
    generate_phantoms(tmp_path / "decathlon", training_cases=2, test_cases=0)
    with running_until(
        "nifti_to_dicom", "writing phantom_002", "nifti_to_dicom", tmp_path, **ARGUMENTS
    ) as first:
        before = contents(tmp_path)
        runs = list((tmp_path / "runs").iterdir())
        second = medseg(*run_arguments("nifti_to_dicom", tmp_path, **ARGUMENTS))
        assert second.returncode == 1
        assert "run-nifti_to_dicom is already running on the data root" in second.stderr
        assert f"(process {first.process.pid}) since" in second.stderr
        assert "holds the lock. Wait until it ends" in second.stderr
        assert contents(tmp_path) == before
        assert list((tmp_path / "runs").iterdir()) == runs
        first.go_on()
        output, _ = first.process.communicate(timeout=300)
    assert first.process.returncode == 0, output
    assert "nifti_to_dicom: done" in output
    for case in ("phantom_001", "phantom_002"):
        assert list((tmp_path / "DICOM" / case).rglob("*.dcm"))
    assert partial_files(tmp_path) == []
