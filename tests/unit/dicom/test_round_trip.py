"""NIfTI -> DICOM -> NIfTI on real cases, with our DICOM SEG and with dcmqi's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest

from medseg.dataset import collect_dataset
from medseg.dicom import convert_studies, list_studies, nifti_to_dicom
from medseg.imaging import read_nifti, write_nifti
from medseg.project import CasesFailedError, DataRoot, UserError
from tests.hippocampus import copy_cases
from tests.volumes import contents


@pytest.fixture(scope="module")
def converted(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> DataRoot:
    """All hippocampus cases: ``Task04`` (NIfTI) -> ``DICOM`` -> ``NIFTI``."""
    root = DataRoot.at(tmp_path_factory.mktemp("data"))
    copy_cases(shared_data, root.path / "Task04", 40)
    assert len(nifti_to_dicom(root, "Task04", "DICOM").written) == 40
    for shard in list_studies(root, "file:///mnt/Data/DICOM", "NIFTI", shards=2):
        assert len(convert_studies(root, "file:///mnt/Data/DICOM", shard, "NIFTI").cases) == 20
    return root


def assert_same(root: DataRoot, case: str, output: str) -> None:
    before = read_nifti(root.path / "Task04" / "imagesTr" / f"{case}.nii.gz")
    after = read_nifti(root.path / output / case / f"{case}_image.nii.gz")
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-3)
    stored_unit = max(1e-9, float(np.ptp(before.array)) / 65534)
    assert np.abs(after.array - before.array.astype(float)).max() <= stored_unit
    label_before = read_nifti(root.path / "Task04" / "labelsTr" / f"{case}.nii.gz")
    label_after = read_nifti(root.path / output / case / f"{case}_label.nii.gz")
    assert label_after.array.dtype == np.uint8
    np.testing.assert_array_equal(label_after.array, label_before.array)
    np.testing.assert_allclose(label_after.affine, before.affine, atol=1e-3)


def test_every_case_comes_back_unchanged(converted: DataRoot) -> None:
    cases = [path.name[:-7] for path in (converted.path / "Task04" / "imagesTr").iterdir()]
    assert len(cases) == 40
    for case in cases:
        assert_same(converted, case, "NIFTI")


def test_second_run_does_nothing_and_a_lost_file_is_made_again(converted: DataRoot) -> None:
    assert nifti_to_dicom(converted, "Task04", "DICOM").written == ()
    list_studies(converted, "DICOM", "NIFTI")
    assert convert_studies(converted, "DICOM", 0, "NIFTI").converted == ()

    (converted.path / "NIFTI/hippocampus_001/hippocampus_001_label.nii.gz").unlink()
    shutil.rmtree(converted.path / "DICOM" / "hippocampus_003" / "SEG")
    again = convert_studies(converted, "DICOM", 0, "NIFTI")
    assert again.converted == ("hippocampus_001", "hippocampus_003")
    assert_same(converted, "hippocampus_001", "NIFTI")
    label = converted.path / "NIFTI/hippocampus_003/hippocampus_003_label.nii.gz"
    assert not label.exists()  # the study has none now

    assert nifti_to_dicom(converted, "Task04", "DICOM").written == ("hippocampus_003",)
    convert_studies(converted, "DICOM", 0, "NIFTI")
    assert_same(converted, "hippocampus_003", "NIFTI")


def test_dataset_manifest_and_quality_table(converted: DataRoot) -> None:
    found = collect_dataset(converted, "NIFTI")
    assert found["dataset"]["labels"] == {"background": 0, "Anterior": 1, "Posterior": 2}
    assert len(found["dataset"]["cases"]) == 40
    row = found["rows"][0]
    assert (row.case, row.size, row.orientation) == ("hippocampus_001", (35, 51, 35), "RAS")
    label = read_nifti(converted.path / "Task04/labelsTr/hippocampus_001.nii.gz").array
    assert row.volumes_ml["Anterior"] == pytest.approx((label == 1).sum() / 1000)  # 1 mm voxels
    assert row.warnings == ()
    assert found["html"].count("<tr>") == 41
    on_disk = json.loads((converted.path / "NIFTI" / "dataset.json").read_text())
    assert on_disk["quality"] == [row.to_json() for row in found["rows"]]


def segment_attributes() -> list[dict[str, Any]]:
    tissue = {"CodeValue": "85756007", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Tissue"}
    return [
        {
            "labelID": number,
            "SegmentLabel": name,
            "SegmentDescription": name,
            "SegmentAlgorithmType": "MANUAL",
            "SegmentedPropertyCategoryCodeSequence": tissue,
            "SegmentedPropertyTypeCodeSequence": tissue,
            "recommendedDisplayRGBValue": [100 * number, 50, 50],
        }
        for number, name in ((1, "Anterior"), (2, "Posterior"))
    ]


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
@pytest.mark.parametrize("flipped", [False, True])
def test_label_from_dcmqi(converted: DataRoot, tmp_path: Path, kind: str, flipped: bool) -> None:
    """dcmqi's SEG, also when drawn in another orientation (axes permuted and reversed)."""
    metadata = tmp_path / "metadata.json"
    metadata.write_text(
        json.dumps(
            {
                "ContentCreatorName": "Reader",
                "SeriesDescription": "Segmentation",
                "SeriesNumber": "300",
                "InstanceNumber": "1",
                "segmentAttributes": [segment_attributes()],
            }
        )
    )
    root = DataRoot.at(tmp_path)
    for case in ("hippocampus_003", "hippocampus_017"):
        drawn = nibabel.load(converted.path / "Task04" / "labelsTr" / f"{case}.nii.gz")
        if flipped:
            flips = nibabel.orientations.axcodes2ornt("LAI")
            drawn = drawn.as_reoriented(
                nibabel.orientations.ornt_transform(nibabel.io_orientation(drawn.affine), flips)
            )
        nibabel.save(drawn, tmp_path / "drawn.nii.gz")
        shutil.copytree(converted.path / "DICOM" / case / "1_MRI", tmp_path / "DICOM" / case)
        subprocess.run(
            [
                *("itkimage2segimage", "--inputImageList", tmp_path / "drawn.nii.gz"),
                *("--inputDICOMDirectory", tmp_path / "DICOM" / case),
                *("--inputMetadata", metadata, "--segmentationType", kind),
                *("--outputDICOM", tmp_path / "DICOM" / f"{case}.dcm"),
            ],
            check=True,
            capture_output=True,
        )
        assert (tmp_path / "DICOM" / f"{case}.dcm").is_file()
    (tmp_path / "Task04").symlink_to(converted.path / "Task04")
    (shard,) = list_studies(root, "DICOM", "NIFTI")
    convert_studies(root, "DICOM", shard, "NIFTI")
    for case in ("hippocampus_003", "hippocampus_017"):
        assert_same(root, case, "NIFTI")


