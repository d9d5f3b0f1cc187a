"""Which case a study is: names that stay, and pseudonyms."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from uuid import uuid4

from medseg.dicom.private import private_folder, private_path
from medseg.dicom.sources import Study
from medseg.project import DataRoot, lock, read_json, safe_name, write_json

_REMEDY = "Restore it; without it every study would be named, and converted, anew."

_LONGEST = 48
"""Characters of a case's name before its ordinal; well within DICOM's 64."""


def case_names(
    root: DataRoot, output_folder: Path, studies: Iterable[Study], *, deidentify: bool = False
) -> dict[str, str]:
    """The case of every study: its PatientID, made safe as a file name.

    A patient's second study gets ``_2`` after the name, and so on in the order of time. What was
    named once keeps its name, though studies are added later: the names are kept under the data
    root, readable by their owner only.

    Args:
        root: The data root.
        output_folder: The dataset's folder; names are unique in it.
        studies: The studies to name.
        deidentify: Whether to give pseudonyms in place of PatientIDs.

    Returns:
        StudyInstanceUID to case.

    Raises:
        UserError: The file that keeps the names is damaged.
    """
    path = private_path(root, "cases", root.relative(output_folder), ".json")
    studies = sorted(studies, key=lambda study: (study.moment, study.uid))
    with lock(root, path.stem, wait=True):  # shards may come at once; each takes milliseconds
        register: dict[str, dict[str, str | int]] = read_json(path, {}, remedy=_REMEDY)
        taken = {_name(entry) for entry in register.values()}
        unnamed = [study for study in studies if study.uid not in register]
        for study in unnamed:
            entry: dict[str, str | int] = {"patient": _safe(study), "ordinal": 1}
            while _name(entry) in taken:
                entry["ordinal"] = int(entry["ordinal"]) + 1
            taken.add(_name(entry))
            register[study.uid] = entry
        if unnamed:
            write_json(path, register, private=True)
    names = {}
    for study in studies:
        entry = register[study.uid]
        if deidentify:
            entry = {**entry, "patient": pseudonym(root, str(entry["patient"]))}
        names[study.uid] = _name(entry)
    return names


def pseudonym(root: DataRoot, name: str) -> str:
    """A name that is always the same for ``name`` on this data root, and tells nothing of it.

    HMAC-SHA256 with a random key that is made on first use and kept, readable by its owner only,
    in ``<root>/.medseg/dicom/pseudonym.key``. Whoever has the key can test guesses.

    Args:
        root: The data root.
        name: A PatientID or case.
    """
    path = private_folder(root) / "pseudonym.key"
    if not path.exists():
        fresh = path.with_name(f"{uuid4().hex}.key")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
        try:
            os.link(fresh, path)  # unlike a rename, it never replaces another process' key
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    digest = hmac.new(path.read_bytes(), name.encode(), hashlib.sha256).hexdigest()
    return f"case-{digest[:12]}"


def short_name(text: str) -> str:
    """``text`` as a short file name that DICOM takes too; may be empty."""
    return safe_name(text, ascii_only=True)[:_LONGEST]


def _safe(study: Study) -> str:
    return short_name(study.patient_id) or (
        f"study-{hashlib.sha256(study.uid.encode()).hexdigest()[:8]}"
    )


def _name(entry: dict[str, str | int]) -> str:
    return f"{entry['patient']}" + (f"_{entry['ordinal']}" if entry["ordinal"] != 1 else "")
