"""Probabilities of a case as files: one volume a label, beside its segmentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.imaging import ENDING, Volume, from_zyx, nifti_stream, stem
from medseg.nnunet.exporting import Block
from medseg.nnunet.prediction import Predictor

ONE = 65535
"""The stored value of probability 1."""


def probability_files(target: Path, predictor: Predictor) -> list[Path]:
    """The files that :func:`write_probabilities` writes.

    Args:
        target: The file of the segmentation: ``CASE.nii.gz`` or ``CASE.dcm``.
        predictor: What segments.

    Returns:
        ``CASE_prob_VALUE.nii.gz`` for each label, in the order of the heads.
    """
    name = target.stem if target.suffix.lower() == ".dcm" else stem(target)
    return [target.parent / f"{name}_prob_{value}{ENDING}" for value in predictor.values]


def write_probabilities(
    blocks: Iterable[Block], files: Sequence[Path], reference: Volume
) -> NDArray[Any]:
    """Writes how probable each label is in each voxel of a case.

    Files are compressed NIfTI on the image's grid: 16-bit whole numbers with the slope 1/65535, so
    that readers see 0 to 1. Memory is that of some slices of all labels.

    Args:
        blocks: What :meth:`Predictor.probabilities` gives.
        files: A target for each head, all or none of which are written.
        reference: A volume with the case's grid.

    Returns:
        Label values ``[i, j, k]`` on that grid, of the same pass.
    """
    labels: list[NDArray[Any]] = []
    with ExitStack() as open_files:
        writers = [
            open_files.enter_context(
                nifti_stream(
                    path, reference.shape, np.uint16, reference.affine, slope=1 / ONE, threads=1
                )
            )
            for path in files
        ]
        for block in blocks:
            labels.append(block.labels)
            for write, head in zip(writers, block.probabilities, strict=True):
                write(from_zyx(np.rint(head * ONE).astype(np.uint16)))
    return from_zyx(np.concatenate(labels))
