"""Archives of datasets, unpacked without trusting them."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from pathlib import Path, PurePosixPath

from medseg.project import UserError, progress

_KINDS = {"md5": 32, "sha256": 64}
"""Checksums and how many hexadecimal digits they have."""


def parse_checksum(text: str, *, field: str) -> tuple[str, str]:
    """The kind and the digits of a checksum such as ``md5:410d…``.

    Args:
        text: The checksum; without its kind that shows in its length.
        field: The parameter, for the message.

    Raises:
        UserError: It is none.
    """
    kind, _, digits = text.strip().lower().rpartition(":")
    kinds = [name for name, length in _KINDS.items() if len(digits) == length]
    if not kinds or kind not in ("", kinds[0]) or not set(digits) <= set("0123456789abcdef"):
        raise UserError(
            f"{field}: {text!r} is no checksum: give the output of md5sum or sha256sum for the "
            "archive, such as md5:410d4a301da4e5b2f6f86ec3ddba524e."
        )
    return kinds[0], digits


def checksum_of(path: Path, kind: str) -> str:
    """The checksum of a file.

    Args:
        path: The file.
        kind: ``md5`` or ``sha256``.

    Returns:
        Hexadecimal digits.
    """
    with path.open("rb") as file:
        # MD5 finds transmission errors; who wrote the archive it cannot prove
        return hashlib.file_digest(
            file, lambda: hashlib.new(kind, usedforsecurity=False)
        ).hexdigest()


def unpack_tar(archive: Path, folder: Path) -> list[str]:
    """Unpacks a tar archive, plain or compressed, into an empty folder.

    Files and folders whose name begins with a dot are left out: macOS leaves them in archives.
    Rights and owners in the archive do not count.

    Args:
        archive: The archive.
        folder: Where its members go.

    Returns:
        The files, relative to ``folder``.

    Raises:
        UserError: It is no tar archive, is cut off, or has a member that is neither file nor
            folder or would leave ``folder``; what came before it is in ``folder``.
    """
    files = []
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = _safe_name(archive, member)
                if any(part.startswith(".") for part in name.parts):
                    continue
                target = folder / name
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(member)
                assert source is not None  # it is a file
                with source, target.open("xb") as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
                files.append(str(name))
                if len(files) % 100 == 0:
                    progress(f"{len(files)} files unpacked")
    except (tarfile.TarError, EOFError, FileExistsError, NotADirectoryError) as error:
        raise UserError(
            f"{archive.name} cannot be unpacked ({type(error).__name__}: {error}): it is damaged "
            "or no tar archive. Get it anew."
        ) from None
    return files


def _safe_name(archive: Path, member: tarfile.TarInfo) -> PurePosixPath:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\0" in member.name:
        problem = "would be written outside of its folder"
    elif not (member.isreg() or member.isdir()):
        problem = "is a link or a device, not a file"
    else:
        return name
    raise UserError(
        f"{archive.name} is not unpacked: its member {member.name!r} {problem}, which no dataset "
        "needs. Do not use this archive; get it from another place."
    )
