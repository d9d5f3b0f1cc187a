"""A data root that is full, read-only or in use: one sentence, nothing lost."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from medseg.demo import generate_phantoms
from medseg.project import DataRoot, lock
from tests.pipelines.harness import medseg, partial_files, run_arguments, run_pipeline


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Path]:
    """A volume of 3 MB with two phantom cases on it."""
    folder = tmp_path / "volume"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], check=True)
    try:
        generate_phantoms(tmp_path / "phantoms", training_cases=2, test_cases=0)
        shutil.copytree(tmp_path / "phantoms", folder / "decathlon")
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


ARGUMENTS = {"input_folder": "decathlon", "output": "DICOM"}


def test_full_disk(small_volume: Path) -> None:
    before = contents(small_volume / "decathlon")
    done = medseg(*run_arguments("nifti_to_dicom", small_volume, **ARGUMENTS))
    assert done.returncode == 1
    assert "the disk is full" in done.stdout
    assert "Free some space or enlarge the volume, then run the same command again" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert contents(small_volume / "decathlon") == before
    subprocess.run(["mount", "-o", "remount,size=300m", small_volume], check=True)
    run_pipeline("nifti_to_dicom", small_volume, **ARGUMENTS)
    assert partial_files(small_volume) == []
    assert list((small_volume / "DICOM").rglob("*.dcm"))


def test_read_only_data_root(small_volume: Path) -> None:
    before = contents(small_volume)
    subprocess.run(["mount", "-o", "remount,ro", small_volume], check=True)
    done = medseg(*run_arguments("nifti_to_dicom", small_volume, **ARGUMENTS))
    assert done.returncode == 1
    assert "its volume is read-only or belongs to another user. Mount it writable" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert contents(small_volume) == before


def test_second_run_of_a_pipeline_says_who_holds_the_lock(root: DataRoot) -> None:
    with lock(root, "run-nifti_to_dicom"):
        done = medseg(*run_arguments("nifti_to_dicom", root.path, **ARGUMENTS))
    assert done.returncode == 1
    assert "run-nifti_to_dicom is already running on the data root" in done.stderr
    assert "holds the lock. Wait until it ends" in done.stderr
    assert not (root.path / "runs").exists()
