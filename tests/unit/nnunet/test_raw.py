"""prepare_dataset: what it writes, and every way a case can be wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medseg.config import TaskConfig
from medseg.imaging import LPS_TO_RAS, read_nifti
from medseg.nnunet import prepare_dataset
from medseg.project import CasesFailedError, UserError
from tests.hippocampus import write_config
from tests.volumes import Volume, contents


def volume(values: np.ndarray, origin: tuple[float, ...] = (0, 0, 0)) -> sitk.Image:
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((1.0, 1.5, 2.0))
    image.SetOrigin(origin)
    return image


def write_case(folder: Path, case: str, seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    target = folder / case
    target.mkdir(parents=True)
    image = volume(random.normal(size=(6, 8, 10)).astype(np.float32))
    label = volume(random.integers(0, 3, (6, 8, 10), dtype=np.uint8))
    sitk.WriteImage(image, str(target / f"{case}_image.nii.gz"))
    sitk.WriteImage(label, str(target / f"{case}_label.nii.gz"))
    return target


def subfolders(root: Path, cases: int = 6, **fields: object) -> TaskConfig:
    for index in range(cases):
        write_case(root / "NIFTI", f"case_{index}", index)
    return write_config(root, dataset_format="subfolders", **fields)


def files(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_subfolders_become_a_raw_dataset_and_a_second_run_changes_nothing(tmp_path: Path) -> None:
    config = subfolders(tmp_path, modality_list=["CT"], test_cases=["case_5"])
    first = prepare_dataset(config)
    assert first["cases"] == [f"case_{index}" for index in range(5)]
    assert first["channels"] == ["CT"]
    description = json.loads((config.raw_folder / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "CT"}
    assert description["labels"] == config.labels
    assert description["numTraining"] == 5
    image = config.raw_folder / "imagesTr" / "case_0_0000.nii.gz"
    assert image.samefile(config.data_folder / "case_0" / "case_0_image.nii.gz")

    before = files(config.raw_folder)
    assert prepare_dataset(config) == first
    assert files(config.raw_folder) == before


def test_changed_and_vanished_cases_are_updated(tmp_path: Path) -> None:
    config = subfolders(tmp_path, cases=7)
    first = prepare_dataset(config)
    before = files(config.raw_folder)
    shutil.rmtree(config.data_folder / "case_6")
    shutil.rmtree(config.data_folder / "case_2")
    write_case(config.data_folder, "case_2", seed=99)
    second = prepare_dataset(config)
    after = files(config.raw_folder)
    assert second["dataset_hash"] != first["dataset_hash"]
    assert "case_6" not in second["cases"]
    assert "imagesTr/case_6_0000.nii.gz" not in after
    assert after["imagesTr/case_2_0000.nii.gz"] != before["imagesTr/case_2_0000.nii.gz"]
    assert after[".medseg/case-case_1.json"] == before[".medseg/case-case_1.json"]


def decathlon(root: Path) -> list[sitk.Image]:
    """Five cases with two channels in one file; returns the channels of the last."""
    data = root / "NIFTI"
    (data / "imagesTr").mkdir(parents=True)
    (data / "labelsTr").mkdir()
    random = np.random.default_rng(0)
    for index in range(5):
        channels = [volume(random.normal(size=(4, 5, 6)).astype(np.float32)) for _ in range(2)]
        sitk.WriteImage(sitk.JoinSeries(channels), str(data / "imagesTr" / f"c{index}.nii.gz"))
        label = volume(random.integers(0, 3, (4, 5, 6), dtype=np.uint8))
        sitk.WriteImage(label, str(data / "labelsTr" / f"c{index}.nii.gz"))
    (data / "imagesTr" / "._c0.nii.gz").write_bytes(b"what macOS leaves in archives")
    (data / "dataset.json").write_text(json.dumps({"modality": {"0": "FLAIR", "1": "T1w"}}))
    return channels


def test_decathlon_4d_images_are_split_into_channels(tmp_path: Path) -> None:
    channels = decathlon(tmp_path)
    result = prepare_dataset(config := write_config(tmp_path))
    assert result["channels"] == ["FLAIR", "T1w"]
    assert result["cases"] == [f"c{index}" for index in range(5)]
    written = sitk.ReadImage(str(config.raw_folder / "imagesTr" / "c4_0001.nii.gz"))
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(channels[1])
    )
    assert written.GetSpacing() == (1.0, 1.5, 2.0)


def with_forms(path: Path, qform: np.ndarray | None, sform: np.ndarray | None) -> None:
    """Gives a file the coordinates that its header names in one way or another."""
    image = nibabel.load(path)
    array = np.asarray(image.dataobj)
    changed = nibabel.Nifti1Image(array, None)
    changed.header.set_zooms((1.0, 1.5, 2.0))
    changed.header.set_qform(qform, 0 if qform is None else 1)
    changed.header.set_sform(sform, 0 if sform is None else 1)
    path.unlink()
    nibabel.save(changed, path)


def test_training_and_segmenting_see_one_geometry(tmp_path: Path) -> None:
    """nnU-Net reads with ITK, which answers otherwise where a header has several answers."""
    config = subfolders(tmp_path, cases=6)
    one, other = np.diag([1.0, 1.5, 2.0, 1.0]), np.diag([2.0, 1.5, 1.0, 1.0])
    nearly = one.copy()
    nearly[0, 1] = 5e-4  # sheared by less than a voxel, which ITK refuses
    forms = [(one, one), (one, other), (None, None), (None, one), (one, None), (None, nearly)]
    for index, (qform, sform) in enumerate(forms):
        for what in ("image", "label"):
            name = f"case_{index}_{what}.nii.gz"
            with_forms(config.data_folder / f"case_{index}" / name, qform, sform)
    prepare_dataset(config)
    for index in range(6):
        source = config.data_folder / f"case_{index}" / f"case_{index}_image.nii.gz"
        ours = read_nifti(source)
        for name in (f"imagesTr/case_{index}_0000.nii.gz", f"labelsTr/case_{index}.nii.gz"):
            theirs = sitk.ReadImage(str(config.raw_folder / name))
            np.testing.assert_allclose(theirs.GetSpacing(), ours.spacing, atol=1e-3)
            origin = (LPS_TO_RAS @ ours.affine)[:3, 3]
            np.testing.assert_allclose(theirs.GetOrigin(), origin, atol=1e-3)
        stored = sitk.ReadImage(str(config.raw_folder / f"imagesTr/case_{index}_0000.nii.gz"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(stored), ours.array.transpose(2, 1, 0))
        linked = (config.raw_folder / f"imagesTr/case_{index}_0000.nii.gz").samefile(source)
        assert linked == (index in (0, 2, 3, 4))


def test_what_nnunet_cannot_train_on_is_refused(tmp_path: Path) -> None:
    config = subfolders(tmp_path, cases=8)
    data = config.data_folder
    sheared = np.diag([1.0, 1.5, 2.0, 1.0])
    sheared[0, 1] = 0.1
    for what in ("image", "label"):
        with_forms(data / "case_0" / f"case_0_{what}.nii.gz", None, sheared)
    image = data / "case_1" / "case_1_image.nii.gz"
    image.unlink()
    colours = np.zeros((10, 8, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colours, np.diag([1.0, 1.5, 2.0, 1.0])), image)
    (data / "case_2" / "case_2_label.nii.gz").write_bytes(b"\x1f\x8b half")
    with pytest.raises(CasesFailedError) as error:
        prepare_dataset(config)
    reasons = error.value.reasons
    assert "case_0_image.nii.gz is sheared" in reasons["case_0"]
    assert "needs one real number a voxel" in reasons["case_1"]
    assert "case_2_label.nii.gz cannot be read as NIfTI" in reasons["case_2"]
    assert len(reasons) == 3


def test_every_bad_case_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    config = subfolders(tmp_path, cases=12)
    data = config.data_folder
    prepare_dataset(config)
    shape = (6, 8, 10)

    def label(case: str, image: sitk.Image) -> None:
        (data / case / f"{case}_label.nii.gz").unlink()  # not in place: raw holds a hard link
        sitk.WriteImage(image, str(data / case / f"{case}_label.nii.gz"))

    label("case_0", volume(np.full(shape, 7, np.uint8)))
    label("case_1", volume(np.zeros((6, 8, 9), np.uint8)))
    label("case_2", volume(np.zeros(shape, np.uint8), origin=(0, 0, 3)))
    moved = volume(np.zeros(shape, np.uint8))
    moved.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, 1))
    label("case_3", moved)
    spaced = volume(np.zeros(shape, np.uint8))
    spaced.SetSpacing((1.0, 1.5, 2.1))
    label("case_4", spaced)
    (data / "case_5" / "case_5_label.nii.gz").unlink()
    infinite = np.zeros(shape, np.float32)
    infinite[0, 0, :3] = np.nan
    (data / "case_6" / "case_6_image.nii.gz").unlink()
    sitk.WriteImage(volume(infinite), str(data / "case_6" / "case_6_image.nii.gz"))
    raw_before = files(config.raw_folder / "imagesTr")

    with pytest.raises(CasesFailedError) as error:
        prepare_dataset(config)
    reasons = error.value.reasons
    assert sorted(reasons) == [f"case_{index}" for index in range(7)]
    assert reasons["case_0"] == (
        "label case_0_label.nii.gz holds the value 7, which the config does not declare (labels: "
        "0, 1, 2): add it to labels, or correct the file."
    )
    assert reasons["case_1"].startswith(
        "case_1_label.nii.gz has 9x8x6 voxels, but case_1_image.nii.gz has 10x8x6"
    )
    for case, what in {2: "origin", 3: "direction", 4: "spacing"}.items():
        message = f"off case_{case}_image.nii.gz: they have different geometry ({what}: "
        assert message in reasons[f"case_{case}"], reasons[f"case_{case}"]
    assert reasons["case_5"] == "has no label: case_5/case_5_label.nii.gz is missing"
    assert "case_6_image.nii.gz has 3 voxels that are not finite" in reasons["case_6"]
    assert files(config.raw_folder / "imagesTr") == raw_before  # nothing is lost

    allowed = prepare_dataset(
        write_config(tmp_path, dataset_format="subfolders", max_failed_cases=7)
    )
    assert allowed["cases"] == sorted(f"case_{index}" for index in range(7, 12))
    assert not (config.raw_folder / "imagesTr" / "case_0_0000.nii.gz").exists()
    assert sorted(allowed["failed"]) == sorted(reasons)


@pytest.mark.parametrize(
    ("channels", "pages", "file"), [(1, 0, ""), (1, 5, ""), (2, 0, "c0_0000.nii.gz"), (2, 5, "")]
)
def test_a_full_disk(
    volume: Volume, channels: int, pages: int, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one channel files are linked or copied, with two in one file they are written."""
    if channels == 1:
        config = subfolders(volume.folder, cases=5)
    else:
        decathlon(volume.folder)
        config = write_config(volume.folder, num_processes=1)
    with volume.full("prepare_dataset", capsys, free=pages * 4096, file=file):
        prepare_dataset(config)
    assert len(prepare_dataset(config)["cases"]) == 5
    for path in (config.raw_folder / "imagesTr").iterdir():
        assert np.isfinite(sitk.GetArrayFromImage(sitk.ReadImage(str(path)))).all()
    assert len(list((config.raw_folder / "imagesTr").iterdir())) == 5 * channels


