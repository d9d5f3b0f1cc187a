"""What is remembered of patients: below ``<root>/.medseg/dicom``, for its owner's eyes only."""

from __future__ import annotations

import hashlib
from pathlib import Path

from medseg import project
from medseg.project import DataRoot


def private_folder(root: DataRoot) -> Path:
    """Where identifiers lie that must not leave the data root: made if needed, mode 0700.

    Files in it are written with ``private=True`` (mode 0600 from the first byte).
    """
    return project.private_folder(root.path / ".medseg" / "dicom")


def private_path(root: DataRoot, kind: str, subject: str, suffix: str = "") -> Path:
    """The file or folder of a kind that is about one subject.

    Args:
        root: The data root.
        kind: What it is, such as ``cases``.
        subject: What it is about: a folder or a URL, of which the name tells nothing.
        suffix: The file's ending.

    Returns:
        The path; its folder is there.
    """
    key = hashlib.sha256(subject.encode()).hexdigest()[:16]
    return private_folder(root) / f"{kind}-{key}{suffix}"
