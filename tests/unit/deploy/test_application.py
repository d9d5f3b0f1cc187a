"""What an inference image does with its input, on real series; the network is a stand-in."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
from pydicom import dcmread

from medseg.deploy.application import (
    Package,
    segment_files,
    segment_studies,
    selection_rules,
)
from medseg.deploy.task import SegmentationTask
from medseg.dicom.sources import FolderSource
from medseg.project import CasesFailedError, UserError


class Bright:
    """Segments what is brighter than the mean in the second channel."""

    calls = 0

    def segment(self, image: np.ndarray[Any, Any], spacing: Any) -> np.ndarray[Any, Any]:
        assert image.ndim == 4
        self.calls += 1
        return (image[-1] > image[-1].mean()).astype(np.uint8)


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
    package.__dict__["model"] = SimpleNamespace(metadata=metadata, dataset=channels)
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


def image(path: Path, value: float = 1.0) -> None:
    array = np.zeros((4, 5, 6), np.float32)
    array[1:3] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 2.0, 3.0, 1.0])), path)


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
    with pytest.raises(UserError, match=r"already has results of something else \(z.nii.gz\)"):
        segment_files(package, tmp_path / "in", tmp_path / "out")


def test_no_file_fits(package: Package, tmp_path: Path) -> None:
    image(tmp_path / "in" / "a.nii.gz")
    with pytest.raises(UserError, match=r"no file that fits the File_Pattern .*_T1.nii.gz"):
        segment_files(package, tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out" / "no-segmentation.txt").is_file()
