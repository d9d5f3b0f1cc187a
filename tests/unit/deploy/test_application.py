"""What an inference image does with its input, on real series; the network is a stand-in."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from pydicom import dcmread

from medseg.bundle.torchscript import PackagedModel
from medseg.deploy.application import Package
from medseg.deploy.dicom_input import segment_studies, selection_rules
from medseg.deploy.nifti_input import segment_files
from medseg.deploy.task_file import SegmentationTask
from medseg.dicom import FolderSource
from medseg.imaging import Volume, to_zyx
from medseg.project import CasesFailedError, Manifest, UserError
from tests.volumes import contents


class Bright:
    """Segments what is brighter than the mean in the second channel."""

    calls = 0
    seen: np.ndarray[Any, Any]

    def segment_volumes(self, volumes: list[Volume]) -> np.ndarray[Any, Any]:
        self.calls += 1
        self.seen = to_zyx(volumes)
        last = volumes[-1].array
        return (last > last.mean()).astype(np.uint8)


@pytest.fixture
def package(tmp_path: Path) -> Package:
    """Two modalities, one segment."""
    code = {"code": "1", "scheme": "SCT", "meaning": "Tumor"}
    task = SegmentationTask.model_validate(
        {
            "name": "Brain",
            "Reference_Modality": "FLAIR",
            "Modalities": {
                name: {
                    "File_Pattern": f"_{name}.nii.gz",
                    "Rules_Text": '{"selections": [{"conditions": {"Modality": "MR"}}]}',
                }
                for name in ("T1", "FLAIR")
            },
            "Segments": [
                {
                    "segment_label": "Tumor",
                    "segmented_property_category": code,
                    "segmented_property_type": code,
                    "algorithm_name": "Bright",
                }
            ],
        }
    )
    model = tmp_path / "models" / "Brain" / "model.ts"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"model")
    package = Package(model, task)
    definition = {"0": "background", "1": "Tumor"}
    metadata = {"network_data_format": {"outputs": {"pred": {"channel_def": definition}}}}
    channels = {"channel_names": {"0": "T1", "1": "FLAIR"}}
    package.__dict__["model"] = PackagedModel(torch.nn.Identity(), metadata, {}, channels, {})
    package.__dict__["predictor"] = Bright()
    return package


def series_of(folder: Path) -> dict[str, str]:
    source = FolderSource(folder)
    (study,) = source.studies()
    return {
        ("FLAIR" if "flair" in item.description.lower() else "T1"): item.uid
        for item in source.series(study.uid)
    }


@pytest.fixture
def selected(shared_data: Path) -> dict[str, dict[str, list[str]]]:
    source = FolderSource(shared_data / "PGBM-002")
    found = series_of(shared_data / "PGBM-002")
    assert set(found) == {"T1", "FLAIR"}
    return {source.studies()[0].uid: {name: [uid] for name, uid in found.items()}}


def test_two_modalities_of_a_clinical_study(
    package: Package, selected: Any, shared_data: Path, tmp_path: Path
) -> None:
    folder, output = shared_data / "PGBM-002", tmp_path / "out"
    (result,) = segment_studies(package, selected, folder, output)
    assert result == output / "Brain.dcm"
    segmentation = dcmread(result)
    (study,) = selected.values()
    assert segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID == study["FLAIR"][0]
    assert segmentation.SegmentSequence[0].SegmentLabel == "Tumor"
    segment_studies(package, selected, folder, output)
    assert package.predictor.calls == 1  # type: ignore[attr-defined]


def test_rules_of_all_modalities_in_one(package: Package) -> None:
    names = [item["name"] for item in selection_rules(package.task)["selections"]]
    assert names == ["T1", "FLAIR"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda study: study.pop("T1"), "no series that fits the rules of modality T1"),
        (lambda study: study["T1"].extend(study["FLAIR"]), "2 series that fit"),
        (
            lambda study: study.update(T1=study["FLAIR"]),
            "fits the rules of two modalities, T1 and FLAIR",
        ),
    ],
)
def test_none_or_two_that_fit(
    package: Package, selected: Any, shared_data: Path, tmp_path: Path, change: Any, message: str
) -> None:
    (study,) = selected.values()
    change(study)
    with pytest.raises(UserError, match=message):
        segment_studies(package, selected, shared_data / "PGBM-002", tmp_path / "out")
    assert message in (tmp_path / "out" / "no-segmentation.txt").read_text()


def fewer_slices(source: Path, target: Path, **values: Any) -> None:
    """The study again, its T1 series without the first two slices and with other header values."""
    for path in sorted(source.rglob("*.dcm")):
        dataset = dcmread(path)
        if "flair" not in dataset.SeriesDescription.lower():
            if dataset.InstanceNumber <= 2:
                continue
            for keyword, value in values.items():
                setattr(dataset, keyword, value)
        target.mkdir(exist_ok=True)
        dataset.save_as(target / f"{dataset.SOPInstanceUID}.dcm")


def test_a_modality_on_another_grid_is_resampled(
    package: Package, selected: Any, shared_data: Path, tmp_path: Path
) -> None:
    segment_studies(package, selected, shared_data / "PGBM-002", tmp_path / "whole")
    whole = package.predictor.seen  # type: ignore[attr-defined]
    fewer_slices(shared_data / "PGBM-002", tmp_path / "in")
    (result,) = segment_studies(package, selected, tmp_path / "in", tmp_path / "out")
    assert dcmread(result).Rows == whole.shape[-2]
    found = package.predictor.seen  # type: ignore[attr-defined]
    assert found.shape == whole.shape
    np.testing.assert_array_equal(found[1], whole[1])
    apart = np.abs(found[0] - whole[0]).mean(axis=(1, 2)) / whole[0].mean()
    assert np.sort(apart)[:-2].max() < 0.01  # headers round their numbers
    assert np.sort(apart)[-2:].min() > 0.05  # where nothing was measured stands the border


def test_no_common_frame_of_reference(
    package: Package, selected: Any, shared_data: Path, tmp_path: Path
) -> None:
    fewer_slices(shared_data / "PGBM-002", tmp_path / "in", FrameOfReferenceUID="1.2.3")
    with pytest.raises(UserError, match="have no common frame of reference"):
        segment_studies(package, selected, tmp_path / "in", tmp_path / "out")


def test_channels_are_the_models(package: Package, tmp_path: Path) -> None:
    image(tmp_path / "in" / "a_T1.nii.gz", 1.0)
    image(tmp_path / "in" / "a_FLAIR.nii.gz", 2.0)
    before = package.identity
    segment_files(package, tmp_path / "in", tmp_path / "out")
    assert package.predictor.seen.max(axis=(1, 2, 3)).tolist() == [1, 2]  # type: ignore[attr-defined]
    modalities = dict(reversed(package.task.modalities.items()))
    turned = Package(package.model_file, package.task.model_copy(update={"modalities": modalities}))
    turned.__dict__.update(model=package.model, predictor=Bright())
    assert turned.identity != before
    segment_files(turned, tmp_path / "in", tmp_path / "again")
    assert turned.predictor.seen.max(axis=(1, 2, 3)).tolist() == [1, 2]  # type: ignore[attr-defined]


def image(path: Path, value: float = 1.0, origin: float = 0.0) -> None:
    array = np.zeros((4, 5, 6), np.float32)
    array[1:3] = value
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[0, 3] = origin
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def test_nifti_files_on_other_grids(package: Package, tmp_path: Path) -> None:
    image(tmp_path / "in" / "a_FLAIR.nii.gz")
    image(tmp_path / "in" / "a_T1.nii.gz", origin=0.5)
    (result,) = segment_files(package, tmp_path / "in", tmp_path / "out")
    assert nibabel.load(result).shape == (4, 5, 6)
    along = package.predictor.seen[0, 0, 0]  # type: ignore[attr-defined]
    np.testing.assert_allclose(along, [0, 0.5, 1, 0.5])
    image(tmp_path / "in" / "b_FLAIR.nii.gz")
    image(tmp_path / "in" / "b_T1.nii.gz", origin=100)
    with pytest.raises(CasesFailedError, match="do not overlap"):
        segment_files(package, tmp_path / "in", tmp_path / "out")


def test_nifti_cases_and_a_missing_file(package: Package, tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    for case in ("a", "b"):
        for modality in ("T1", "FLAIR"):
            image(folder / case / f"{case}_{modality}.nii.gz")
    image(folder / "c_T1.nii.gz")
    shutil.copytree(folder, tmp_path / "copy")
    with pytest.raises(CasesFailedError, match="1 of 3 cases failed") as caught:
        segment_files(package, folder, output)
    assert "c_FLAIR.nii.gz is missing" in str(caught.value)
    assert "c_FLAIR.nii.gz" in (output / "c-no-segmentation.txt").read_text()
    assert sorted(path.name for path in output.glob("*.nii.gz")) == ["a.nii.gz", "b.nii.gz"]
    mask = nibabel.load(output / "a.nii.gz")
    assert np.asarray(mask.dataobj)[1:3].all()
    image(folder / "c_FLAIR.nii.gz")
    segment_files(package, folder, output)  # the rest, and nothing twice
    assert package.predictor.calls == 3  # type: ignore[attr-defined]
    assert not (output / "c-no-segmentation.txt").exists()


def test_other_results_are_left_alone(package: Package, tmp_path: Path) -> None:
    for modality in ("T1", "FLAIR"):
        image(tmp_path / "in" / f"a_{modality}.nii.gz")
    image(tmp_path / "out" / "z.nii.gz")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"already has results of something else \(z.nii.gz\)"):
        segment_files(package, tmp_path / "in", tmp_path / "out")
    assert contents(tmp_path) == before


def test_no_file_fits(package: Package, tmp_path: Path) -> None:
    image(tmp_path / "in" / "a.nii.gz")
    with pytest.raises(UserError, match=r"no file that fits the File_Pattern .*_T1.nii.gz"):
        segment_files(package, tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out" / "no-segmentation.txt").is_file()


def test_files_of_the_same_name_in_one_folder_a_case(package: Package, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    output = folder / "results"  # what lies there is no input
    for case in ("a", "b", "c"):
        image(folder / case / "image_T1.nii.gz")
        image(folder / case / "image_FLAIR.nii.gz")
    (folder / "c" / "image_T1.nii.gz").unlink()
    image(folder / "T1" / "d_T1.nii.gz")
    image(folder / "FLAIR" / "d_FLAIR.nii.gz")
    for modality in ("T1", "FLAIR"):
        image(folder / f"b_{modality}.nii.gz")
    with pytest.raises(CasesFailedError, match="2 of 4 cases failed") as caught:
        segment_files(package, folder, output)
    assert "c has no file of modality T1" in str(caught.value)
    assert "several files are called b" in str(caught.value)
    assert sorted(path.name for path in output.glob("*.nii.gz")) == ["a.nii.gz", "d.nii.gz"]
    shutil.rmtree(folder / "c")
    for modality in ("T1", "FLAIR"):
        (folder / f"b_{modality}.nii.gz").unlink()
    assert len(segment_files(package, folder, output)) == 3
    assert package.predictor.calls == 3  # type: ignore[attr-defined]


def test_two_such_cases_in_a_folder(package: Package, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        for name in ("x", "y"):
            for modality in ("T1", "FLAIR"):
                image(tmp_path / "in" / folder / f"{name}_{modality}.nii.gz")
    results = segment_files(package, tmp_path / "in", tmp_path / "out")
    assert [path.name.split(".")[0] for path in results] == ["a_x", "b_x", "a_y", "b_y"]


@pytest.mark.parametrize("dicom", [True, False])
def test_a_kill_between_result_and_record(
    package: Package,
    selected: Any,
    shared_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dicom: bool,
) -> None:
    for modality in ("T1", "FLAIR"):
        image(tmp_path / "in" / f"a_{modality}.nii.gz")

    def run() -> Path:
        if dicom:
            (path,) = segment_studies(package, selected, shared_data / "PGBM-002", tmp_path / "out")
        else:
            (path,) = segment_files(package, tmp_path / "in", tmp_path / "out")
        return path

    record = Manifest.record

    def killed(self: Manifest, inputs: str, outputs: Any, *rest: Any) -> None:
        if outputs:
            raise KeyboardInterrupt
        record(self, inputs, outputs, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "record", killed)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert len(list((tmp_path / "out").iterdir())) == 2  # the result, and .medseg
    result = run()
    before = result.stat().st_mtime_ns
    assert run().stat().st_mtime_ns == before
    assert not list((tmp_path / "out" / ".medseg").glob("*begun*"))
    result.write_bytes(b"someone else's")
    with pytest.raises(UserError, match="results of something else"):
        run()
