"""What a stage has done, and from which inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medseg import __version__
from medseg.project.errors import UserError
from medseg.project.files import read_json, write_json


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(settings: Mapping[str, Any], files: Iterable[Path] = ()) -> str:
    """One SHA-256 over ``settings`` and over the names and contents of ``files``.

    Args:
        settings: Values that decide the result; must be serialisable as JSON.
        files: Files to read; their order does not matter, their names do (not their folders).

    Returns:
        64 hexadecimal digits.
    """
    total = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for path in sorted(files):
        total.update(f"\0{path.name}\0{file_hash(path)}".encode())
    return total.hexdigest()


class Manifest:
    """The record of one stage's finished work, kept in the folder that the work produced.

    A stage (or one case of it) is done when the record holds the same fingerprint of the inputs
    and every output file still has the size that was recorded.

    Args:
        folder: The folder of the outputs. The record is ``<folder>/.medseg/<name>.json``.
        name: The stage, or the stage and case.
        private: Whether its owner alone may read the record, as it names what identifies patients.
    """

    def __init__(self, folder: Path, name: str, *, private: bool = False) -> None:
        self.folder = folder
        self.path = folder / ".medseg" / f"{name}.json"
        self.private = private

    def read(self) -> dict[str, Any]:
        """The record: ``inputs``, ``outputs``, ``result``, ``version``, ``finished``; or ``{}``."""
        try:
            return dict(read_json(self.path, {}))
        except (OSError, UserError):  # then nothing counts as done
            return {}

    def is_done(self, inputs: str) -> bool:
        """Whether the work on these inputs is finished and its outputs are whole.

        Args:
            inputs: The :func:`fingerprint` of the inputs.
        """
        return self.result(inputs) is not None

    def result(self, inputs: str | None = None) -> dict[str, Any] | None:
        """The recorded result of finished work whose outputs are whole.

        Args:
            inputs: The :func:`fingerprint` of the inputs; None means whatever they were.

        Returns:
            The ``result`` given to :meth:`record`; None where the work is not done.
        """
        record = self.read()
        if "inputs" not in record or inputs not in (None, record["inputs"]):
            return None
        for name, size in record.get("outputs", {}).items():
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != size:
                return None
        return dict(record.get("result", {}))

    def forget(self) -> None:
        """Removes the record, so that the work counts as not done."""
        self.path.unlink(missing_ok=True)

    def record(
        self, inputs: str, outputs: Iterable[Path], result: Mapping[str, Any] | None = None
    ) -> None:
        """Writes the record, last of all.

        Args:
            inputs: The :func:`fingerprint` of the inputs.
            outputs: Files inside the manifest's folder that the work produced.
            result: What a skipped stage must still be able to report; JSON.
        """
        write_json(
            self.path,
            {
                "inputs": inputs,
                "outputs": {
                    path.relative_to(self.folder).as_posix(): path.stat().st_size
                    for path in sorted(outputs)
                },
                "result": dict(result or {}),
                "version": __version__,
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            },
            private=self.private,
        )
