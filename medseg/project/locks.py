"""One writer at a time."""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from medseg.project.errors import UserError
from medseg.project.roots import DataRoot


@contextmanager
def lock(root: DataRoot, name: str, *, wait: bool = False) -> Iterator[None]:
    """Holds the lock ``name`` of the data root, for as long as the block runs.

    The kernel drops the lock when its holder ends, however it ends: a kill leaves none behind.

    Args:
        root: The data root.
        name: What is locked, such as ``run-lifecycle``.
        wait: Whether to wait for whoever holds it: for work of milliseconds.

    Raises:
        UserError: Someone else holds it, and ``wait`` is False; the message says who, where and
            since when.
    """
    path = root.path / ".medseg" / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            try:
                holder = json.loads(file.read())
                who = (
                    f"{holder['user']} on {holder['host']} (process {holder['pid']}) "
                    f"since {holder['since']}"
                )
            except (ValueError, KeyError):
                who = "another process"
            raise UserError(
                f"{name} is already running on the data root {root.path}: {who} holds the lock. "
                "Wait until it ends, or stop it, then run the same command again."
            ) from None
        file.truncate(0)
        file.write(
            json.dumps(
                {
                    "user": _user(),
                    "host": socket.gethostname(),
                    "pid": os.getpid(),
                    "since": datetime.now(UTC).isoformat(timespec="seconds"),
                }
            )
        )
        file.flush()
        yield


def unshared_locks(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """Why locks of files in a folder are not seen on other nodes that have mounted its volume.

    Args:
        folder: The folder; it is there.
        mounts: The table of mounts, in Linux's format.

    Returns:
        The volume's kind, such as ``nfs, mounted with nolock``; empty where locks are seen, or the
        volume is this node's alone.
    """
    kind, options = _mount_of(folder.resolve(), mounts)
    if kind.startswith(_OBJECT_STORES):
        return kind
    spoiling = sorted(options & _UNSHARED.get(kind, frozenset()))
    return f"{kind}, mounted with {spoiling[0]}" if spoiling else ""


_NFS = frozenset({"nolock", "local_lock=all", "local_lock=posix"})
_UNSHARED = {
    **dict.fromkeys(("nfs", "nfs4"), _NFS),
    **dict.fromkeys(("cifs", "smb3"), frozenset({"nobrl"})),
    "lustre": frozenset({"localflock", "noflock"}),
}
"""Network file systems and the options with which they lock on their own node alone."""

_OBJECT_STORES = tuple(
    f"fuse.{name}"
    for name in ("s3fs", "gcsfuse", "blobfuse", "rclone", "goofys", "geesefs", "mount-s3", "sshfs")
)
"""FUSE leaves the locks of a file system that has none to each node's kernel."""


def _mount_of(folder: Path, mounts: Path) -> tuple[str, frozenset[str]]:
    """Kind and options of the volume that a folder lies on."""
    found: tuple[int, str, frozenset[str]] = (-1, "", frozenset())
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux
        lines = []
    for line in lines:
        mount, _, volume = line.partition(" - ")
        place = Path(mount.split(" ")[4].replace("\\040", " "))
        if folder.is_relative_to(place) and len(place.parts) >= found[0]:  # a later one hides it
            kind, _, options = volume.split(" ")[:3]
            found = (len(place.parts), kind, frozenset(options.split(",")))
    return found[1:]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without a name, as in most containers
        return f"uid {os.getuid()}"
