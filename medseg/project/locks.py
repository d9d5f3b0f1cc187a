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


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without a name, as in most containers
        return f"uid {os.getuid()}"
