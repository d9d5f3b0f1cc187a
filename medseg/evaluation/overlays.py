"""Slices of a case with the outlines of reference and prediction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from medseg.config import Labels, Structure
from medseg.evaluation.figures import INK, Figure, png_uri, report_style
from medseg.imaging import read_nifti

REFERENCE, PREDICTION = "#56B4E9", "#E69F00"  # Okabe and Ito's sky blue and orange
CT_WINDOW = (-160.0, 240.0)  # HU: the soft-tissue window, level 40 and width 400
MARGIN = 30.0  # mm shown around the structures

WRITTEN = {
    "color": "white",
    "path_effects": [withStroke(linewidth=2, foreground=INK)],
    "parse_math": False,  # names may hold a $
}
"""How text on the picture looks."""


@dataclass(frozen=True)
class View:
    """A slice, of arrays in LPS order.

    Attributes:
        title: Its name.
        fixed: The axis that it cuts across.
        letters: Where left, right, bottom and top of the picture are in the patient.
    """

    title: str
    fixed: int
    letters: str

    @property
    def columns(self) -> int:
        """The axis that runs to the right of the picture."""
        return 1 if self.fixed == 0 else 0

    @property
    def rows(self) -> int:
        """The axis that runs along its height: down where axial, else up."""
        return 1 if self.fixed == 2 else 2

    @property
    def downwards(self) -> bool:
        """Whether rows are counted from the top."""
        return self.fixed == 2


VIEWS = (View("axial", 2, "RLPA"), View("coronal", 1, "RLIS"), View("sagittal", 0, "APIS"))


@dataclass(frozen=True)
class _Scene:
    """What the views show; arrays and axes in LPS order.

    Attributes:
        image: Grey values.
        reference: Label map.
        prediction: Label map.
        spacing: Millimetres between voxel centres.
        window: The values that are shown black and white.
        structures: What is outlined.
        centre: The voxel that the slices go through.
        box: The part of the image that is shown.
    """

    image: NDArray[Any]
    reference: NDArray[Any]
    prediction: NDArray[Any]
    spacing: tuple[float, float, float]
    window: tuple[float, float]
    structures: list[Structure]
    centre: list[int]
    box: tuple[slice, ...]

    def cut(self, array: NDArray[Any], view: View) -> NDArray[Any]:
        """The slice of an array that a view shows, as ``[row, column]``."""
        place: list[Any] = list(self.box)
        place[view.fixed] = self.centre[view.fixed]
        shown: NDArray[Any] = array[tuple(place)]
        return shown.T

    def extent(self, axis: int) -> float:
        """Millimetres that are shown along an axis."""
        return float(self.box[axis].stop - self.box[axis].start) * self.spacing[axis]


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
    volumes = [
        read_nifti(path).channels[0].turned("LPS") for path in (image, reference, prediction)
    ]
    grey, truth, predicted = (volume.array for volume in volumes)
    spacing = volumes[0].spacing
    window = grey_window(grey, channel)
    structures = list(labels.structures.values())
    values = sorted({value for structure in structures for value in structure.values})
    main = np.isin(truth, values)
    centre, box = _where(main | np.isin(predicted, values), main, spacing)
    with report_style():
        uri = _draw(_Scene(grey, truth, predicted, spacing, window, structures, centre, box))
    alt = (
        f"Case {case}: {', '.join(view.title for view in VIEWS)} slice with the outline of the "
        "reference (solid, blue) and of the prediction (dashed, orange)."
    )
    return Figure(uri, alt, caption)


def grey_window(grey: NDArray[Any], channel: str) -> tuple[float, float]:
    """The values that are shown black and white.

    Args:
        grey: Voxel values.
        channel: nnU-Net's channel name; ``CT`` gets the soft-tissue window, anything else its 1st
            to 99th percentile.
    """
    if channel.upper() == "CT":
        return CT_WINDOW
    sample = grey if grey.size < 1_000_000 else grey[::3, ::3, ::3]  # sorting all takes seconds
    low, high = (float(value) for value in np.percentile(sample, (1, 99)))
    return low, high if high > low else low + 1


def _draw(scene: _Scene) -> str:
    """The three views side by side, as a data URI."""
    # Panels of one height; the widths follow from the anatomy.
    ratios = [scene.extent(view.columns) / scene.extent(view.rows) for view in VIEWS]
    height = min(3.4, 9.6 / sum(ratios))
    size = (height * sum(ratios) + 0.1, height)
    canvas = Canvas(figsize=size, dpi=120, facecolor="black")
    panels = canvas.subplots(1, 3, gridspec_kw={"width_ratios": ratios})
    canvas.subplots_adjust(0.004, 0.01, 0.996, 0.99, wspace=0.02)
    for axes, view in zip(panels, VIEWS, strict=True):
        _panel(axes, scene, view)
    panels[0].legend(
        handles=[
            Line2D([], [], color=REFERENCE, label="reference"),
            Line2D([], [], color=PREDICTION, linestyle="--", label="prediction"),
        ],
        loc="lower left", fontsize=7.5, labelcolor="white", facecolor=INK, edgecolor="none",
        frameon=True, framealpha=0.75,
    )  # fmt: skip
    return png_uri(canvas)


def _panel(axes: Any, scene: _Scene, view: View) -> None:
    grey = scene.cut(scene.image, view)
    axes.imshow(
        grey, cmap="gray", vmin=scene.window[0], vmax=scene.window[1],
        aspect=scene.spacing[view.rows] / scene.spacing[view.columns],
        origin="upper" if view.downwards else "lower", interpolation="nearest",
    )  # fmt: skip
    for array, colour, line in (
        (scene.reference, REFERENCE, "-"),
        (scene.prediction, PREDICTION, "--"),
    ):
        labelled = scene.cut(array, view)
        for name, values in scene.structures:
            mask = np.isin(labelled, values)
            if not mask.any():
                continue
            _outline(axes, mask, colour, line)
            if array is scene.reference and len(scene.structures) > 1:
                row, column = np.argwhere(mask).mean(axis=0)
                axes.text(column, row, name, fontsize=7, ha="center", va="center", **WRITTEN)
    # Outlines must not widen the view.
    rows, columns = grey.shape
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(*((rows - 0.5, -0.5) if view.downwards else (-0.5, rows - 0.5)))
    axes.set_axis_off()
    for letter, x, y in zip(
        view.letters, (0.02, 0.98, 0.5, 0.5), (0.5, 0.5, 0.02, 0.98), strict=True
    ):
        axes.text(
            x, y, letter, transform=axes.transAxes, fontsize=8, weight="bold",
            ha={0.02: "left", 0.98: "right"}.get(x, "center"),
            va={0.02: "bottom", 0.98: "top"}.get(y, "center"), **WRITTEN,
        )  # fmt: skip


def _where(
    shown: NDArray[np.bool_], main: NDArray[np.bool_], spacing: tuple[float, float, float]
) -> tuple[list[int], tuple[slice, ...]]:
    """The slice of each axis that holds most of ``main``, and the part of the image to show."""
    if not shown.any():
        return [n // 2 for n in shown.shape], tuple(slice(0, n) for n in shown.shape)
    centre = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        centre.append(int((main if main.any() else shown).sum(axis=others).argmax()))
    box = []
    for axis, inner in enumerate(find_objects(shown.view(np.uint8))[0]):
        rim = int(np.ceil(MARGIN / spacing[axis]))
        box.append(slice(max(0, inner.start - rim), min(shown.shape[axis], inner.stop + rim)))
    return centre, tuple(box)


def _outline(axes: Any, mask: NDArray[np.bool_], colour: str, line: str) -> None:
    # The rim closes outlines that reach the border of what is shown.
    rows, columns = (np.arange(-1, n + 1) for n in mask.shape)
    padded = np.pad(mask, 1).astype(float)
    axes.contour(columns, rows, padded, [0.5], colors=[colour], linestyles=[line], linewidths=1.4)