def refuses(config: TaskConfig, message: str) -> None:
    """``prepare_dataset`` refuses the config, and everything is as it was."""
    before = contents(config.root.path)
    with pytest.raises(UserError, match=message):
        prepare_dataset(config)
    assert contents(config.root.path) == before


def test_fewer_than_five_cases(tmp_path: Path) -> None:
    config = subfolders(tmp_path, cases=5, test_cases=["case_0"])
    before = contents(config.data_folder)
    with pytest.raises(UserError, match=r"4 training cases are too few.*at least 5.*test_cases"):
        prepare_dataset(config)
    assert not (config.raw_folder / "dataset.json").exists()
    assert contents(config.data_folder) == before


def test_missing_data_dir(tmp_path: Path) -> None:
    refuses(write_config(tmp_path), r"data_dir .*NIFTI is not a folder")


def test_empty_data_dir(tmp_path: Path) -> None:
    (tmp_path / "NIFTI").mkdir()
    config = write_config(tmp_path, dataset_format="subfolders")
    refuses(config, "holds no cases of the format 'subfolders'")
    refuses(write_config(tmp_path), "has no folder imagesTr")


def test_unknown_test_case(tmp_path: Path) -> None:
    refuses(subfolders(tmp_path, test_cases=["case_77"]), "test_cases names case_77")


def test_a_dataset_number_that_is_taken(tmp_path: Path) -> None:
    config = subfolders(tmp_path)
    (config.raw_folder.parent / "Dataset004_Other").mkdir(parents=True)
    refuses(config, r"number 4 is taken by .*Dataset004_Other")