def test_our_segmentation_is_read_by_dcmqi(converted: DataRoot, tmp_path: Path) -> None:
    for case in ("hippocampus_001", "hippocampus_064"):
        (segmentation,) = (converted.path / "DICOM" / case / "SEG").iterdir()
        subprocess.run(
            [
                *("segimage2itkimage", "--inputDICOM", segmentation, "--mergeSegments"),
                *("--outputDirectory", tmp_path, "--prefix", case, "-t", "nii"),
            ],
            check=True,
            capture_output=True,
        )
        theirs = nibabel.load(next(tmp_path.glob(f"{case}*.nii.gz")))
        ours = read_nifti(converted.path / "Task04" / "labelsTr" / f"{case}.nii.gz")
        # dcmqi gives the box of the segments: place it on the image's grid.
        offset = np.rint(np.linalg.inv(ours.affine) @ theirs.affine).astype(int)
        found = np.zeros(ours.shape, int)
        index = np.argwhere(theirs.get_fdata())
        where = (np.c_[index, np.ones(len(index), int)] @ offset.T)[:, :3]
        found[tuple(where.T)] = theirs.get_fdata()[tuple(index.T)]
        np.testing.assert_array_equal(found, ours.array)


# --- made-up volumes ---


def rotation() -> np.ndarray:
    """About two axes, by 20 and 33 degrees: nothing lines up with the patient any more."""
    a, b = np.deg2rad([20, 33])
    about_x = [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]
    about_z = [[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]]
    return np.array(about_z) @ np.array(about_x)


