"""The DICOM stages against a real Orthanc: STOW-RS, QIDO-RS, WADO-RS, C-STORE."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from medseg.dataset import collect_dataset
from medseg.dicom import convert_studies, list_studies, nifti_to_dicom
from medseg.imaging import read_nifti
from medseg.project import CasesFailedError, DataRoot, UserError
from tests.hippocampus import copy_cases
from tests.services.orthanc import Orthanc, free_port, serve_orthanc

CASES = ("hippocampus_001", "hippocampus_003", "hippocampus_017")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with serve_orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


@pytest.fixture
def orthanc(server: Orthanc, monkeypatch: pytest.MonkeyPatch) -> Orthanc:
    """The Orthanc, empty, with its credentials in the environment."""
    monkeypatch.setenv("MEDSEG_DICOMWEB_USERNAME", server.username)
    monkeypatch.setenv("MEDSEG_DICOMWEB_PASSWORD", server.password)
    monkeypatch.delenv("MEDSEG_DICOMWEB_TOKEN", raising=False)
    server.empty()
    return server


@pytest.fixture
def task(root: DataRoot, shared_data: Path) -> Path:
    """Three hippocampus cases in the data root's folder ``in``."""
    target = root.path / "in"
    copy_cases(shared_data, target, CASES)
    return target


def assert_came_back(root: DataRoot, task: Path) -> None:
    for case in CASES:
        image = read_nifti(task / f"imagesTr/{case}.nii.gz")
        label = read_nifti(task / f"labelsTr/{case}.nii.gz")
        found = read_nifti(root.path / f"out/{case}/{case}_image.nii.gz")
        np.testing.assert_allclose(found.affine, image.affine, atol=1e-3)
        assert np.abs(found.array - image.array.astype(float)).max() <= np.ptp(image.array) / 65534
        drawn = read_nifti(root.path / f"out/{case}/{case}_label.nii.gz")
        np.testing.assert_array_equal(drawn.array, label.array)


@pytest.mark.parametrize("way", ["stow", "c-store"])
def test_there_and_back(orthanc: Orthanc, root: DataRoot, task: Path, way: str) -> None:
    target = orthanc.url if way == "stow" else orthanc.node
    instances = sum(read_nifti(task / f"imagesTr/{c}.nii.gz").shape[2] + 1 for c in CASES)
    assert nifti_to_dicom(root, "in", target).written == CASES
    assert orthanc.count() == instances
    assert nifti_to_dicom(root, "in", target).written == ()

    shards = list_studies(root, orthanc.url, "out", shards=2)
    done = [convert_studies(root, orthanc.url, shard, "out") for shard in shards]
    assert sorted(len(part.converted) for part in done) == [1, 2]
    assert_came_back(root, task)
    assert collect_dataset(root, "out")["dataset"]["cases"] == list(CASES)
    for shard in shards:
        assert convert_studies(root, orthanc.url, shard, "out").converted == ()


def test_what_was_deleted_on_the_server_is_sent_again(
    orthanc: Orthanc, root: DataRoot, task: Path
) -> None:
    nifti_to_dicom(root, "in", orthanc.url)
    before = orthanc.count()
    orthanc.empty()
    assert nifti_to_dicom(root, "in", orthanc.url).written == CASES
    assert orthanc.count() == before


def test_a_study_that_is_gone(orthanc: Orthanc, root: DataRoot, task: Path) -> None:
    nifti_to_dicom(root, "in", orthanc.url)
    (root.path / "more/imagesTr").mkdir(parents=True)
    shutil.copyfile(task / f"imagesTr/{CASES[0]}.nii.gz", root.path / "more/imagesTr/gone.nii.gz")
    nifti_to_dicom(root, "more", orthanc.url, modality="MR")
    (shard,) = list_studies(root, orthanc.url, "out")
    orthanc.delete("gone")
    with pytest.raises(CasesFailedError, match="1 of 4 cases failed") as caught:
        convert_studies(root, orthanc.url, shard, "out")
    (reason,) = caught.value.reasons.values()
    assert "does not hold this study" in reason
    assert_came_back(root, task)


def test_credentials(
    orthanc: Orthanc, root: DataRoot, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("MEDSEG_DICOMWEB_PASSWORD", "open-sesame")
    with pytest.raises(UserError, match="answered 401: user name and password, or") as caught:
        list_studies(root, orthanc.url, "out")
    monkeypatch.setenv("MEDSEG_DICOMWEB_TOKEN", "open-barley")
    with pytest.raises(UserError, match="answered 401"):
        list_studies(root, orthanc.url, "out")
    captured = capfd.readouterr()
    assert "open-" not in captured.out + captured.err + str(caught.value)


def test_an_empty_server_and_a_wrong_address(orthanc: Orthanc, root: DataRoot, task: Path) -> None:
    with pytest.raises(UserError, match="holds no studies"):
        list_studies(root, orthanc.url, "out")
    with pytest.raises(UserError, match="answered 404: check that the URL is the DICOMweb root"):
        list_studies(root, f"{orthanc.rest}/nowhere", "out")
    with pytest.raises(UserError, match="accepts no association"):
        nifti_to_dicom(root, "in", f"dicom://ORTHANC@127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match="accepts no association"):
        nifti_to_dicom(root, "in", orthanc.node.replace("ORTHANC", "SOMEONE"))
    with pytest.raises(UserError, match="write dicom://AETITLE@host:port"):
        nifti_to_dicom(root, "in", "dicom://127.0.0.1:4242")
    assert orthanc.count() == 0
