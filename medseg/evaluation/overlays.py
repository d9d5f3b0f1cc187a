"""Slices of a case with the outlines of reference and prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.config import Labels
from medseg.evaluation.figures import INK, Figure, png_uri, report_style
from medseg.evaluation.metrics import bounding_box

REFERENCE, PREDICTION = "#56B4E9", "#E69F00"  # Okabe and Ito's sky blue and orange
CT_WINDOW = (-160.0, 240.0)  # HU: the soft-tissue window, level 40 and width 400
MARGIN = 30.0  # mm shown around the structures

# Title, fixed axis, and the letters at left, right, bottom and top, for an array in LPS order.
VIEWS = (
    ("axial", 2, "RLPA"),
    ("coronal", 1, "RLIS"),
    ("sagittal", 0, "APIS"),
)


def overlay_figure(
    image: Path,
    reference: Path,
    prediction: Path,
    labels: Labels,
    *,
    channel: str,
    case: str,
    caption: str,
) -> Figure:
    """Three orthogonal slices through where the reference is largest.

    Shown as radiologists do: patient's right at the left of the picture, anterior or superior up.
    Voxels keep their true proportions. An oblique grid is shown along its own axes, the nearest to
    the patient's.

    Args:
        image: NIfTI file; of four dimensions, the first channel is shown.
        reference: Label map on the same grid.
        prediction: Label map on the same grid.
        labels: The structures to outline.
        channel: nnU-Net's channel name; ``CT`` gets the soft-tissue window, anything else its 1st
            to 99th percentile.
        case: Identifier, for the alternative text.
        caption: What stands below the figure.
    """
    from medseg.imaging import read_nifti

    volumes = [
        read_nifti(path).channels[0].turned("LPS") for path in (image, reference, prediction)
    ]
    grey, truth, found = (volume.array for volume in volumes)
    spacing = list(volumes[0].spacing)
    if channel.upper() == "CT":
        low, high = CT_WINDOW
    else:
        low, high = (float(value) for value in np.percentile(grey, (1, 99)))
    values = sorted({value for _, own in labels.structures.values() for value in own})
    true, predicted = (np.isin(each, values) for each in (truth, found))
    centre, box = _where(true | predicted, true, spacing)

    with report_style():
        uri = _draw(grey, truth, found, spacing, (low, high), labels, centre, box)
    alt = (
        f"Case {case}: {', '.join(title for title, _, _ in VIEWS)} slice with the outline of the "
        "reference (solid, blue) and of the prediction (dashed, orange)."
    )
    return Figure(uri, alt, caption)


def _draw(
    grey: NDArray[Any],
    truth: NDArray[Any],
    found: NDArray[Any],
    spacing: list[float],
    window: tuple[float, float],
    labels: Labels,
    centre: list[int],
    box: tuple[slice, ...],
) -> str:
    """The three views side by side, as a data URI; arrays and spacing in LPS order."""
    from matplotlib.figure import Figure as Canvas
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import withStroke

    low, high = window
    structures = list(labels.structures.values())
    extents = [(box[axis].stop - box[axis].start) * spacing[axis] for axis in range(3)]
    widths = [extents[1] if fixed == 0 else extents[0] for _, fixed, _ in VIEWS]
    heights = [extents[1] if fixed == 2 else extents[2] for _, fixed, _ in VIEWS]
    # Panels of one height; the widths follow from the anatomy.
    ratios = [width / height for width, height in zip(widths, heights, strict=True)]
    height = min(3.4, 9.6 / sum(ratios))
    size = (height * sum(ratios) + 0.1, height)
    canvas = Canvas(figsize=size, dpi=120, facecolor="black")
    panels = canvas.subplots(1, 3, gridspec_kw={"width_ratios": ratios})
    written = {
        "color": "white",
        "path_effects": [withStroke(linewidth=2, foreground=INK)],
        "parse_math": False,  # names may hold a $
    }
    canvas.subplots_adjust(0.004, 0.01, 0.996, 0.99, wspace=0.02)
    for axes, (_, fixed, letters) in zip(panels, VIEWS, strict=True):
        cut: list[Any] = list(box)
        cut[fixed] = centre[fixed]
        columns, rows = (axis for axis in range(3) if axis != fixed)
        axes.imshow(
            grey[tuple(cut)].T, cmap="gray", vmin=low, vmax=high if high > low else low + 1,
            aspect=spacing[rows] / spacing[columns], origin="upper" if fixed == 2 else "lower",
            interpolation="nearest",
        )  # fmt: skip
        for labelled, colour, line in ((truth, REFERENCE, "-"), (found, PREDICTION, "--")):
            for _, values in structures:
                mask = np.isin(labelled[tuple(cut)], values).T
                if mask.any():
                    _outline(axes, mask, colour, line)
        if len(structures) > 1:
            for name, values in structures:
                mask = np.isin(truth[tuple(cut)], values).T
                if mask.any():
                    row, column = np.argwhere(mask).mean(axis=0)
                    axes.text(column, row, name, fontsize=7, ha="center", va="center", **written)
        # Outlines must not widen the view.
        width, depth = grey[tuple(cut)].shape
        axes.set_xlim(-0.5, width - 0.5)
        axes.set_ylim(*((depth - 0.5, -0.5) if fixed == 2 else (-0.5, depth - 0.5)))
        axes.set_axis_off()
        left, right, bottom, top = list(letters)
        for letter, x, y in (
            (left, 0.02, 0.5), (right, 0.98, 0.5), (bottom, 0.5, 0.02), (top, 0.5, 0.98),
        ):  # fmt: skip
            axes.text(
                x, y, letter, transform=axes.transAxes, fontsize=8, weight="bold",
                ha={0.02: "left", 0.98: "right"}.get(x, "center"),
                va={0.02: "bottom", 0.98: "top"}.get(y, "center"), **written,
            )  # fmt: skip
    panels[0].legend(
        handles=[
            Line2D([], [], color=REFERENCE, label="reference"),
            Line2D([], [], color=PREDICTION, linestyle="--", label="prediction"),
        ],
        loc="lower left", fontsize=7.5, labelcolor="white", facecolor=INK, edgecolor="none",
        frameon=True, framealpha=0.75,
    )  # fmt: skip
    return png_uri(canvas)


def _where(
    shown: NDArray[np.bool_], main: NDArray[np.bool_], spacing: list[float]
) -> tuple[list[int], tuple[slice, ...]]:
    """The slice of each axis that holds most of ``main``, and the part of the image to show."""
    if not shown.any():
        return [n // 2 for n in shown.shape], tuple(slice(0, n) for n in shown.shape)
    centre = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        centre.append(int((main if main.any() else shown).sum(axis=others).argmax()))
    box = []
    for axis, inner in enumerate(bounding_box(shown)):
        rim = int(np.ceil(MARGIN / spacing[axis]))
        box.append(slice(max(0, inner.start - rim), min(shown.shape[axis], inner.stop + rim)))
    return centre, tuple(box)


def _outline(axes: Any, mask: NDArray[np.bool_], colour: str, line: str) -> None:
    # The rim closes outlines that reach the border of what is shown.
    rows, columns = (np.arange(-1, n + 1) for n in mask.shape)
    padded = np.pad(mask, 1).astype(float)
    axes.contour(columns, rows, padded, [0.5], colors=[colour], linestyles=[line], linewidths=1.4)