def write_case(root: DataRoot, image: np.ndarray, label: np.ndarray, affine: np.ndarray) -> None:
    write_nifti(image, affine, root.path / "in/case_1/case_1_image.nii.gz")
    write_nifti(label, affine, root.path / "in/case_1/case_1_label.nii.gz")


def through_dicom(root: DataRoot, modality: str = "CT", **options: Any) -> tuple[Any, Any]:
    nifti_to_dicom(root, "in", "DICOM", modality=modality, **options)
    (shard,) = list_studies(root, "DICOM", "out")
    config = options.get("config")
    (case,) = convert_studies(root, "DICOM", shard, "out", config=config).cases
    return tuple(
        read_nifti(root.path / f"out/{case}/{case}_{what}.nii.gz") for what in ("image", "label")
    )


def test_oblique_volume_with_gaps_in_the_label(root: DataRoot) -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(-1024, 3000, (23, 31, 17)).astype(np.int16)
    label = np.zeros(image.shape, np.uint8)
    label[3:9, 4:20, [2, 7, 8, 15]] = 1  # slices between them are empty
    label[10:15, 0:3, 7] = 2
    affine = np.eye(4)
    affine[:3, :3] = rotation() @ np.diag([-0.7123456, -0.81, 2.5])
    affine[:3, 3] = [-103.25, 77.125, -1234.56789]
    write_case(root, image, label, affine)
    image_after, label_after = through_dicom(root)
    np.testing.assert_allclose(image_after.affine, affine, atol=1e-4)
    assert image_after.array.dtype == np.int16
    np.testing.assert_array_equal(image_after.array, image)
    np.testing.assert_array_equal(label_after.array, label)


@pytest.mark.parametrize("regions", [False, True])
def test_labels_with_ignore(root: DataRoot, make_config: Any, regions: bool) -> None:
    """nnU-Net's ``ignore`` label goes through DICOM like the others, also beside regions."""
    image = np.arange(6 * 7 * 5, dtype=np.int16).reshape(6, 7, 5)
    label = (image % 4).astype(np.uint8)
    write_case(root, image, label, np.diag([-1.0, -2.0, 3.0, 1.0]))
    labels = {"background": 0, "ignore": 3, "whole": [1, 2] if regions else [1], "core": 2}
    config = make_config(labels=labels, regions_class_order=[1, 2])
    _, label_after = through_dicom(root, config=config)
    np.testing.assert_array_equal(label_after.array, label)


def test_regions_that_only_the_datasets_description_declares(
    root: DataRoot, make_config: Any
) -> None:
    label = (np.arange(210).reshape(6, 7, 5) % 3).astype(np.uint8)
    write_nifti(label.astype(np.int16), np.eye(4), root.path / "in/imagesTr/a.nii.gz")
    write_nifti(label, np.eye(4), root.path / "in/labelsTr/a.nii.gz")
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    description = {"channel_names": {"0": "CT"}, "labels": labels, "regions_class_order": [1, 2]}
    (root.path / "in/dataset.json").write_text(json.dumps(description))
    nifti_to_dicom(root, "in", "DICOM")
    config = make_config(labels=labels, regions_class_order=[1, 2])
    (shard,) = list_studies(root, "DICOM", "out", config=config)
    (case,) = convert_studies(root, "DICOM", shard, "out", config=config).cases
    back = root.path / f"out/{case}/{case}_label.nii.gz"
    np.testing.assert_array_equal(read_nifti(back).array, label)


