"""Two stages of one run, each in a pod of its own, that look for each other on the volume."""

from __future__ import annotations

import fcntl
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from medseg.check.rows import Row
from medseg.check.volume import FOLDER, LOCK_REMEDY
from medseg.project import DataRoot, read_json, safe_name, write_json

POLL_S = 1.0


class Meeting:
    """What a stage leaves on the volume for the other one of its run.

    As long as :meth:`present` lasts, the stage holds a lock that the other one may try.

    Args:
        root: The data root.
        run: The run's name.
        me: This stage.
        other: The other one.
    """

    def __init__(self, root: DataRoot, run: str, me: str, other: str) -> None:
        self._folder = root.path / FOLDER / (safe_name(run) or "run")
        self._me, self._other = me, other

    @contextmanager
    def present(self) -> Iterator[None]:
        """Shows that this stage is there.

        Raises:
            OSError: The volume cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._lock(self._me).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._tell(None)
            yield

    def leave(self, rows: Sequence[Row]) -> None:
        """Leaves this stage's rows for the other one."""
        self._tell(rows)

    def _tell(self, rows: Sequence[Row] | None) -> None:
        content = None if rows is None else [row.to_json() for row in rows]
        write_json(self._paper(self._me), {"host": socket.gethostname(), "rows": content})

    def wait(self, seconds: float) -> bool:
        """Waits until the other one has come, even if it has gone since."""
        return self._until(seconds, lambda: bool(self._read()))

    def rows(self, seconds: float = 0) -> list[Row] | None:
        """The other one's rows; None where it has left none in that time."""
        self._until(seconds, lambda: self._read().get("rows") is not None)
        found = self._read().get("rows")
        if found is None:
            return None
        return [row for row in map(Row.from_json, found) if row is not None]

    def row(self, seconds: float) -> Row:
        """Whether the other one has the same volume at the same time.

        Args:
            seconds: How long to wait for it.
        """
        name = "volume: two pods"
        if not self.wait(seconds):
            return Row(
                name,
                "failed",
                f"the second pod ({self._other}) did not come within {seconds:.0f} s",
                "medseg runs RUN says why: a claim that one node alone may mount (it needs "
                "ReadWriteMany), or the image of the builder",
            )
        host = self._read().get("host", "?")
        if self._read().get("rows") is None:  # it is still there
            with suppress(BlockingIOError, OSError), self._lock(self._other).open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._read().get("rows") is None:
                    found = f"{host} and this pod had one lock at the same time"
                    return Row(name, "failed", found, LOCK_REMEDY)
            return Row(name, "ok", f"{host} mounts it too, and its lock is seen here")
        return Row(name, "ok", f"{host} mounted it too")

    def _until(self, seconds: float, done: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() >= deadline:
                return False
            time.sleep(min(POLL_S, max(0.0, deadline - time.monotonic())))
        return True

    def _read(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            list(self._folder.iterdir())  # NFS looks again at what it has not seen
            content = read_json(self._paper(self._other), {})
            return content if isinstance(content, dict) else {}
        return {}

    def _paper(self, stage: str) -> Path:
        return self._folder / f"{stage}.json"

    def _lock(self, stage: str) -> Path:
        return self._folder / f"{stage}.lock"
