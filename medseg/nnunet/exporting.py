"""From the network's grid back to the image's: resampled, decided, uncropped, slices by slices.

nnU-Net resamples all heads in double precision and keeps them, and their probabilities, whole. Here
a block of slices of the image is made at a time, so that memory is that of the block.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

T = TypeVar("T")

BLOCK = 1 << 21
"""About how many values a block has, heads counted: a few MB, which stay in the CPU's cache."""


@dataclass(frozen=True)
class Block:
    """Some slices of a segmented case, on the grid of its image.

    Attributes:
        place: Where the slices lie along z.
        probabilities: ``(heads, slices, y, x)``, float32: the softmax over all labels, or each
            region's sigmoid. Outside of nnU-Net's crop it is background.
        labels: Label values ``(slices, y, x)``.
    """

    place: slice
    probabilities: NDArray[np.float32]
    labels: NDArray[Any]


@dataclass(frozen=True)
class _Crop:
    """The part of an image that nnU-Net predicts; axes are the image's: z, y, x.

    Attributes:
        logits: ``(heads, *shape)`` on the network's grid.
        box: Where it lies in the image.
        shape: The image's.
        nearest: The axis along which the nearest slice is taken, where there is one.
    """

    logits: torch.Tensor
    box: tuple[slice, ...]
    shape: tuple[int, ...]
    nearest: int | None

    def heads(self, start: int, stop: int) -> Iterator[torch.Tensor]:
        """The resampled heads of some slices, which are numbered within the crop."""
        size = [place.stop - place.start for place in self.box]
        if list(self.logits.shape[1:]) == size:
            yield from (head[start:stop].float() for head in self.logits)
            return
        have = self.logits.shape[1:]
        below, above, weight = _between(have[0], size[0], start, stop)
        for head in self.logits:
            if self.nearest == 0:
                slices = head[torch.where(weight < 0.5, below, above)].float()
            else:
                lower, upper = head[below].float(), head[above].float()
                slices = torch.lerp(lower, upper, weight.float()[:, None, None])
            if self.nearest:
                first, second, way = _between(have[self.nearest], size[self.nearest])
                taken = torch.where(way < 0.5, first, second)
                slices = slices.index_select(self.nearest, taken)
            if list(slices.shape[1:]) != size[1:]:
                slices = torch.nn.functional.interpolate(
                    slices[None], size[1:], mode="bilinear", align_corners=False
                )[0]
            yield slices.half().float()


