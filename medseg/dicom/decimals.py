"""Numbers as hospitals write them: decimal commas, units, zero bytes where DICOM has DS and IS."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import pydicom
from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import RawDataElement

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_STRICT = re.compile(rf"(?: *(?:{_NUMBER})? *(?:\\|\Z))*\Z".encode())
_NEAR = re.compile(rf"({_NUMBER})(?:\s*mm)?\Z")

_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


def mend_numbers(dataset: Dataset) -> list[str]:
    """Rewrites what is nearly a number as one; what cannot be told stays as it is.

    A comma is a decimal point where there is one; zero bytes, tabs and the unit ``mm`` are left
    out, and IS may have decimals that are zero.

    Args:
        dataset: An instance as it was read, changed in place; its functional groups too.

    Returns:
        The keywords of the attributes that were mended, each once.
    """
    mended: dict[str, None] = {}
    for tag in list(dataset.keys()):
        raw = dataset.get_item(tag)
        if isinstance(raw, RawDataElement) and isinstance(raw.value, bytes):
            kind = _kind(raw)
            if kind in ("DS", "IS") and not _STRICT.match(raw.value):
                numbers = [_mended(part, kind) for part in raw.value.split(b"\\")]
                if all(number is not None for number in numbers):
                    text = "\\".join(map(str, numbers))
                    dataset[tag] = DataElement(
                        tag, kind, text, validation_mode=pydicom.config.IGNORE
                    )
                    mended[keyword_for_tag(tag)] = None
    for keyword in _GROUPS:
        for item in dataset.get(keyword) or ():
            for sequence in item:
                if sequence.VR == "SQ":
                    for inner in sequence.value:
                        mended |= dict.fromkeys(mend_numbers(inner))
    return list(mended)


def _kind(raw: RawDataElement) -> str:
    try:
        return raw.VR if raw.VR not in (None, "UN") else dictionary_VR(raw.tag)
    except KeyError:  # a private attribute
        return ""


def _mended(part: bytes, kind: str) -> str | None:
    text = part.decode("latin-1").strip(" \t\r\n\0")
    if "," in text:
        whole, _, decimals = text.rpartition(",")
        # 1.234,5 is the German way to write it; with two commas nobody can tell
        text = f"{whole.replace('.', '')}.{decimals}"
    match = _NEAR.match(text)
    if match is None:
        return None if text else ""
    if kind == "DS":
        return match[1]
    value = float(match[1])
    return str(int(value)) if value.is_integer() else None


def numbers(dataset: Dataset, keyword: str) -> Sequence[float] | None:
    """The finite numbers of an attribute.

    Args:
        dataset: What holds it.
        keyword: The attribute.

    Returns:
        The numbers; None where the attribute is absent, empty, or holds something else.
    """
    try:
        value = dataset.get(keyword)
        if value is None or isinstance(value, str):
            return None
        several = value if hasattr(value, "__iter__") else [value]
        values = [float(item) for item in several]
    except (ValueError, TypeError, ArithmeticError):
        return None
    return values if values and all(map(math.isfinite, values)) else None


def has_value(dataset: Dataset, keyword: str) -> bool:
    """Whether an attribute is there and holds something, be it readable or not."""
    try:
        return dataset.get(keyword) not in (None, "")
    except (ValueError, TypeError, ArithmeticError):
        return True
