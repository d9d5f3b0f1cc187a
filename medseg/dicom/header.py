"""The header that a DICOM SEG takes over from its source, in order whatever that one is like.

Headers lack attributes, spell character sets in ways of their own and hold dates that are none.
Only what is understood goes on: identifiers as they are, the rest where DICOM allows its value.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import date, time

from pydicom import Dataset
from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_VR
from pydicom.multival import MultiValue
from pydicom.uid import UID, generate_uid
from pydicom.valuerep import DT, format_number_as_ds

_REQUIRED = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PositionReferenceIndicator",
)
"""Attributes of type 2: there, though perhaps empty."""

_OPTIONAL = (
    "IssuerOfPatientID",
    "PatientBirthTime",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "EthnicGroup",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "StudyDescription",
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID",
    "ClinicalTrialSiteName",
    "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID",
    "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription",
)
"""Those of the modules Patient, Study and Clinical Trial that the SEG has where its source does."""

_EQUIPMENT = (
    "Manufacturer",
    "ManufacturerModelName",
    "DeviceSerialNumber",
    "SoftwareVersions",
    "InstitutionName",
    "InstitutionAddress",
    "InstitutionalDepartmentName",
    "StationName",
    "AcquisitionDateTime",
)
"""What the SEG says of the device that made the images (ContributingEquipmentSequence)."""

_WHOLE = ("PatientID", "AccessionNumber", "StudyID")
"""Never shortened, though longer than DICOM allows: they would become those of another."""

_LONGEST = {"LO": 64, "SH": 16, "ST": 1024}

_TERMS = {
    "PatientSex": {"M": "M", "F": "F", "O": "O", "MALE": "M", "FEMALE": "F", "OTHER": "O"},
    "PatientIdentityRemoved": {"YES": "YES", "NO": "NO"},
}
"""What the enumerated values may be, and what stands for them."""

_CHARACTER_SETS = ("100", "101", "109", "110", "126", "127", "138", "144", "148", "166", "192")
"""Numbers of the character sets that need no code extensions."""


def normalised_header(header: Dataset) -> Dataset:
    """What a DICOM SEG takes over of the header of its source.

    Args:
        header: The header of the source's first instance. Values of any kind may be missing, empty
            or broken.

    Returns:
        Patient, study, equipment and frame of reference, each value one that DICOM allows:
        attributes of type 2 are there, dates that are none are empty, and a source without frame
        of reference gets one that follows from its SeriesInstanceUID. ``SpecificCharacterSet`` is
        the source's where that is a single one, well or nearly well spelt, else it is missing.
    """
    normalised = Dataset()
    number = _character_set(header)
    if number:
        normalised.SpecificCharacterSet = f"ISO_IR {number}"
    for keyword in _REQUIRED:
        setattr(normalised, keyword, _value(header, keyword, number))
    for keyword in _OPTIONAL:
        if keyword in header:
            setattr(normalised, keyword, _value(header, keyword, number))
    for keyword in _EQUIPMENT:
        if value := _value(header, keyword, number):
            setattr(normalised, keyword, value)
    methods = [_code(item) for item in _items(header, "DeidentificationMethodCodeSequence")]
    if any(methods):
        normalised.DeidentificationMethodCodeSequence = [item for item in methods if item]
    normalised.StudyInstanceUID = str(header.StudyInstanceUID)
    normalised.SeriesInstanceUID = str(header.SeriesInstanceUID)
    frame = UID(_text(header, "FrameOfReferenceUID"))
    if not frame.is_valid:
        frame = generate_uid(entropy_srcs=["frame of reference", normalised.SeriesInstanceUID])
    normalised.FrameOfReferenceUID = frame
    _add_compression(normalised, header)
    return normalised


def series_number(header: Dataset) -> int:
    """SeriesNumber of the source; 0 where it has none that DICOM allows."""
    text = _text(header, "SeriesNumber")
    number = int(text) if re.fullmatch(r"\+?[0-9]{1,10}", text) else 0
    return number if number < 2**31 - 10_000 else 0


def character_set_for(header: Dataset, texts: Iterable[str]) -> str | None:
    """The character set in which a header and more texts can be written.

    Args:
        header: From :func:`normalised_header`.
        texts: What is to be written beside it.

    Returns:
        That of the header where it holds all characters, else ``ISO_IR 192`` (UTF-8); None where
        all is ASCII and the header names none.
    """
    everything = "".join([str(element.value) for element in header] + list(texts))
    own = header.get("SpecificCharacterSet")
    if own is None:
        return None if everything.isascii() else "ISO_IR 192"
    try:
        everything.encode(python_encoding[own])
    except UnicodeEncodeError:
        return "ISO_IR 192"
    return str(own)


# --- one value ---


def _value(header: Dataset, keyword: str, character_set: str) -> str:
    """The value of an attribute as DICOM allows it; empty where there is no such."""
    text = _text(header, keyword, character_set)
    vr = dictionary_VR(keyword)
    if keyword in _TERMS:
        return _TERMS[keyword].get(text.upper(), "")
    if vr in _LONGEST and keyword not in _WHOLE:
        return text[: _LONGEST[vr]].strip()
    if vr == "DA":
        return _date(text)
    if vr == "TM":
        return _time(text)
    if vr == "DT":
        return text if _is_moment(text) else ""
    if vr == "AS":
        return text if re.fullmatch(r"[0-9]{3}[DWMY]", text) else ""
    if vr == "DS":
        return _decimal(text)
    return text


def _text(header: Dataset, keyword: str, character_set: str = "") -> str:
    """The value as text, without characters that steer a printer; of several the first."""
    try:
        value = header.get(keyword)
        if isinstance(value, MultiValue | list | tuple) and dictionary_VR(keyword) != "SQ":
            # of an identifier that holds a backslash nothing may be lost
            several = keyword in _WHOLE or keyword == "PatientName"
            text = "\\".join(map(str, value)) if several else str(value[0] if value else "")
        elif isinstance(value, bytes):
            text = value.decode("latin-1")
        elif value is None or (isinstance(value, Sequence) and not isinstance(value, str)):
            return ""
        else:
            text = str(value)
    except Exception:  # noqa: BLE001 - pydicom raises all kinds for values that are none
        return ""
    if character_set and _misread(header):
        text = _read_again(text, python_encoding[f"ISO_IR {character_set}"])
    printable = "".join(
        " " if unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in text
    )
    return printable.strip()


def _date(text: str) -> str:
    """YYYYMMDD, also of 1980-05-17 and of ACR-NEMA's 1980.05.17; empty of anything else."""
    match = re.fullmatch(r"([0-9]{4})([-./]?)([0-9]{2})\2([0-9]{2})", text)
    try:
        return f"{date(int(match[1]), int(match[3]), int(match[4])):%Y%m%d}" if match else ""
    except ValueError:
        return ""


