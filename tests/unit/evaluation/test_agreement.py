"""Properties: metrics equal other implementations on any masks, empty and full ones too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from monai.metrics.meaniou import compute_iou
from nnunetv2.evaluation.evaluate_predictions import compute_tp_fp_fn_tn
from scipy.spatial.distance import cdist

from medseg.config import Labels
from medseg.evaluation.metrics import UNITS, case_metrics, volumes, why_undefined

Masks = tuple[np.ndarray, np.ndarray]

DEGENERATE = ("empty", "full", "voxel", "plane", "shell", "any")


def mask(shape: tuple[int, int, int], kind: str, draw: Any) -> np.ndarray:
    """A mask of nothing, everything, a voxel, a plane, all but the inside; or any."""
    if kind == "any":
        return draw(arrays(np.bool_, shape)).astype(np.uint8)
    result = np.full(shape, kind in ("full", "shell"), np.uint8)
    place = tuple(draw(st.integers(0, size - 1)) for size in shape)
    if kind == "voxel":
        result[place] = 1
    elif kind == "plane":
        axis = draw(st.integers(0, 2))
        result[tuple(place[axis] if axis == n else slice(None) for n in range(3))] = 1
    elif kind == "shell":
        result[tuple(slice(1, -1) for _ in shape)] = 0
    return result


@st.composite
def pairs(draw: Any) -> Masks:
    shape = draw(array_shapes(min_dims=3, max_dims=3, max_side=7))
    first, second = (
        mask(shape, draw(st.sampled_from(DEGENERATE)), draw) for _ in ("prediction", "reference")
    )
    return first, second


spacings = st.tuples(*[st.sampled_from([0.4, 0.75, 1.0, 3.0, 5.5])] * 3)

many = settings(
    derandomize=True, max_examples=150, deadline=None, suppress_health_check=list(HealthCheck)
)


@many
@given(pairs(), spacings)
def test_surface_distances_of_any_masks(masks: Masks, spacing: tuple[float, ...]) -> None:
    ours = case_metrics(*masks, spacing, Labels.of({"background": 0, "a": 1}))["1"]
    if not all(own.any() for own in masks):
        assert ours["ASD"] is None and ours["HD95"] is None
        return

    def surface(own: np.ndarray) -> np.ndarray:  # a voxel with one of six neighbours outside
        padded = np.pad(own, 1).astype(bool)
        inside = [np.roll(padded, step, axis) for axis in range(3) for step in (-1, 1)]
        return np.argwhere(padded & ~np.all(inside, axis=0)) * spacing

    distances = cdist(surface(masks[0]), surface(masks[1]))
    there, back = distances.min(axis=1), distances.min(axis=0)
    assert ours["ASD"] == pytest.approx(np.r_[there, back].mean(), abs=1e-9)
    expected = max(np.percentile(there, 95), np.percentile(back, 95))
    assert ours["HD95"] == pytest.approx(expected, abs=1e-9)


@many
@given(pairs(), spacings)
def test_any_masks_as_monai_measures_them(masks: Masks, spacing: tuple[float, ...]) -> None:
    ours = case_metrics(*masks, spacing, Labels.of({"background": 0, "a": 1}))["1"]
    tensors = [torch.from_numpy(own)[None, None].float() for own in masks]
    theirs = {
        "Dice": compute_dice(*tensors, ignore_empty=False).item(),
        "IoU": compute_iou(*tensors, ignore_empty=False).item(),
    }
    if not any(own.any() for own in masks):
        assert set(theirs.values()) == {1.0}  # MONAI's number where ours is undefined
        theirs = dict.fromkeys(theirs)
    if all(own.any() for own in masks):
        options = {"include_background": True, "spacing": spacing}
        asd = compute_average_surface_distance(*tensors, symmetric=True, **options)
        hd95 = compute_hausdorff_distance(*tensors, percentile=95, **options)
        theirs |= {"ASD": asd.item(), "HD95": hd95.item()}
    for name, value in theirs.items():
        assert ours[name] == (value if value is None else pytest.approx(value, rel=1e-5, abs=1e-6))


@many
@given(st.data())
def test_counts_and_volumes_of_any_label_maps(data: st.DataObject) -> None:
    shape = data.draw(array_shapes(min_dims=3, max_dims=3, max_side=6))
    prediction, reference = (
        data.draw(arrays(np.uint8, shape, elements=st.integers(0, top))) for top in (2, 3)
    )
    labels = Labels.of({"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, [1, 2])
    ours = case_metrics(prediction, reference, (1, 1, 1), labels)
    for key, values in (("(1, 2)", (1, 2)), ("2", (2,))):
        found, truth = (np.isin(own, values) for own in (prediction, reference))
        tp, fp, fn, tn = map(int, compute_tp_fp_fn_tn(truth, found, reference == 3))
        own = ours[key]
        assert [own[name] for name in ("TN", "FP", "FN", "TP")] == [tn, fp, fn, tp]
        assert (own["n_pred"], own["n_ref"]) == (tp + fp, tp + fn)
        measured = volumes(tp + fp, tp + fn, 0.25)
        assert measured["volume_error"] == (fp - fn) / 4
        assert measured["volume_error_abs"] == abs(fp - fn) / 4
        everything = {**own, **measured}
        for name in UNITS:  # the rule for empty structures says it of all metrics
            assert bool(why_undefined(name, tp + fp, tp + fn)) is (everything[name] is None), name
