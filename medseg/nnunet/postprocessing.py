"""nnU-Net's post-processing of label maps: only the largest component is kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.nnunet.exporting import Block
from medseg.nnunet.prediction import Predictor

Step = tuple[int, ...]
"""Label values; of all their voxels together only the largest component stays."""


def keep_largest(labels: NDArray[Any], steps: Iterable[Sequence[int]]) -> NDArray[Any]:
    """Takes out of a label map what does not belong to the largest component.

    Args:
        labels: Label values, three axes.
        steps: One after the other; see :data:`Step`.

    Returns:
        A label map of the same type; what was taken out is background.
    """
    with contextlib.redirect_stdout(None):
        from nnunetv2.postprocessing.remove_connected_components import (
            remove_all_but_largest_component_from_segmentation as remove,
        )

    for step in steps:
        if np.isin(labels, step).any():
            labels = remove(labels, [int(value) for value in step])
    return labels


class Postprocessed(Predictor):
    """A predictor whose label maps are post-processed.

    Probabilities are those of the predictor, as in nnU-Net: they are about voxels, components are
    not.

    Args:
        predictor: What segments.
        steps: What is done to its label maps.
    """

    def __init__(self, predictor: Predictor, steps: Sequence[Sequence[int]]) -> None:
        self._predictor, self._steps = predictor, [tuple(step) for step in steps]

    @property
    def channels(self) -> int:
        """As :attr:`Predictor.channels`."""
        return self._predictor.channels

    @property
    def values(self) -> tuple[int, ...]:
        """As :attr:`Predictor.values`."""
        return self._predictor.values

    def segment(self, image: NDArray[Any], spacing: Sequence[float]) -> NDArray[Any]:
        """As :meth:`Predictor.segment`."""
        return self.postprocess(self._predictor.segment(image, spacing))

    def postprocess(self, labels: NDArray[Any]) -> NDArray[Any]:
        """As :meth:`Predictor.postprocess`."""
        return keep_largest(labels, self._steps)

    def probabilities(self, image: NDArray[Any], spacing: Sequence[float]) -> Iterator[Block]:
        """As :meth:`Predictor.probabilities`; labels are those before the post-processing."""
        return self._predictor.probabilities(image, spacing)