def _time(text: str) -> str:
    """HHMMSS.FFFFFF as far as it is given, also of HH:MM:SS; empty of anything else."""
    match = re.fullmatch(r"([0-9]{2})(?::?([0-9]{2})(?::?([0-9]{2})(\.[0-9]{1,6})?)?)?", text)
    try:
        if match:
            hour, minute, second = (int(part or 0) for part in match.groups()[:3])
            time(hour, minute, second)
            return "".join(part for part in match.groups() if part)
    except ValueError:
        pass
    return ""


def _is_moment(text: str) -> bool:
    try:
        return bool(re.match("[0-9]{4}", text)) and DT(text) is not None
    except ValueError:
        return False


def _decimal(text: str) -> str:
    try:
        return format_number_as_ds(float(text.replace(",", ".")))
    except (ValueError, OverflowError):
        return ""


def _items(header: Dataset, keyword: str) -> list[Dataset]:
    value = header.get(keyword)
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []


def _code(item: Dataset) -> Dataset | None:
    """A coded concept; None where it is incomplete."""
    code = Dataset()
    for keyword in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning"):
        value = _value(item, keyword, "")
        if not value:
            return None
        setattr(code, keyword, value)
    return code


def _add_compression(normalised: Dataset, header: Dataset) -> None:
    """That the source was compressed with loss, where it says how much and by what."""
    ratios = [_decimal(text) for text in _texts(header, "LossyImageCompressionRatio")]
    methods = _texts(header, "LossyImageCompressionMethod")
    sound = all(re.fullmatch("[A-Z0-9_ ]{1,16}", method) for method in methods)
    if _text(header, "LossyImageCompression") != "01":
        return
    normalised.LossyImageCompression = "01"
    if ratios and all(ratios) and len(ratios) == len(methods) and sound:
        normalised.LossyImageCompressionRatio = ratios
        normalised.LossyImageCompressionMethod = methods


def _texts(header: Dataset, keyword: str) -> list[str]:
    try:
        value = header.get(keyword)
        parts = value if isinstance(value, MultiValue | list | tuple) else [value]
        return [str(part) for part in parts if part is not None]
    except Exception:  # noqa: BLE001 - as above
        return []


# --- character sets ---


def _character_set(header: Dataset) -> str:
    """The number of the header's character set, such as 192; empty where it is none of a kind.

    ``ISO_IR 100`` is spelt in many ways: ``ISO-IR 100``, ``ISO_IR_100``, ``iso_ir100``, ``latin1``.
    """
    terms = _texts(header, "SpecificCharacterSet")
    if len(terms) != 1:
        return ""
    term = re.sub(r"[\W_]+", "", terms[0]).upper()
    term = {"UTF8": "ISOIR192", "LATIN1": "ISOIR100", "ISO88591": "ISOIR100"}.get(term, term)
    match = re.fullmatch(r"ISOIR([0-9]+)", term)
    return match[1] if match and match[1] in _CHARACTER_SETS else ""


def _misread(header: Dataset) -> bool:
    """Whether pydicom did not know the spelling of the character set, and read Latin-1."""
    (term,) = _texts(header, "SpecificCharacterSet")
    try:
        codecs.lookup(term)  # as pydicom does
    except LookupError:
        return term not in python_encoding and not re.match("ISO[^_]IR", term)
    return False


def _read_again(text: str, encoding: str) -> str:
    try:
        return text.encode("latin-1").decode(encoding)
    except UnicodeError:
        return text
