"""The report's charts, as SVG in data URIs.

Colours are those of Okabe and Ito, which stay apart for colour-blind readers; nothing is told by
colour alone.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from medseg.evaluation.facts import CaseFacts
from medseg.nnunet import History

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9",
)  # fmt: skip
INK, FAINT = "#1f2933", "#d5dbe1"
LINES = ("-", "--", "-.", ":")
PARTS = {"validation": (BLUE, "o"), "test": (VERMILLION, "D")}
"""Colour and marker of each set of cases; the template's legend says the same."""

STYLE = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#7b8794",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,  # names may hold a $
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.fonttype": "path",  # the same letters on every machine
    "svg.hashsalt": "medseg",
}

Points = Mapping[str, Mapping[str, Sequence[float]]]
"""Part (validation, test) to structure to the values of its cases."""


@dataclass(frozen=True)
class Figure:
    """A picture of the report.

    Attributes:
        uri: The picture, as a data URI.
        alt: What it shows, for readers who do not see it.
        caption: What stands below it.
    """

    uri: str
    alt: str
    caption: str = ""


def training_figure(history: History) -> Figure:
    """Losses, Dice of each structure and learning rate over the epochs.

    Args:
        history: What the training has logged, of one epoch at least.
    """
    names = history.structures
    dice = np.array(history.dice).reshape(-1, len(names))
    epochs = np.arange(1, len(history) + 1)
    with _canvas(10, 2.7) as (canvas, finish):
        losses, scores, rate = canvas.subplots(1, 3)
        losses.set_title("Loss")
        for values, name, colour, line in (
            (history.train_losses, "training", BLUE, "-"),
            (history.val_losses, "validation", VERMILLION, "--"),
        ):
            losses.plot(epochs, values, line, color=colour, label=name)
        losses.legend()
        scores.set_title("Dice on validation patches")
        cycle = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
        for index, name in enumerate(names):
            style = {"color": cycle[index % 6], "linestyle": LINES[index // 6 % 4]}
            scores.plot(epochs[: len(dice)], dice[:, index], label=name, **style)
        scores.set_ylim(-0.02, 1.02)
        scores.legend(ncols=1 + len(names) // 7, fontsize=8 if len(names) < 7 else 6)
        rate.set_title("Learning rate")
        rate.plot(epochs, history.learning_rates, color=GREEN)
        rate.set_ylim(bottom=0)
        for axes in (losses, scores, rate):
            axes.set_xlabel("Epoch")
            axes.locator_params(axis="x", integer=True)
            if len(epochs) == 1:  # a line of one point is invisible
                for line in axes.lines:
                    line.set_marker("o")
        uri = finish()
    last = ", ".join(f"{name} {value:.2f}" for name, value in zip(names, dice[-1], strict=True))
    train, val, rates = history.train_losses, history.val_losses, history.learning_rates
    alt = (
        f"Three curves over {len(epochs)} epochs. Training loss from {train[0]:.2f} to "
        f"{train[-1]:.2f}, validation loss from {val[0]:.2f} to {val[-1]:.2f}. Dice at the end: "
        f"{last}. Learning rate from {rates[0]:.2g} to {rates[-1]:.2g}."
    )
    return Figure(uri, alt)


def dataset_figure(cases: Sequence[CaseFacts]) -> Figure:
    """How spacing, size, intensity and volumes are distributed over the cases."""
    spacing = np.array([case.spacing for case in cases])
    size = np.array([case.size for case in cases])
    ranges = np.array([case.intensity for case in cases if case.intensity is not None])
    structures = list(dict.fromkeys(name for case in cases for name in case.volumes_ml))
    volumes = [[c.volumes_ml[name] for c in cases if name in c.volumes_ml] for name in structures]
    with _canvas(10, 2.7) as (canvas, finish):
        panels = canvas.subplots(1, 4 if len(ranges) else 3)
        _histogram(panels[0], "Spacing (mm)", [spacing[:, 0], spacing[:, 2]])
        _histogram(panels[1], "Size (voxels)", [size[:, 0], size[:, 2]])
        panels[1].legend(["columns (i)", "slices (k)"], fontsize=8)
        if len(ranges):
            _histogram(panels[2], "Intensity", [ranges[:, 0], ranges[:, 1]])
            panels[2].legend(["smallest", "largest"], fontsize=8)
        panels[-1].set_title("Volume (ml)")
        for index, values in enumerate(volumes):
            _strip(panels[-1], index, values, BLUE, "o")
        panels[-1].set_ylim(bottom=0)
        _name_ticks(panels[-1], structures)
        uri = finish()
    alt = (
        f"Distributions over {len(cases)} cases. Spacing in plane {_range(spacing[:, 0])} mm, "
        f"between slices {_range(spacing[:, 2])} mm; {_range(size[:, 0])} columns, "
        f"{_range(size[:, 2])} slices. "
        + " ".join(
            f"{name}: {_range(np.array(v))} ml."
            for name, v in zip(structures, volumes, strict=True)
        )
    )
    return Figure(uri, alt)


def metric_figure(metric: str, unit: str, points: Points) -> Figure | None:
    """One metric of every case: points over a box of quartiles, a column for each structure.

    Args:
        metric: Its name.
        unit: Its unit, or nothing.
        points: Defined values only.

    Returns:
        The figure, or None where no case has a defined value.
    """
    names = list(dict.fromkeys(name for part in points.values() for name in part))
    if not any(values for part in points.values() for values in part.values()):
        return None
    width = min(10.0, max(2.5, 0.62 * len(names) * len(points)))  # 2.5: four in a row
    sentences = []
    with _canvas(width, 2.8) as (canvas, finish):
        axes = canvas.subplots()
        axes.set_title(f"{metric} ({unit})" if unit else metric)
        for shift, (part, values) in zip(_shifts(len(points)), points.items(), strict=True):
            colour, marker = PARTS[part]
            for index, name in enumerate(names):
                numbers = values.get(name, ())
                _strip(
                    axes, index + shift, numbers, colour, marker, 0.32 if len(points) > 1 else 0.5
                )
                if numbers:
                    sentences.append(f"{part}, {name}: median {np.median(numbers):.3g}")
        axes.margins(y=0.12)  # room for the markers
        if unit:
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        else:
            axes.set_ylim(top=1.02)
            axes.set_yticks([tick for tick in axes.get_yticks() if axes.get_ylim()[0] <= tick <= 1])
        _name_ticks(axes, names)
        uri = finish()
    return Figure(uri, f"{metric} of every case. {'; '.join(sentences)}.")


def difference_figure(
    metric: str, unit: str, points: Mapping[str, Sequence[float]], *, larger_is_better: bool
) -> Figure | None:
    """What a metric of every case changes by from one model to another: a column a structure.

    Args:
        metric: Its name.
        unit: Its unit, or nothing.
        points: Structure to the differences of its cases, defined ones only.
        larger_is_better: Whether a case above the line is one that gained.

    Returns:
        The figure, or None where no case has a difference that is defined.
    """
    if not any(points.values()):
        return None
    with _canvas(min(10.0, max(3.2, 0.9 * len(points))), 2.8) as (canvas, finish):
        axes = canvas.subplots()
        axes.set_title(f"Difference of {metric}{f' ({unit})' if unit else ''}")
        axes.axhline(0, color=INK, linewidth=1)
        for index, values in enumerate(points.values()):
            _strip(axes, index, values, BLUE, "o")
        axes.margins(y=0.12)
        axes.set_ylabel("better ↑" if larger_is_better else "worse ↑")
        _name_ticks(axes, list(points))
        uri = finish()
    medians = [f"{name}: median {np.median(v):.3g}" for name, v in points.items() if len(v)]
    return Figure(uri, f"Difference of {metric} in every case. {'; '.join(medians)}.")


@contextmanager
def report_style() -> Iterator[None]:
    """Matplotlib in the report's style, whatever others have set: nnU-Net leaves seaborn's."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def png_uri(canvas: Canvas) -> str:
    """A matplotlib figure as a PNG in a data URI."""
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", facecolor=canvas.get_facecolor())
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


# --- parts of charts ---


@contextmanager
def _canvas(width: float, height: float) -> Iterator[tuple[Canvas, Any]]:
    """A figure of that many inches, and what turns it into a URI; in the report's style."""
    with report_style():
        canvas = Canvas(figsize=(width, height), layout="constrained")

        def finish() -> str:
            buffer = io.BytesIO()
            canvas.savefig(buffer, format="svg", metadata={"Date": None})
            encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
            return f"data:image/svg+xml;base64,{encoded}"

        yield canvas, finish


def _histogram(axes: Axes, title: str, series: Sequence[Any]) -> None:
    axes.set_title(title)
    low, high = min(map(np.min, series)), max(map(np.max, series))
    bins = np.linspace(low, high if high > low else low + 1, 11).tolist()
    # The second one is hatched and not filled, so that the first shows through.
    for values, colour, fill, hatch in zip(
        series, (BLUE, VERMILLION), (BLUE + "55", "none"), ("", "////"), strict=False
    ):
        axes.hist(
            values, bins, histtype="stepfilled", facecolor=fill, edgecolor=colour, hatch=hatch,
            linewidth=1.2,
        )  # fmt: skip
    axes.legend(["in plane (i)", "between slices (k)"], fontsize=8)
    axes.set_ylabel("Cases")
    axes.locator_params(axis="y", integer=True, nbins=5)
    axes.margins(y=0.35)
    axes.locator_params(axis="x", nbins=5)


def _strip(
    axes: Axes, place: float, values: Sequence[float], colour: str, marker: str, width: float = 0.5
) -> None:
    """Quartiles as a box where there are enough values, and every value as a point."""
    if len(values) >= 4:
        axes.boxplot(
            list(values), positions=[place], widths=width, showfliers=False, patch_artist=True,
            boxprops={"facecolor": colour + "22", "edgecolor": colour},
            medianprops={"color": colour, "linewidth": 2},
            whiskerprops={"color": colour}, capprops={"color": colour},
        )  # fmt: skip
    # Spread by rank, the same every time.
    spread = (np.argsort(np.argsort(values)) * 0.618 % 1 - 0.5) * width * 0.7
    axes.plot(place + spread, values, marker, color=colour, alpha=0.75, markersize=4.5, mew=0)


def _name_ticks(axes: Axes, names: Sequence[str]) -> None:
    turn = len(names) > 4 or max((len(name) for name in names), default=0) > 14
    axes.set_xticks(
        range(len(names)),
        [name if len(name) <= 24 else name[:23] + "…" for name in names],
        rotation=35 if turn else 0,
        ha="right" if turn else "center",
    )
    axes.set_xlim(-0.6, max(len(names), 1) - 0.4)
    axes.grid(visible=False, axis="x")


def _shifts(count: int) -> list[float]:
    return [0.0] if count == 1 else [-0.2, 0.2]


def _range(values: Any) -> str:
    low, high = f"{values.min():.3g}", f"{values.max():.3g}"
    return low if low == high else f"{low} to {high}"
