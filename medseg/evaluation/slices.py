"""What the report's viewer shows of a case: axial slices of image, reference and predictions.

Small enough for hundreds of cases in one file: the part of the image around the structures, as
many slices and as fine as the room for a case allows. Label maps stay exact on the shown pixels.
"""

from __future__ import annotations

import base64
import io
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medseg.config import Labels
from medseg.evaluation.overlays import MARGIN, grey_window
from medseg.imaging import check_same_grid, read_label_map, read_nifti
from medseg.project import UserError

STEPS = ((256, 24, 75), (256, 24, 50), (208, 20, 40), (160, 16, 35), (128, 12, 30), (96, 8, 25))
"""Pixels along a slice, slices, and JPEG's quality: the first that fits is taken, else the last."""

BLOCK = 8
"""JPEG's blocks, in pixels: slices start at whole ones, so that none shines into the next."""


@dataclass(frozen=True)
class _Stack:
    """A case as the viewer sees it; arrays ``[column, row, slice]`` in LPS order.

    Attributes:
        grey: 0 to 255.
        labels: Name to label map: ``reference``, and a number for each run.
        wrong: Square millimetres of each slice where the first run differs from the reference.
        used: Whether a slice holds anything.
        first: Index in the image of the first slice.
        total: Slices in the image.
        spacing: Millimetres between voxel centres.
    """

    grey: NDArray[np.uint8]
    labels: Mapping[str, NDArray[np.uint8]]
    wrong: NDArray[np.float64]
    used: NDArray[np.bool_]
    first: int
    total: int
    spacing: tuple[float, float, float]


def case_slices(
    image: Path,
    reference: Path,
    predictions: Mapping[str, Path],
    labels: Labels,
    *,
    channel: str,
    room: int,
) -> dict[str, Any]:
    """The slices of a case, for the viewer.

    Args:
        image: NIfTI file; of four dimensions, the first channel is shown.
        reference: Label map on the same grid.
        predictions: Number of the run to its label map on the same grid; ``"0"`` is there.
        labels: The structures.
        channel: nnU-Net's name of the channel, which decides what is black and what is white.
        room: Characters that the result may take as JSON, if that can be done.

    Returns:
        ``image``: the slices below each other, a data URI; ``labels``: name to bytes of
        ``[slice, row, column]``, deflated, in base64; ``width``, ``height``, ``pitch`` (rows from a
        slice to the next in ``image``); ``aspect`` (height of a pixel by its width); ``slices``:
        numbers in the image, from 1; ``total``; ``wrong``: mm² where run 0 differs, a number each.

    Raises:
        UserError: A file cannot be read, or is on another grid.
    """
    stack = _stack(image, reference, predictions, labels, channel)
    result: dict[str, Any] = {}
    for side, count, quality in STEPS:
        result = _encoded(stack, side, count, quality)
        if len(result["image"]) + sum(map(len, result["labels"].values())) <= room:
            break
    return result


def _stack(
    image: Path, reference: Path, predictions: Mapping[str, Path], labels: Labels, channel: str
) -> _Stack:
    grey = read_nifti(image).channels[0].turned("LPS")
    maps = {}
    for name, path in {"reference": reference, **predictions}.items():
        volume = read_label_map(path).turned("LPS")
        check_same_grid(grey, volume)
        if volume.array.max(initial=0) > 255:
            raise UserError(f"{path.name} holds labels above 255, which the viewer cannot show.")
        maps[name] = volume.array.astype(np.uint8, copy=False)
    box = _box(maps.values(), grey.spacing)
    maps = {name: array[box] for name, array in maps.items()}
    known = np.zeros(256, bool)
    known[[value for _, values in labels.structures.values() for value in values]] = True
    truth = maps["reference"]
    used = np.logical_or.reduce([known[array] for array in maps.values()])
    wrong = (maps["0"] != truth) & (known[truth] | known[maps["0"]])
    if labels.ignore is not None:
        wrong &= truth != labels.ignore
    low, high = grey_window(grey.array, channel)
    scaled = np.clip((grey.array[box].astype(np.float32) - low) * (255 / (high - low)), 0, 255)
    return _Stack(
        scaled.astype(np.uint8),
        maps,
        wrong.sum(axis=(0, 1)) * (grey.spacing[0] * grey.spacing[1]),
        used.any(axis=(0, 1)),
        box[2].start,
        grey.shape[2],
        grey.spacing,
    )