def _between(
    have: int, want: int, start: int = 0, stop: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Between which two of ``have`` slices each of ``want`` lies, and how near to the upper."""
    index = torch.arange(start, want if stop is None else stop, dtype=torch.float64)
    position = ((index + 0.5) * (have / want) - 0.5).clamp(0, have - 1)
    below = position.floor().long()
    return below, (below + 1).clamp(max=have - 1), position - below


class Exporter:
    """Makes label maps and probabilities of logits, as nnU-Net's ``export_prediction`` does.

    Resampled logits are rounded to float16, in which nnU-Net keeps them, so that what is level
    there is level here, and the lower label wins. Interpolation itself is in single precision,
    nnU-Net's in double: one voxel in 100,000, or fewer, is rounded to the other side of a tie.

    Args:
        plans: nnU-Net's ``PlansManager``.
        configuration: Its ``ConfigurationManager``.
        settings: The configuration's settings in the plans.
        labels: Its ``LabelManager``.
    """

    def __init__(
        self, plans: Any, configuration: Any, settings: Mapping[str, Any], labels: Any
    ) -> None:
        self._plans, self._configuration = plans, configuration
        self._settings, self._labels = settings, labels

    @property
    def values(self) -> tuple[int, ...]:
        """The label value that each head stands for."""
        if self._labels.has_regions:
            return tuple(int(value) for value in self._labels.regions_class_order)
        return tuple(range(self._labels.num_segmentation_heads))

    def labels(self, logits: torch.Tensor, properties: Mapping[str, Any]) -> NDArray[Any]:
        """The label map.

        Args:
            logits: ``(heads, *shape)`` on the network's grid.
            properties: nnU-Net's record of the preprocessing.

        Returns:
            Label values ``(z, y, x)``.
        """
        crop = self._crop(logits, properties)
        whole = np.zeros(crop.shape, dtype=self._dtype)
        inside = whole[crop.box]

        def decide(start: int, stop: int) -> None:
            inside[start:stop] = self._decide(crop.heads(start, stop), 0.0)

        for _ in _in_order(decide, _blocks(inside.shape, 4)):  # heads come one after the other
            pass
        return whole

    def blocks(self, logits: torch.Tensor, properties: Mapping[str, Any]) -> Iterator[Block]:
        """Probabilities, and the labels of :meth:`labels`, from the first slice to the last.

        Args:
            logits: ``(heads, *shape)`` on the network's grid.
            properties: nnU-Net's record of the preprocessing.

        Returns:
            Blocks of the same slices for all logits of as many heads and images of one shape.
        """
        crop = self._crop(logits, properties)
        return _in_order(partial(self._block, crop), _blocks(crop.shape, len(logits)))

    def _block(self, crop: _Crop, start: int, stop: int) -> Block:
        z, *plane = crop.box
        labels = np.zeros((stop - start, *crop.shape[1:]), self._dtype)
        probabilities = np.zeros((len(crop.logits), *labels.shape), np.float32)
        if not self._labels.has_regions:
            probabilities[0] = 1
        first, last = max(start, z.start), min(stop, z.stop)
        if first < last:
            place = (slice(first - start, last - start), *plane)
            heads = torch.stack(list(crop.heads(first - z.start, last - z.start)))
            labels[place] = self._decide(heads, 0.0)
            probabilities[(slice(None), *place)] = self._labels.apply_inference_nonlin(heads)
        return Block(slice(start, stop), probabilities, labels)

    def average(self, blocks: Iterable[Iterator[Block]]) -> Iterator[Block]:
        """The mean of several networks' probabilities, as of nnU-Net's ``ensemble``.

        Args:
            blocks: Of each network; all of one image and with the same labels.

        Yields:
            Blocks with the labels that the means decide for.
        """
        for members in zip(*blocks, strict=True):
            mean = members[0].probabilities
            for member in members[1:]:
                mean += member.probabilities
            mean /= len(members)
            yield Block(members[0].place, mean, self._decide(torch.from_numpy(mean), 0.5))

    @property
    def _dtype(self) -> type[np.unsignedinteger[Any]]:
        return np.uint8 if len(self._labels.foreground_labels) < 255 else np.uint16

    def _crop(self, logits: torch.Tensor, properties: Mapping[str, Any]) -> _Crop:
        shape = properties["shape_after_cropping_and_before_resampling"]
        new = [properties["spacing"][axis] for axis in self._plans.transpose_forward]
        old = list(self._configuration.spacing)
        old = new[: len(new) - len(old)] + old
        nearest = None
        options = self._settings["resampling_fn_probabilities_kwargs"]
        if (
            self._settings["resampling_fn_probabilities"] == "resample_data_or_seg_to_shape"
            and options["order"] == 1
            and options["order_z"] == 0
        ):
            nearest = _nearest_axis(options, old, new)
        else:
            resampled = self._configuration.resampling_fn_probabilities(logits, shape, old, new)
            logits = torch.as_tensor(resampled)
        axes = self._plans.transpose_backward
        box = properties["bbox_used_for_cropping"]
        return _Crop(
            logits.permute(0, *(axis + 1 for axis in axes)),
            tuple(slice(*map(int, box[axis])) for axis in axes),
            tuple(int(properties["shape_before_cropping"][axis]) for axis in axes),
            None if nearest is None else list(axes).index(nearest),
        )

    def _decide(self, heads: Iterable[torch.Tensor], threshold: float) -> NDArray[Any]:
        """Labels of heads that are all logits, or all probabilities.

        Args:
            heads: ``(slices, y, x)`` each.
            threshold: Above it lies a voxel in a region.
        """
        values = zip(self.values, (head.numpy() for head in heads), strict=True)
        value, best = next(values)
        labels = np.zeros(best.shape, self._dtype)
        if self._labels.has_regions:  # they overlap: later ones overwrite earlier ones
            labels[best > threshold] = value
            for value, head in values:
                labels[head > threshold] = value
            return labels
        best = best.copy()
        for value, head in values:  # values ascend; masked writing would take ten times as long
            np.maximum(labels, (head > best) * labels.dtype.type(value), out=labels)
            np.maximum(best, head, out=best)
        return labels


def _blocks(shape: tuple[int, ...], values: int) -> Iterator[tuple[int, int]]:
    """First slice and end of blocks in which a voxel has so many values."""
    step = max(1, BLOCK // (values * shape[1] * shape[2]))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def _in_order(work: Callable[[int, int], T], places: Iterable[tuple[int, int]]) -> Iterator[T]:
    """What ``work`` makes of each block, in order; a few blocks are in the making at a time.

    A thread for each CPU, in which torch computes with one: torch's own threads meet after each
    small operation, and wait for each other without giving way where other processes compute.
    """
    cpus = torch.get_num_threads()
    with ThreadPoolExecutor(cpus, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for place in places:
                waiting.append(pool.submit(work, *place))
                if len(waiting) > cpus:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            torch.set_num_threads(cpus)  # the last word counts for threads to come


def _nearest_axis(options: Mapping[str, Any], old: list[float], new: list[float]) -> int | None:
    """The coarse axis of anisotropic voxels, along which nnU-Net does not interpolate."""
    from nnunetv2.configuration import ANISO_THRESHOLD
    from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis

    threshold = options.get("separate_z_anisotropy_threshold", ANISO_THRESHOLD)
    separate, axis = determine_do_sep_z_and_axis(options["force_separate_z"], old, new, threshold)
    return int(axis) if separate else None
