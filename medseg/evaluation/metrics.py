"""Overlap and surface distance of two label maps.

Overlap counts and ratios are nnU-Net's (``nnunetv2.evaluation.evaluate_predictions``), so that the
numbers stay comparable with every other nnU-Net summary. Surface distances follow MONAI's
definitions (``monai.metrics``), from SciPy directly: importing MONAI takes longer than measuring.

The rule for empty structures, in every file and page: what a structure that is not there leaves
without a meaning has no value, and :func:`why_undefined` says why; no 0, 1 or infinity takes its
place. So Dice and IoU have none where reference and prediction both lack the structure, and are 0
where one does; surface distances have none where one lacks it, a relative volume error where the
reference does. Means, intervals and tests are over the cases that have a value, and say how many
have not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import KDTree

from medseg.config import Labels

Metrics = dict[str, float | int | None]

DISTANCES = ("ASD", "HD95")

UNITS = {
    "Dice": "", "IoU": "", "ASD": "mm", "HD95": "mm",
    "volume_ref": "ml", "volume_pred": "ml", "volume_error": "ml", "volume_error_abs": "ml",
    "volume_error_rel": "",
    "TP": "voxels", "FP": "voxels", "FN": "voxels", "TN": "voxels",
    "n_ref": "voxels", "n_pred": "voxels",
}  # fmt: skip
"""Every metric of :func:`case_metrics` and :func:`volumes`, and its unit."""


def case_metrics(
    prediction: NDArray[Any],
    reference: NDArray[Any],
    spacing: Sequence[float],
    labels: Labels,
) -> dict[str, Metrics]:
    """All metrics of one case.

    Args:
        prediction: Label map, three axes.
        reference: Label map on the same grid.
        spacing: Millimetres between voxel centres along the arrays' axes, in their order.
        labels: The structures to measure, and what to leave out.

    Returns:
        nnU-Net's key of each structure to ``Dice``, ``IoU``, ``FN``, ``FP``, ``TN``, ``TP``,
        ``n_pred``, ``n_ref`` (voxels), ``ASD`` and ``HD95`` (mm). What is undefined is None:
        Dice and IoU of a structure that neither map holds, distances of one that either lacks.
    """
    counted = None if labels.ignore is None else reference != labels.ignore
    result = {}
    for key, (_, values) in labels.structures.items():
        found, truth = np.isin(prediction, values), np.isin(reference, values)
        if counted is not None:
            found, truth = found & counted, truth & counted
        total = reference.size if counted is None else int(counted.sum())
        result[key] = overlap(found, truth, total) | surface_distances(found, truth, spacing)
    return result


def overlap(prediction: NDArray[np.bool_], reference: NDArray[np.bool_], total: int) -> Metrics:
    """Dice, IoU and the counts they come from.

    Args:
        prediction: Mask.
        reference: Mask of the same shape.
        total: Voxels that count at all.
    """
    n_pred, n_ref = int(prediction.sum()), int(reference.sum())
    both = int((prediction & reference).sum())
    either = n_pred + n_ref - both
    return {
        "Dice": 2 * both / (n_pred + n_ref) if either else None,
        "IoU": both / either if either else None,
        "FN": n_ref - both,
        "FP": n_pred - both,
        "TN": total - either,
        "TP": both,
        "n_pred": n_pred,
        "n_ref": n_ref,
    }


def volumes(n_pred: int, n_ref: int, millilitres: float | None) -> Metrics:
    """Volumes, and how far the predicted one is off.

    Args:
        n_pred: Voxels of the structure in the prediction that count.
        n_ref: The same in the reference.
        millilitres: Volume of a voxel; None where it is not known.

    Returns:
        ``volume_ref`` and ``volume_pred`` (ml), ``volume_error`` (predicted less reference, ml),
        ``volume_error_abs`` (its amount) and ``volume_error_rel`` (as a part of the reference).
    """
    error = n_pred - n_ref
    counts = {"ref": n_ref, "pred": n_pred, "error": error, "error_abs": abs(error)}
    return {
        **{
            f"volume_{name}": None if millilitres is None else count * millilitres
            for name, count in counts.items()
        },
        "volume_error_rel": error / n_ref if n_ref else None,
    }


def why_undefined(metric: str, n_pred: int, n_ref: int) -> str:
    """Why a case has no value of a metric, by the rule of this module; empty where it has one.

    Args:
        metric: Its name.
        n_pred: Voxels of the structure in the prediction.
        n_ref: The same in the reference.
    """
    absent = [name for name, n in (("reference", n_ref), ("prediction", n_pred)) if not n]
    enough = {"Dice": 1, "IoU": 1, "ASD": 0, "HD95": 0}.get(metric, 2)
    if metric == "volume_error_rel":
        return "" if n_ref else "absent in reference"
    return f"absent in {' and '.join(absent)}" if len(absent) > enough else ""


def surface_distances(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: Sequence[float]
) -> Metrics:
    """Average symmetric surface distance and 95th percentile of the Hausdorff distance.

    A surface is the mask's voxels that have a neighbour outside it (six neighbours; the world
    beyond the image is outside). ``ASD`` is the mean over the surface voxels of both masks of the
    distance to the other surface. ``HD95`` is the larger of the two directions' 95th percentiles,
    as in MONAI; medpy takes one percentile over both directions together, which differs slightly.

    Args:
        prediction: Mask, three axes.
        reference: Mask of the same shape.
        spacing: Millimetres between voxel centres, in the order of the axes.

    Returns:
        ``ASD`` and ``HD95`` in mm; None where a mask is empty.
    """
    if not (prediction.any() and reference.any()):
        return dict.fromkeys(DISTANCES)
    box = find_objects((prediction | reference).view(np.uint8))[0]
    # Erosion takes what lies beyond the box for outside, which it is.
    first, second = (
        np.argwhere(mask[box] & ~binary_erosion(mask[box])) * np.asarray(spacing)
        for mask in (prediction, reference)
    )
    there, _ = KDTree(second).query(first)
    back, _ = KDTree(first).query(second)
    return {
        "ASD": float(np.concatenate([there, back]).mean()),
        "HD95": float(max(np.percentile(there, 95), np.percentile(back, 95))),
    }
