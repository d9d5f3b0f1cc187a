"""Writing without halves: beside the target, then renamed."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any
from uuid import uuid4

from medseg.project.errors import UserError

PARTIAL = ".partial-"
"""What the name of unfinished work starts with; it may be deleted at any time."""

_REPLACED = ".replaced-"
"""What the name of a whole folder starts with whose place is just being taken."""


@contextmanager
def atomic_file(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Gives a temporary file name beside ``path``, which is renamed to ``path`` on success.

    The temporary name keeps the suffixes of ``path`` (writers choose the format by them).

    The temporary file is there already, empty. What a killed writer left of ``path`` is removed.

    Args:
        path: The target. Its folder is made if needed.
        private: Whether its owner alone may read the file, from the first byte on (mode 0600);
            folders that are made for it then have mode 0700.

    Yields:
        The name to write to.

    Raises:
        OSError: Also where the writing library hides a full disk behind another error.
    """
    _make_folders(path.parent, 0o700 if private else 0o777)
    remove_stale(path)
    temporary = path.with_name(f"{PARTIAL}{uuid4().hex[:8]}-{path.name}")
    temporary.touch(0o600 if private else 0o666)
    try:
        with _claimed(temporary), disk_errors(temporary):
            yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Gives an ``OSError`` its file's name, and makes one of what a full disk has caused.

    Writing to a file that is open raises one without a name. torch and Blosc report a full disk as
    a ``RuntimeError``, without its number; writing on raises that.

    Args:
        path: The file that is being written, or one in the same folder.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    except RuntimeError:
        existed = path.exists()
        try:
            with path.open("ab") as file:
                file.write(bytes(1 << 20))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        finally:
            if not existed:
                path.unlink(missing_ok=True)
        raise


@contextmanager
def _claimed(temporary: Path) -> Iterator[None]:
    """Marks unfinished work as somebody's; the kernel forgets the mark when its owner ends."""
    handle = os.open(temporary, os.O_RDONLY)
    try:
        with suppress(OSError):  # a volume without locks
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def remove_stale(path: Path) -> None:
    """Removes what killed writers left of ``path``; what a living one writes is left alone.

    A folder that was moved out of the way for a new one, which then did not come, is put back.
    """
    for prefix in (_REPLACED, PARTIAL):
        for stale in path.parent.glob(f"{prefix}????????-{escape(path.name)}"):
            with suppress(OSError):
                if stale.is_symlink():  # it cannot be marked, and takes no time to make
                    stale.unlink()
                    continue
                handle = os.open(stale, os.O_RDONLY | os.O_NOFOLLOW)
                try:
                    # fails where it is somebody's
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if prefix == _REPLACED and not path.exists():
                        stale.replace(path)
                    elif stale.is_dir():
                        shutil.rmtree(stale, ignore_errors=True)
                    else:
                        stale.unlink()
                finally:
                    os.close(handle)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Gives a new folder beside ``path`` for unfinished work; it is removed at the end.

    What a killed one left of ``path`` goes too.

    Args:
        path: What the work is about; nothing need be there.

    Yields:
        The folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path)
    temporary = path.with_name(f"{PARTIAL}{uuid4().hex[:8]}-{path.name}")
    temporary.mkdir()
    try:
        with _claimed(temporary), disk_errors(temporary / "more"):
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Gives a new folder beside ``path``, which takes the place of ``path`` on success.

    Whenever it is killed, the old folder or the new one is there: where the volume cannot exchange
    them in one step, the next writer (:func:`remove_stale`) puts the old one back.

    Args:
        path: The target. What it held before is removed once the new one is complete.

    Yields:
        The folder to fill.
    """
    with scratch_folder(path) as temporary:
        yield temporary
        if not path.exists():
            temporary.replace(path)
        elif not _exchange(temporary, path):  # else the old one is now the temporary
            old = path.with_name(f"{_REPLACED}{uuid4().hex[:8]}-{path.name}")
            with _claimed(path):
                path.replace(old)
                temporary.replace(path)
            shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names in one step; False where the system or the volume cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):  # no Linux, or an old C library
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def private_folder(folder: Path) -> Path:
    """Makes ``folder`` one that its owner alone may enter (mode 0700), also where it is there.

    Args:
        folder: The folder; missing parents are made as any folder is.

    Returns:
        The folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_mode & 0o077:
        with suppress(PermissionError):  # another user's, who alone can close it
            folder.chmod(0o700)
    return folder


def _make_folders(folder: Path, mode: int) -> None:
    """Like ``mkdir(parents=True)``, but all that are made get the mode."""
    if not folder.is_dir():
        _make_folders(folder.parent, mode)
        folder.mkdir(mode, exist_ok=True)


def link_or_copy(source: Path, target: Path, *, link: bool = True) -> None:
    """Makes ``target`` the same file as ``source``: a hard link where possible, else a copy.

    Args:
        source: The file.
        target: Its other name.
        link: False for a copy that does not change when ``source`` is edited in place.
    """
    if link and target.exists() and target.samefile(source):
        return
    with atomic_file(target) as temporary:
        temporary.unlink()
        with suppress(OSError):  # another volume, or one without hard links
            if link:
                os.link(source.resolve(), temporary)
        if not temporary.exists():
            shutil.copy2(source, temporary)


def remove_others(folder: Path, keep: Iterable[str]) -> None:
    """Removes the files of ``folder`` whose names are not in ``keep``."""
    names = set(keep)
    for path in folder.iterdir():
        if path.is_file() and path.name not in names:
            path.unlink()


def safe_name(text: str, *, ascii_only: bool = False) -> str:
    """``text`` as part of a file's name: letters, digits, ``.``, ``_`` and ``-``.

    Args:
        text: Any text.
        ascii_only: Whether letters are those from A to Z alone, as in DICOM.

    Returns:
        The text with ``_`` for all else, and with letters or digits at its ends; may be empty.
    """
    flags = re.ASCII if ascii_only else re.NOFLAG
    return re.sub(r"[^\w.-]+", "_", text, flags=flags).strip("._-")


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Writes ``text`` to ``path``, all of it or nothing; ``private`` as in :func:`atomic_file`."""
    with atomic_file(path, private=private) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, private: bool = False) -> None:
    """Writes ``value`` as indented JSON to ``path``, all of it or nothing.

    Args:
        path: The file.
        value: What to write.
        private: As in :func:`atomic_file`.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", private=private)


_REQUIRED = object()


def read_json(path: Path, default: Any = _REQUIRED, *, remedy: str = "") -> Any:
    """What a JSON file holds.

    Args:
        path: The file.
        default: What a file that is not there stands for. What the file holds must be of the same
            type (an object, a list).
        remedy: What to do about a damaged file, a sentence; by default to restore it, or to
            remove it and repeat the work that wrote it.

    Raises:
        UserError: The file is damaged (no JSON, or of another type); the message names it.
        FileNotFoundError: It is not there, and there is no default.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if default is _REQUIRED:
            raise
        return default
    except ValueError as error:
        reason = f"no valid JSON: {error}"
    else:
        kind = _JSON_NAMES.get(type(default))
        if kind is None or isinstance(content, type(default)):
            return content
        reason = f"no JSON {kind}"
    remedy = remedy or "Restore it, or remove it and run the stage that writes it again."
    raise UserError(f"{path} is damaged ({reason}). {remedy}")


_JSON_NAMES: dict[type, str] = {dict: "object", list: "list"}
