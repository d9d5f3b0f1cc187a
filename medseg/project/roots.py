"""Paths of the project: resolved against the data root and confined to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medseg.project.errors import UserError
from medseg.project.variables import DATA_ROOT

MOUNT_PATH = PurePosixPath(DATA_ROOT.default)
"""Where the volume is mounted in the cluster; in a parameter it always means the data root."""


@dataclass(frozen=True)
class DataRoot:
    """The folder that holds all of a project's data.

    Attributes:
        path: The root, absolute, with symbolic links resolved.
    """

    path: Path

    @classmethod
    def from_environment(cls) -> DataRoot:
        """The root that ``MEDSEG_DATA_ROOT`` names (default ``/mnt/Data``).

        Raises:
            UserError: The folder does not exist.
        """
        return cls.at(DATA_ROOT.value)

    @classmethod
    def at(cls, folder: str | Path) -> DataRoot:
        """The root at ``folder``.

        Raises:
            UserError: ``folder`` is not an existing folder.
        """
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise UserError(
                f"the data root {path} is not a folder: create it, or name another one with "
                f"--data-root or the environment variable {DATA_ROOT.name}."
            )
        return cls(path.resolve())

    def resolve(self, path: str | Path, *, field: str = "path") -> Path:
        """The place that ``path`` means on this machine.

        A relative path is relative to the root; a path under ``/mnt/Data`` means the same place
        under the root. Symbolic links are followed before the check.

        Args:
            path: A path from a parameter or a config.
            field: The name of the parameter or config field, for the message.

        Returns:
            The absolute path; it need not exist.

        Raises:
            UserError: The path is empty, or leaves the root.
        """
        text = str(path).strip()
        if not text:
            raise UserError(f"{field} is empty: give a path inside the data root {self.path}.")
        given = PurePosixPath(text)
        if given.is_absolute():
            if given.is_relative_to(MOUNT_PATH):
                given = given.relative_to(MOUNT_PATH)
            elif Path(given).resolve().is_relative_to(self.path):
                given = PurePosixPath(Path(given).resolve().relative_to(self.path))
            else:
                raise self._outside(field, text)
        resolved = (self.path / given).resolve()
        if not resolved.is_relative_to(self.path):
            raise self._outside(field, text)
        return resolved

    def _outside(self, field: str, text: str) -> UserError:
        return UserError(
            f"{field}: {text} lies outside the data root {self.path}; "
            f"use a path relative to it, or one under {MOUNT_PATH}."
        )

    def relative(self, path: str | Path) -> str:
        """``path`` relative to the root, with forward slashes: the form that parameters carry."""
        return Path(path).resolve().relative_to(self.path).as_posix()

    def address(self, place: str | Path) -> str:
        """The URI of an artifact that lies on the volume: ``file:///mnt/Data/…``.

        KFP gives each artifact an address in its own object store, where one without a file has
        nothing; this one may be pasted into a parameter.

        Args:
            place: A path, here or from a parameter. A URL is an address already.

        Raises:
            UserError: The path is empty, or leaves the root.
        """
        text = str(place)
        if "://" in text and not text.startswith("file://"):
            return text
        return (MOUNT_PATH / self.relative(self.resolve(text.removeprefix("file://")))).as_uri()
