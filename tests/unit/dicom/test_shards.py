import functools
import operator
from pathlib import Path

import numpy as np
import pytest

from medseg.dataset import collect_dataset
from medseg.dicom import convert_shard, deal_studies, nifti_to_dicom
from medseg.imaging import write_nifti
from medseg.project import DataRoot, UserError
from tests.volumes import Volume, contents


@pytest.fixture
def three_studies(root: DataRoot) -> DataRoot:
    for case in ("a", "b", "c"):
        image = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
        write_nifti(image, np.eye(4), root.path / "in" / case / f"{case}_image.nii.gz")
    nifti_to_dicom(root, "in", "DICOM", modality="CT")
    return root


def test_shards_convert_every_study_once(three_studies: DataRoot) -> None:
    source = "file:///mnt/Data/DICOM"
    assert deal_studies(three_studies, source, "out", shards=2) == [0, 1]
    cases = [convert_shard(three_studies, source, shard, "out")["cases"] for shard in (0, 1)]
    assert sorted(functools.reduce(operator.iadd, cases, [])) == ["a", "b", "c"]
    assert all(cases)
    dataset = {path.name for path in Path(three_studies.path / "out").rglob("*")}
    assert not any(name.startswith("shards") for name in dataset)  # it holds original UIDs


def test_unknown_shard(three_studies: DataRoot) -> None:
    with pytest.raises(UserError, match="holds no shard 0: run list_studies first"):
        convert_shard(three_studies, "file:///mnt/Data/DICOM", 0, "out")
    deal_studies(three_studies, "file:///mnt/Data/DICOM", "out")
    before = contents(three_studies.path)
    with pytest.raises(UserError, match="holds no shard 5"):
        convert_shard(three_studies, "file:///mnt/Data/DICOM", 5, "out")
    assert contents(three_studies.path) == before


@pytest.mark.parametrize("free", [0, 64 << 10])
def test_a_full_disk(volume: Volume, free: int, capsys: pytest.CaptureFixture[str]) -> None:
    root = DataRoot.at(volume.folder)
    noise = np.random.default_rng(0).integers(0, 4000, (64, 64, 24), dtype=np.int16)
    write_nifti(noise, np.eye(4), root.path / "in" / "a" / "a_image.nii.gz")
    nifti_to_dicom(root, "in", "DICOM", modality="CT")
    with volume.full("list_studies", capsys):
        deal_studies(root, "DICOM", "out")
    assert deal_studies(root, "DICOM", "out") == [0]
    with volume.full("convert_studies", capsys, free=free):
        convert_shard(root, "DICOM", 0, "out")
    assert convert_shard(root, "DICOM", 0, "out")["converted"] == ["a"]
    with volume.full("collect_dataset", capsys):
        collect_dataset(root, "out")
    assert collect_dataset(root, "out")["dataset"]["cases"] == ["a"]
