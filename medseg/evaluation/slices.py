"""Slices of every case for the report's viewer: small pictures of image and label maps."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medseg.evaluation.overlays import grey_window
from medseg.imaging import read_nifti
from medseg.nnunet.devices import available_cpus
from medseg.project import UserError

SLICES = 14
"""Axial slices of a case at most: with 300 cases the report stays below 30 MB."""

PIXELS = 208
"""The longer side of a slice at most."""

MARGIN = 25.0  # mm shown around the structures
QUALITY = 55  # of WebP: grey values are to be looked at, not measured


@dataclass(frozen=True)
class CaseFiles:
    """The files of a case; label maps lie on the image's grid.

    Attributes:
        case: Identifier.
        image: NIfTI; of four dimensions, the first channel is shown.
        reference: Label map.
        prediction: Label map.
    """

    case: str
    image: Path
    reference: Path
    prediction: Path


@dataclass(frozen=True)
class Slices:
    """Axial slices one below the other, as radiologists see them: the patient's right at the left.

    Attributes:
        count: How many.
        width: Pixels of a slice.
        height: Pixels of a slice.
        numbers: The slice numbers in the image, from 1 at the feet.
        of: The number of slices in the image.
        grey: WebP as a data URI, in the window.
        labels: Lossless WebP as a data URI; red is the reference's label, green the prediction's,
            each by its place among the sorted values of the task, from 1; 0 is background.
    """

    count: int
    width: int
    height: int
    numbers: tuple[int, ...]
    of: int
    grey: str
    labels: str


def all_slices(
    cases: Sequence[CaseFiles], values: Sequence[int], channel: str
) -> Iterator[Slices | str]:
    """Slices of each case, in order; or a sentence why there are none.

    Args:
        cases: The cases.
        values: Label values of the task, sorted, without background.
        channel: nnU-Net's channel name; ``CT`` gets the soft-tissue window.
    """

    def one(files: CaseFiles) -> Slices | str:
        try:
            return case_slices(files, values, channel)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(available_cpus()) as pool:  # unpacking and scaling free the lock
        yield from pool.map(one, cases)


def case_slices(files: CaseFiles, values: Sequence[int], channel: str) -> Slices:
    """Slices through the structures of a case, spread evenly from their lowest to their highest.

    Args:
        files: The case's files.
        values: Label values of the task, sorted, without background.
        channel: nnU-Net's channel name.

    Raises:
        UserError: A file cannot be read, or the grids differ.
    """
    volumes = [
        read_nifti(path).channels[0].turned("LPS")
        for path in (files.image, files.reference, files.prediction)
    ]
    grey, reference, prediction = (volume.array for volume in volumes)
    if not grey.shape == reference.shape == prediction.shape:
        raise UserError(
            f"{files.case}: image {grey.shape}, reference {reference.shape} and prediction "
            f"{prediction.shape} have other sizes: predict it again."
        )
    spacing = volumes[0].spacing
    box, numbers = _chosen((reference > 0) | (prediction > 0), spacing)
    size = _pixels(box, spacing)
    low, high = grey_window(grey, channel)
    table = np.zeros(max(values) + 1, np.uint8)
    table[list(values)] = np.arange(1, len(values) + 1)
    shown, labelled = [], []
    for number in numbers:
        place = (*box, number)
        scaled = (grey[place].T.astype(np.float32) - low) / (high - low)
        picture = Image.fromarray((scaled.clip(0, 1) * 255).astype(np.uint8))
        shown.append(np.asarray(picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)))
        maps = [_indices(array[place].T, table, size) for array in (reference, prediction)]
        labelled.append(np.stack([*maps, np.zeros_like(maps[0])], axis=-1))
    return Slices(
        count=len(numbers),
        width=size[0],
        height=size[1],
        numbers=tuple(number + 1 for number in numbers),
        of=grey.shape[2],
        grey=_uri(np.concatenate(shown), quality=QUALITY, method=2),
        labels=_uri(np.concatenate(labelled), lossless=True, exact=True, method=2),
    )


def _chosen(
    shown: NDArray[np.bool_], spacing: Sequence[float]
) -> tuple[tuple[slice, slice], list[int]]:
    """The part of a slice to show, and which slices."""
    filled = [np.flatnonzero(shown.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    if not filled[0].size:  # neither reference nor prediction has anything
        filled = [np.arange(length) for length in shown.shape]
    box = []
    for axis in (0, 1):
        rim = int(np.ceil(MARGIN / spacing[axis]))
        first, last = filled[axis][0] - rim, filled[axis][-1] + 1 + rim
        box.append(slice(max(0, int(first)), min(shown.shape[axis], int(last))))
    lowest, highest = int(filled[2][0]), int(filled[2][-1])
    count = min(SLICES, highest - lowest + 1)
    spread = np.linspace(lowest, highest, count).round().astype(int)
    return (box[0], box[1]), [int(number) for number in dict.fromkeys(spread.tolist())]


def _pixels(box: Sequence[slice], spacing: Sequence[float]) -> tuple[int, int]:
    """Width and height of a slice in true proportions; no more pixels than the image has."""
    lengths = [(part.stop - part.start) * step for part, step in zip(box, spacing, strict=False)]
    pixel = max(max(lengths) / PIXELS, min(spacing[:2]))
    width, height = (max(1, round(length / pixel)) for length in lengths)
    return width, height


def _indices(
    labels: NDArray[Any], table: NDArray[np.uint8], size: tuple[int, int]
) -> NDArray[np.uint8]:
    known = np.where(labels < len(table), labels, 0).astype(np.intp)
    picture = Image.fromarray(table[known])
    return np.asarray(picture.resize(size, Image.Resampling.NEAREST))


def _uri(pixels: NDArray[np.uint8], **options: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", **options)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
