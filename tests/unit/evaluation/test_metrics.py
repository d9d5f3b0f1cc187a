"""Metrics against values that are known from geometry, and against other implementations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from scipy.spatial.distance import cdist

from medseg.config import Labels
from medseg.evaluation.metrics import case_metrics
from medseg.imaging import write_nifti

SHAPE = (24, 20, 16)
ONE = Labels.of({"background": 0, "a": 1})


def box(*ranges: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[tuple(slice(*each) for each in ranges)] = 1
    return mask


def ball(radius: float, spacing: tuple[float, ...], size: int = 64) -> np.ndarray:
    axes = [(np.arange(int(size / step)) - int(size / step) / 2) * step for step in spacing]
    distance = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))
    return (distance <= radius).astype(np.uint8)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_parallel_sheets_are_as_far_apart_as_they_are(axis: int) -> None:
    spacing = (0.8, 2.0, 5.0)
    ranges = [(0, n) for n in SHAPE]
    first, second = list(ranges), list(ranges)
    first[axis], second[axis] = (3, 4), (7, 8)
    result = case_metrics(box(*first), box(*second), spacing, ONE)["1"]
    assert result["ASD"] == pytest.approx(4 * spacing[axis])
    assert result["HD95"] == pytest.approx(4 * spacing[axis])
    assert result["Dice"] == 0 and result["IoU"] == 0


def test_shifted_cube() -> None:
    # 10 x 10 x 10 against the same, 5 voxels of 2 mm on. By counting: each surface has 488 voxels;
    # the outer face (100) lies 10 mm off, which is more than 5 % of them.
    first, second = box((2, 12), (4, 14), (3, 13)), box((7, 17), (4, 14), (3, 13))
    result = case_metrics(first, second, (2.0, 2.0, 2.0), ONE)["1"]
    assert result["HD95"] == pytest.approx(10)
    assert result["Dice"] == pytest.approx(0.5) and result["IoU"] == pytest.approx(1 / 3)
    assert [result[k] for k in ("TP", "FP", "FN", "TN")] == [500, 500, 500, 24 * 20 * 16 - 1500]
    assert result["n_pred"] == result["n_ref"] == 1000


def test_concentric_balls() -> None:
    spacing = (1.0, 0.8, 1.25)
    result = case_metrics(ball(25, spacing), ball(20, spacing), spacing, ONE)["1"]
    assert result["ASD"] == pytest.approx(5, abs=0.25)
    assert result["HD95"] == pytest.approx(5, abs=0.8)
    assert result["Dice"] == pytest.approx(2 * 20**3 / (20**3 + 25**3), abs=0.01)


def test_against_all_pairs_of_surface_voxels() -> None:
    rng = np.random.default_rng(0)
    spacing = (0.7, 1.3, 4.0)
    masks = [rng.random((9, 8, 7)) > 0.6 for _ in range(2)]  # reach the border of the image

    def surface(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, 1)
        neighbours = [np.roll(padded, step, axis) for axis in range(3) for step in (-1, 1)]
        return np.argwhere(padded & ~np.all(neighbours, axis=0)) * spacing

    distances = cdist(surface(masks[0]), surface(masks[1]))
    there, back = distances.min(axis=1), distances.min(axis=0)
    result = case_metrics(*(mask.astype(np.uint8) for mask in masks), spacing, ONE)["1"]
    assert result["ASD"] == pytest.approx(np.r_[there, back].mean(), rel=1e-5)
    expected = max(np.percentile(there, 95), np.percentile(back, 95))
    assert result["HD95"] == pytest.approx(expected, rel=1e-5)


def test_distances_are_monais() -> None:
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    rng = np.random.default_rng(2)
    spacing = (3.0, 0.8, 1.1)
    masks = [ball(18, spacing, 48), np.roll(ball(14, spacing, 48), (2, 5, -3), (0, 1, 2))]
    masks[1][tuple(rng.integers(0, n, 5) for n in masks[1].shape)] = 1  # islands
    ours = case_metrics(*masks, spacing, ONE)["1"]
    tensors = [torch.from_numpy(mask)[None, None] for mask in masks]
    options = {"include_background": True, "spacing": spacing}
    asd = compute_average_surface_distance(*tensors, symmetric=True, **options)
    hd95 = compute_hausdorff_distance(*tensors, percentile=95, **options)
    assert ours["ASD"] == pytest.approx(asd.item(), rel=1e-5)
    assert ours["HD95"] == pytest.approx(hd95.item(), rel=1e-5)


def test_missing_structures() -> None:
    empty, full = box((0, 0), (0, 0), (0, 0)), box((2, 5), (2, 5), (2, 5))
    neither = case_metrics(empty, empty, (1, 1, 1), ONE)["1"]
    assert [neither[k] for k in ("Dice", "IoU", "ASD", "HD95")] == [None] * 4
    for pair in ((empty, full), (full, empty)):
        one = case_metrics(*pair, (1, 1, 1), ONE)["1"]
        assert (one["Dice"], one["IoU"], one["ASD"], one["HD95"]) == (0, 0, None, None)
    same = case_metrics(full, full, (1, 1, 1), ONE)["1"]
    assert (same["Dice"], same["IoU"], same["ASD"], same["HD95"]) == (1, 1, 0, 0)


def test_overlap_is_nnunets(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    prediction, reference = (rng.integers(0, 3, SHAPE, dtype=np.uint8) for _ in range(2))
    reference[:4] = 3
    labels = Labels.of({"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, [1, 2])
    for name, array in (("p", prediction), ("r", reference)):
        write_nifti(array, np.eye(4), tmp_path / f"{name}.nii.gz")
    theirs = compute_metrics(
        str(tmp_path / "r.nii.gz"), str(tmp_path / "p.nii.gz"), SimpleITKIO(), [(1, 2), 2], 3
    )["metrics"]
    ours = case_metrics(prediction, reference, (1, 1, 1), labels)
    assert list(ours) == ["(1, 2)", "2"] == [str(key) for key in theirs]
    for key, metrics in theirs.items():
        for name, value in metrics.items():
            assert ours[str(key)][name] == pytest.approx(value), (key, name)
