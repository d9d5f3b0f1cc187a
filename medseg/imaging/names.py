"""What NIfTI files are called; needs none of the packages that read them."""

from __future__ import annotations

from pathlib import Path

ENDING = ".nii.gz"
"""How the files that we write end."""

ENDINGS = (ENDING, ".nii")
"""How the files that we read end, in small letters or large."""


def is_nifti(path: str | Path) -> bool:
    """Whether a file's name is that of a NIfTI file.

    Hidden files are none (macOS leaves ``._CASE.nii.gz`` in archives).
    """
    name = Path(path).name
    return name.lower().endswith(ENDINGS) and not name.startswith(".")


def stem(path: str | Path) -> str:
    """A file's name without the NIfTI ending: ``a.b.nii.gz`` gives ``a.b``."""
    name = Path(path).name
    for ending in ENDINGS:
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name
