"""The ignore label in nnU-Net's fingerprint, which takes its voxels for foreground."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any


class _Reader:
    """One of nnU-Net's readers, with the ignore label read as background.

    Args:
        reader_class: nnU-Net's reader.
        ignore: The value of the ignore label.
    """

    def __init__(self, reader_class: type, ignore: int) -> None:
        self._reader = reader_class()
        self._ignore = ignore

    def read_images(self, names: Any) -> Any:
        return self._reader.read_images(names)

    def read_seg(self, name: str) -> Any:
        segmentation, properties = self._reader.read_seg(name)
        segmentation[segmentation == self._ignore] = 0
        return segmentation, properties


@contextmanager
def ignored_as_background(module: Any, ignore: int | None) -> Iterator[None]:
    """Keeps the ignore label out of the intensities by which nnU-Net normalises CT.

    nnU-Net 2.6 takes every value above 0 for foreground when it extracts the fingerprint. There
    labels decide for nothing else, so the ignored voxels may be read as background.

    Args:
        module: nnU-Net's ``fingerprint_extractor``, which asks a function of its own for a reader.
        ignore: The value of the ignore label; None where there is none, and nothing changes.
    """
    if ignore is None:
        yield
        return
    original = module.determine_reader_writer_from_dataset_json

    def determine(*arguments: Any) -> Any:
        return partial(_Reader, original(*arguments), ignore)

    module.determine_reader_writer_from_dataset_json = determine
    try:
        yield
    finally:
        module.determine_reader_writer_from_dataset_json = original
