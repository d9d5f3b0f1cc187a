"""The phantoms: reproducible, in the Decathlon layout, and like CT."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg.demo import generate_phantoms


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "Task09_SpleenPhantom"
    generate_phantoms(folder)
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def load(dataset: Path) -> dict[str, tuple[nibabel.Nifti1Image, nibabel.Nifti1Image]]:
    return {
        path.name.removesuffix(".nii.gz"): (
            nibabel.load(path),
            nibabel.load(
                path.parents[1] / path.parent.name.replace("images", "labels") / path.name
            ),
        )
        for path in sorted(dataset.glob("images*/*.nii.gz"))
    }


def test_layout_is_the_decathlons(dataset: Path) -> None:
    described = json.loads((dataset / "dataset.json").read_text())
    assert described["modality"] == {"0": "CT"}
    assert described["labels"] == {"0": "background", "1": "spleen"}
    assert (described["numTraining"], described["numTest"]) == (12, 3)
    assert len(described["training"]) == 12 and len(described["test"]) == 3
    for entry in described["training"]:
        assert (dataset / entry["image"]).is_file() and (dataset / entry["label"]).is_file()
    for image in described["test"]:
        assert (dataset / image).is_file()
        assert (dataset / image.replace("imagesTs", "labelsTs")).is_file()
    assert "synthetic" in (dataset / "README.md").read_text()


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        generate_phantoms(tmp_path / name, training_cases=1, test_cases=1, seed=seed)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    image = "imagesTr/phantom_001.nii.gz"
    assert digests(tmp_path / "a")[image] != digests(tmp_path / "c")[image]


def test_geometry_varies_as_promised(dataset: Path) -> None:
    cases = load(dataset)
    spacings = np.array([image.header.get_zooms() for image, _ in cases.values()])
    assert np.isclose(spacings.min(axis=0), 0.8).all()
    assert np.isclose(spacings.max(axis=0), 5.0).all()
    oblique = 0
    for image, label in cases.values():
        assert image.get_data_dtype() == np.int16 and label.get_data_dtype() == np.uint8
        assert np.array_equal(image.affine, label.affine)
        assert np.allclose(image.get_qform(), image.get_sform(), atol=1e-4)
        axes = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
        assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-5)  # turned, not sheared
        oblique += np.abs(axes).max(axis=0).min() < 0.999
    assert oblique == 5


def test_intensities_are_those_of_ct(dataset: Path) -> None:
    volumes = []
    for name, (image, label) in load(dataset).items():
        voxels, spleen = np.asarray(image.dataobj), np.asarray(label.dataobj) == 1
        air = voxels[:3, :3, :3]
        assert air.min() >= -1024 and air.mean() < -950, name
        assert 90 < np.median(voxels[spleen]) < 170, name
        assert 5 < voxels[spleen].std() < 60, name  # noise and partial volume at its edge
        assert voxels.max() > 300, name  # bone
        volumes.append(spleen.sum() * np.prod(image.header.get_zooms()) / 1000)
        ras = nibabel.affines.apply_affine(image.affine, np.argwhere(spleen).mean(axis=0))
        assert ras[0] < -20 and ras[1] < 0, f"{name}: the spleen lies left and posterior"
    assert min(volumes) > 25 and max(volumes) < 150  # ml
    assert np.std(volumes) > 5
