"""Volumes that are small enough to fill, and what lies on them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from medseg.project import stage

PASSING = (".medseg/locks", "runs", "mlflow.db", "mlartifacts")


class Volume:
    """A tmpfs of its own.

    Args:
        folder: Where it is mounted; made.
        megabytes: Its size.
    """

    def __init__(self, folder: Path, megabytes: int = 300) -> None:
        self.folder = folder
        self.megabytes = megabytes
        folder.mkdir()
        self._mount("-t", "tmpfs", "tmpfs", options=f"size={megabytes}m")

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", self.folder], check=True)

    def leave(self, free: int) -> None:
        """Shrinks the volume until only ``free`` bytes are left."""
        state = os.statvfs(self.folder)
        used = (state.f_blocks - state.f_bfree) * state.f_frsize
        self._mount(options=f"remount,size={max(used + free, state.f_frsize)}")

    def enlarge(self) -> None:
        self._mount(options=f"remount,size={self.megabytes}m")

    def make_read_only(self) -> None:
        self._mount(options="remount,ro")

    @contextmanager
    def full(
        self, name: str, capsys: pytest.CaptureFixture[str], *, free: int = 0, file: str = ""
    ) -> Iterator[None]:
        """Runs its block as a stage on a full disk, and checks what that leads to.

        The user reads one sentence, nothing that lay on the volume has changed, and nothing
        unfinished is left. Afterwards there is space again.

        Args:
            name: The stage.
            capsys: Reads what the stage prints.
            free: Bytes that are left.
            file: The file for which there is no space any more, where that matters.
        """
        before = contents(self.folder)
        with pytest.raises(SystemExit) as caught, stage(name):
            self.leave(free)
            yield
        self.enlarge()
        assert caught.value.code == 1
        said = capsys.readouterr().err
        says_that_the_disk_is_full(said)
        assert not file or f"-{file} failed. Free" in said, said
        assert before.items() <= contents(self.folder).items()
        assert list(self.folder.rglob(".partial-*")) == []

    def _mount(self, *more: str, options: str) -> None:
        subprocess.run(["mount", *more, "-o", options, self.folder], check=True)


def says_that_the_disk_is_full(output: str) -> None:
    assert output.count("error:") == 1, output
    assert "the disk is full: writing" in output
    assert "Free some space or enlarge the volume, then run the same command again" in output
    assert "Traceback" not in output


def contents(folder: Path) -> dict[str, bytes]:
    """All files below ``folder`` but locks, the records of runs, and what MLflow keeps."""
    return {
        name: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not (name := path.relative_to(folder).as_posix()).startswith(PASSING)
    }
