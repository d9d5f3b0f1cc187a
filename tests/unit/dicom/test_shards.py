import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.dataset import collect_dataset
from medseg.dicom import convert_studies, list_studies, nifti_to_dicom
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
    assert list_studies(three_studies, source, "out", shards=2) == [0, 1]
    cases = [convert_studies(three_studies, source, shard, "out").cases for shard in (0, 1)]
    assert sorted(itertools.chain(*cases)) == ["a", "b", "c"]
    assert all(cases)
    dataset = {path.name for path in Path(three_studies.path / "out").rglob("*")}
    assert not any(name.startswith("shards") for name in dataset)  # it holds original UIDs


def test_unknown_shard(three_studies: DataRoot) -> None:
    with pytest.raises(UserError, match="holds no shard 0: run list_studies first"):
        convert_studies(three_studies, "file:///mnt/Data/DICOM", 0, "out")
    list_studies(three_studies, "file:///mnt/Data/DICOM", "out")
    before = contents(three_studies.path)
    with pytest.raises(UserError, match="holds no shard 5"):
        convert_studies(three_studies, "file:///mnt/Data/DICOM", 5, "out")
    with pytest.raises(UserError, match="holds no shard -1"):
        convert_studies(three_studies, "file:///mnt/Data/DICOM", -1, "out")
    assert contents(three_studies.path) == before


def test_damaged_lists_and_names(three_studies: DataRoot) -> None:
    list_studies(three_studies, "DICOM", "out")
    private = three_studies.path / ".medseg" / "dicom"
    for name, remedy in (("shards", "Run list_studies again"), ("cases", "Restore it")):
        (path,) = private.glob(f"{name}-*.json")
        whole = path.read_text()
        for damaged in ("[[", '"text"'):
            path.write_text(damaged)
            with pytest.raises(UserError, match=f"{path.name} is damaged .*{remedy}"):
                convert_studies(three_studies, "DICOM", 0, "out")
        path.write_text(whole)
    assert convert_studies(three_studies, "DICOM", 0, "out").cases == ("a", "b", "c")


def test_folders_with_like_names_have_lists_of_their_own(three_studies: DataRoot) -> None:
    assert list_studies(three_studies, "DICOM", "out/a", shards=3) == [0, 1, 2]
    assert list_studies(three_studies, "DICOM", "out-a") == [0]
    assert len(convert_studies(three_studies, "DICOM", 2, "out/a").cases) == 1


def test_the_config_names_the_folder(three_studies: DataRoot, make_config: Any) -> None:
    config = make_config(data_dir="mine")
    assert list_studies(three_studies, "DICOM", config=config) == [0]
    done = convert_studies(three_studies, "DICOM", 0, config=config)
    assert done.counts == {"cases": 3, "converted": 3, "skipped": 0}
    assert (three_studies.path / "mine/a/a_image.nii.gz").is_file()
    found = collect_dataset(three_studies, config=config)
    assert found["metadata"]["cases"] == found["metadata"]["cases_without_label"] == 3
    with pytest.raises(UserError, match="output_folder is empty"):
        list_studies(three_studies, "DICOM")


@pytest.mark.parametrize("free", [0, 64 << 10])
def test_a_full_disk(volume: Volume, free: int, capsys: pytest.CaptureFixture[str]) -> None:
    root = DataRoot.at(volume.folder)
    noise = np.random.default_rng(0).integers(0, 4000, (64, 64, 24), dtype=np.int16)
    write_nifti(noise, np.eye(4), root.path / "in" / "a" / "a_image.nii.gz")
    nifti_to_dicom(root, "in", "DICOM", modality="CT")
    with volume.full("list_studies", capsys):
        list_studies(root, "DICOM", "out")
    assert list_studies(root, "DICOM", "out") == [0]
    with volume.full("convert_studies", capsys, free=free):
        convert_studies(root, "DICOM", 0, "out")
    assert convert_studies(root, "DICOM", 0, "out").converted == ("a",)
    with volume.full("collect_dataset", capsys):
        collect_dataset(root, "out")
    assert collect_dataset(root, "out")["dataset"]["cases"] == ["a"]
