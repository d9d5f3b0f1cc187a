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
from medseg.project import DataRoot, UserError, read_json, safe_name, write_json

POLL_S = 1.0


class Meeting:
    """What a stage leaves on the volume for the other one of its run.

    As long as :meth:`present` lasts, the stage holds a lock that the other one may try.

    Args:
        root: The data root.
        run: What no other run has, such as its identifier.
        me: This stage.
        other: The other one.
    """

    def __init__(self, root: DataRoot, run: str, me: str, other: str) -> None:
        self._folder = root.path / FOLDER / (safe_name(run) or "run")
        self._me, self._other = me, other
        self._rows: list[dict[str, str]] | None = None

    @contextmanager
    def present(self) -> Iterator[None]:
        """Shows that this stage is there.

        Raises:
            OSError: The volume cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._lock(self._me).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._tell()
            try:
                yield
            finally:
                with suppress(OSError):
                    self._tell(gone=True)

    def leave(self, rows: Sequence[Row]) -> None:
        """Leaves this stage's rows for the other one, and says that it needs that no longer.

        Args:
            rows: The rows.

        Raises:
            OSError: The volume cannot be written.
        """
        self._rows = [row.to_json() for row in rows]
        self._tell()

    def _tell(self, *, gone: bool = False) -> None:
        content = {"host": socket.gethostname(), "rows": self._rows, "gone": gone}
        write_json(self._paper(self._me), content)

    def rows(self, seconds: float = 0) -> list[Row] | None:
        """The other one's rows.

        Args:
            seconds: How long to wait for them.

        Returns:
            None where it has left none in that time.
        """
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
        if not self._until(seconds, lambda: bool(self._read())):
            found = f"the second pod ({self._other}) did not come within {seconds:.0f} s"
            remedy = (
                "medseg runs RUN says why: a claim that one node alone may mount (it needs "
                "ReadWriteMany), or the builder's image"
            )
            return Row(name, "failed", found, remedy)
        host = self._read().get("host", "the other pod")
        try:
            with self._lock(self._other).open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Row(name, "ok", f"{host} mounts it too, and its lock holds here")
        except OSError as error:
            return Row(name, "failed", f"no file locks ({error.strerror})", LOCK_REMEDY)
        if self._read().get("gone"):
            found = f"{host} mounted it, and had ended before this pod came"
            return Row(name, "warning", found, "check again when nodes and GPUs are free")
        return Row(name, "failed", f"{host} and this pod have one lock at a time", LOCK_REMEDY)

    def _until(self, seconds: float, done: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_S)
        return True

    def _read(self) -> dict[str, Any]:
        with suppress(OSError, UserError):
            list(self._folder.iterdir())  # so that NFS looks again for what it did not find
            content = read_json(self._paper(self._other), {})
            return content if isinstance(content, dict) else {}
        return {}

    def _paper(self, stage: str) -> Path:
        return self._folder / f"{stage}.json"

    def _lock(self, stage: str) -> Path:
        return self._folder / f"{stage}.lock"
