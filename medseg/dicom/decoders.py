"""Decoders for what hospitals send and pydicom has none for: JPEG Lossless and HTJ2K.

A plugin of pydicom's, by its interface (``DECODER_DEPENDENCIES``, ``is_available`` and a function
that decodes a frame); the codecs are those of imagecodecs. :func:`register_decoders` adds it, so
that highdicom, which decodes through pydicom, has it too.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
from pydicom import uid
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder

_LABEL = "imagecodecs"

_JPEG_LOSSLESS = (uid.JPEGLossless, uid.JPEGLosslessSV1)
_HTJ2K = (uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)

DECODER_DEPENDENCIES = dict.fromkeys((*_JPEG_LOSSLESS, *_HTJ2K), ("imagecodecs",))
"""What each transfer syntax needs, as pydicom asks a plugin for it."""


def is_available(syntax: str) -> bool:
    """Whether the codec of a transfer syntax is installed."""
    return syntax in DECODER_DEPENDENCIES and find_spec("imagecodecs") is not None


def decode_frame(source: bytes, runner: DecodeRunner) -> bytes:
    """One frame decoded, little endian, with 8 or 16 bits a value.

    Args:
        source: The compressed frame.
        runner: What pydicom knows of the pixels; is told how many bits a value takes here.

    Raises:
        ValueError: The frame is damaged.
    """
    import imagecodecs

    lossless_jpeg = runner.transfer_syntax in _JPEG_LOSSLESS
    decode = imagecodecs.jpegsof3_decode if lossless_jpeg else imagecodecs.jpeg2k_decode
    try:
        pixels = np.asarray(decode(source))
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError("the compressed frame is damaged") from error
    runner.set_option("bits_allocated", pixels.dtype.itemsize * 8)
    runner.set_option("planar_configuration", 0)
    return pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes()


def register_decoders() -> None:
    """Adds the decoders to pydicom, for the whole process; a second call does nothing."""
    for syntax in DECODER_DEPENDENCIES:
        decoder = get_decoder(syntax)
        if _LABEL not in (*decoder.available_plugins, *decoder._unavailable):
            decoder.add_plugin(_LABEL, (__name__, decode_frame.__name__))