def test_left_handed_volume_keeps_its_voxels_in_place(root: DataRoot) -> None:
    image = np.arange(6 * 7 * 5, dtype=np.int16).reshape(6, 7, 5)
    label = (image % 11 == 0).astype(np.uint8)
    affine = np.diag([-1.0, 2.0, 3.0, 1.0])
    write_case(root, image, label, affine)
    image_after, label_after = through_dicom(root)
    np.testing.assert_array_equal(image_after.array, image[:, :, ::-1])
    np.testing.assert_array_equal(label_after.array, label[:, :, ::-1])
    last = affine @ [0, 0, 4, 1]
    np.testing.assert_allclose(image_after.affine @ [0, 0, 0, 1], last, atol=1e-6)


def test_fractions_use_all_sixteen_bits(root: DataRoot) -> None:
    image = np.random.default_rng(2).normal(0, 0.01, (9, 8, 7)).astype(np.float32)
    write_case(root, image, (image > 0).astype(np.uint8), np.eye(4))
    image_after, _ = through_dicom(root, "MR")
    assert np.abs(image_after.array - image).max() <= np.ptp(image) / 65534


def test_a_single_slice(root: DataRoot) -> None:
    image = np.arange(30, dtype=np.int16).reshape(5, 6, 1)
    write_case(root, image, (image > 9).astype(np.uint8), np.diag([1.0, 1.0, 4.0, 1.0]))
    image_after, label_after = through_dicom(root)
    np.testing.assert_allclose(abs(image_after.affine), np.diag([1.0, 1.0, 4.0, 1.0]))
    np.testing.assert_array_equal(label_after.array, image > 9)


def test_channels_become_series_and_come_back(root: DataRoot, make_config: Any) -> None:
    """A 4D image: one series a channel, told apart by SeriesDescription."""
    image = np.random.default_rng(3).integers(0, 900, (8, 9, 6, 2)).astype(np.int16)
    write_nifti(image, np.eye(4), root.path / "in/imagesTr/a.nii.gz")
    description = {"modality": {"0": "FLAIR", "1": "T1w"}, "labels": {"0": "background"}}
    (root.path / "in/dataset.json").write_text(json.dumps(description))
    nifti_to_dicom(root, "in", "DICOM")
    assert {path.name for path in (root.path / "DICOM" / "a").iterdir()} == {"1_FLAIR", "2_T1w"}
    (shard,) = list_studies(root, "DICOM", "out")
    with pytest.raises(CasesFailedError, match="the study has 2 image series") as caught:
        convert_studies(root, "DICOM", shard, "out")
    assert "give a config with the key of modality_dict" in caught.value.reasons["a"]

    suffixes = {"t1w": "_t1.nii.gz", "flair": "_flair.nii.gz", "label": "_seg.nii.gz"}
    config = make_config(modality_dict=suffixes)
    convert_studies(root, "DICOM", shard, "out", config=config)
    for channel, suffix in ((0, "_flair"), (1, "_t1")):
        after = read_nifti(root.path / f"out/a/a{suffix}.nii.gz")
        np.testing.assert_array_equal(after.array, image[..., channel])


def test_same_input_gives_same_uids(root: DataRoot) -> None:
    image = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    write_case(root, image, (image > 9).astype(np.uint8), np.eye(4))

    def uids(output: str) -> dict[str, str]:
        nifti_to_dicom(root, "in", output, modality="CT")
        folder = root.path / output
        return {
            str(path.relative_to(folder)): pydicom.dcmread(path).SOPInstanceUID
            for path in folder.rglob("*.dcm")
        }

    first = uids("one")
    assert len(first) == 6
    assert uids("two") == first
    write_nifti(image + 1, np.eye(4), root.path / "in/case_1/case_1_image.nii.gz")
    assert not set(uids("one").values()) & set(first.values())


def test_written_series_are_valid(root: DataRoot) -> None:
    """By dicom3tools' dciodvfy, the reference checker of the standard's modules."""
    if shutil.which("dciodvfy") is None and not os.environ.get("CI"):
        pytest.skip("dciodvfy is not here (apt-get install dicom3tools)")
    image = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    write_case(root, image, (image > 9).astype(np.uint8), np.eye(4))
    for modality in ("CT", "MR"):
        nifti_to_dicom(root, "in", modality, modality=modality)
        files = list((root.path / modality).rglob("*.dcm"))
        assert len(files) == 6
        for path in files:
            found = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
            assert "Error" not in found.stderr, f"{path}: {found.stderr}"