def _box(
    maps: Iterable[NDArray[np.uint8]], spacing: tuple[float, float, float]
) -> tuple[slice, ...]:
    """The part of the image around all that is not zero; the whole where there is nothing."""
    shape: tuple[int, ...] = ()
    found: list[tuple[int, int]] = []
    for array in maps:
        shape = array.shape
        place: list[Any] = [slice(None)] * 3
        own = [(0, 0)] * 3
        for axis in (2, 1, 0):  # slices first: they lie in one piece
            others = tuple({0, 1, 2} - {axis})
            filled = np.flatnonzero(array[tuple(place)].any(axis=others))
            if not filled.size:
                break
            own[axis] = (int(filled[0]), int(filled[-1]) + 1)
            place[axis] = slice(*own[axis])
        else:
            joined = zip(own, found or own, strict=True)
            found = [(min(a[0], b[0]), max(a[1], b[1])) for a, b in joined]
    if not found:
        return tuple(slice(0, size) for size in shape)
    rims = (*(math.ceil(MARGIN / step) for step in spacing[:2]), 1)
    return tuple(
        slice(max(0, first - rim), min(size, last + rim))
        for (first, last), rim, size in zip(found, rims, shape, strict=True)
    )


def _encoded(stack: _Stack, side: int, count: int, quality: int) -> dict[str, Any]:
    chosen = _chosen(stack, count)
    step = min(math.ceil(max(stack.grey.shape[:2]) / side), *stack.grey.shape[:2])
    grey = _coarser(stack.grey[..., chosen], step)
    # Rows and columns as in a picture; slices from the lowest.
    grey = grey.transpose(2, 1, 0)
    _, height, width = grey.shape
    padded = np.pad(grey, ((0, 0), (0, -height % BLOCK), (0, 0)), mode="edge")
    pixels = Image.fromarray(padded.reshape(-1, width))
    buffer = io.BytesIO()
    pixels.save(buffer, "JPEG", quality=quality, optimize=True)
    middle = step // 2
    size = (width * step, height * step)
    maps = {
        name: np.ascontiguousarray(
            array[: size[0], : size[1], chosen][middle::step, middle::step].transpose(2, 1, 0)
        )
        for name, array in stack.labels.items()
    }
    return {
        "image": "data:image/jpeg;base64," + _base64(buffer.getvalue()),
        "labels": {name: _base64(zlib.compress(array.tobytes())) for name, array in maps.items()},
        "width": width,
        "height": height,
        "pitch": padded.shape[1],
        "aspect": round(stack.spacing[1] / stack.spacing[0], 4),
        "slices": [stack.first + int(index) + 1 for index in chosen],
        "total": stack.total,
        "wrong": [round(float(area), 1) for area in stack.wrong[chosen]],
    }


def _chosen(stack: _Stack, count: int) -> NDArray[np.intp]:
    """Slices with anything on them and the two beside; evenly spread where these are too many.

    The one where prediction and reference differ most is among them.
    """
    places = np.flatnonzero(stack.used)
    low, high = (places[0] - 1, places[-1] + 1) if places.size else (0, stack.used.size - 1)
    span = np.arange(max(low, 0), min(high, stack.used.size - 1) + 1)
    if span.size > count:
        span = span[np.linspace(0, span.size - 1, count).round().astype(int)]
        worst = int(stack.wrong.argmax())
        if stack.wrong[worst]:
            span[np.abs(span - worst).argmin()] = worst
    return span


def _coarser(array: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """Means of ``step`` by ``step`` pixels; what is left over at the far edges is cut off."""
    if step == 1:
        return array
    columns, rows, slices = array.shape
    whole = array[: columns // step * step, : rows // step * step]
    blocks = whole.reshape(columns // step, step, rows // step, step, slices)
    coarse: NDArray[np.uint8] = blocks.mean(axis=(1, 3)).astype(np.uint8)
    return coarse


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