def test_pseudonyms(root: DataRoot) -> None:
    image = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    write_case(root, image, (image > 9).astype(np.uint8), np.eye(4))
    image_after, _ = through_dicom(root, deidentify=True)
    np.testing.assert_array_equal(image_after.array, image)
    for path in (root.path / "DICOM").rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        assert "case_1" not in str(dataset)
        assert dataset.PatientID.startswith("case-")
        assert dataset.PatientIdentityRemoved == "YES"


# --- bad input ---


def failure(root: DataRoot, **options: Any) -> str:
    with pytest.raises(CasesFailedError) as caught:
        nifti_to_dicom(root, "in", "DICOM", modality="CT", **options)
    return caught.value.reasons["case_1"]


def test_label_of_another_geometry(root: DataRoot) -> None:
    image = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    label = (image > 9).astype(np.uint8)
    write_case(root, image, label, np.eye(4))
    shifted = np.eye(4)
    shifted[0, 3] = 0.5
    write_nifti(label, shifted, root.path / "in/case_1/case_1_label.nii.gz")
    assert "case_1_label.nii.gz lies 0.5 mm off case_1_image.nii.gz" in failure(root)
    write_nifti(label[:, :, 1:], np.eye(4), root.path / "in/case_1/case_1_label.nii.gz")
    assert "has 3x4x4 voxels, but case_1_image.nii.gz has 3x4x5" in failure(root)


def test_one_bad_case_does_not_stop_the_others(root: DataRoot) -> None:
    image = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    write_case(root, image, (image > 9).astype(np.uint8), np.eye(4))
    (root.path / "in/case_0").mkdir()
    (root.path / "in/case_0/case_0_image.nii.gz").write_bytes(b"\x1f\x8bno gzip")
    with pytest.raises(CasesFailedError, match="1 of 2 cases failed") as caught:
        nifti_to_dicom(root, "in", "DICOM", modality="CT")
    assert "case_0_image.nii.gz cannot be read as NIfTI" in caught.value.reasons["case_0"]
    assert len(list((root.path / "DICOM/case_1").rglob("*.dcm"))) == 6


def test_label_that_the_config_does_not_declare(root: DataRoot, make_config: Any) -> None:
    image = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    write_case(root, image, (image > 9).astype(np.uint8) * 3, np.eye(4))
    message = failure(root, config=make_config())
    assert "holds the label 3, which no segment declares (Tumor: 1)" in message


def test_sheared_and_undefined_images(root: DataRoot) -> None:
    image = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    label = (image > 9).astype(np.uint8)
    sheared = np.eye(4)
    sheared[0, 2] = 0.3
    (root.path / "in/case_1").mkdir(parents=True)
    header = nibabel.Nifti1Image(image, sheared)
    nibabel.save(header, root.path / "in/case_1/case_1_image.nii.gz")
    assert "is sheared" in failure(root)
    image[0, 0, 0] = np.nan
    write_case(root, image, label, np.eye(4))
    assert "NaN" in failure(root)


def test_unclear_modality_and_empty_folder(root: DataRoot) -> None:
    image = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    write_case(root, image, (image > 9).astype(np.uint8), np.eye(4))
    (root.path / "nothing").mkdir()
    before = contents(root.path)
    with pytest.raises(UserError, match="set modality to CT or MR"):
        nifti_to_dicom(root, "in", "DICOM")
    with pytest.raises(UserError, match="holds no NIfTI case"):
        nifti_to_dicom(root, "nothing", "DICOM", modality="CT")
    with pytest.raises(UserError, match="outside the data root"):
        nifti_to_dicom(root, "in", "../elsewhere", modality="CT")
    assert contents(root.path) == before
