"""What a stage has done, and from which inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medseg import __version__
from medseg.project.files import write_json


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(files: Iterable[Path], settings: Mapping[str, Any] | None = None) -> str:
    """One SHA-256 over the names and contents of ``files`` and over ``settings``.

    Args:
        files: Files to read; their order does not matter, their names do (not their folders).
        settings: Values that decide the result; must be serialisable as JSON.

    Returns:
        64 hexadecimal digits.
    """
    total = hashlib.sha256(json.dumps(settings or {}, sort_keys=True, default=str).encode())
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
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.path = folder / ".medseg" / f"{name}.json"

    def read(self) -> dict[str, Any]:
        """The record: ``inputs``, ``outputs``, ``result``, ``version``, ``finished``; or ``{}``."""
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def is_done(self, inputs: str) -> bool:
        """Whether the work on these inputs is finished and its outputs are whole.

        Args:
            inputs: The :func:`fingerprint` of the inputs.
        """
        record = self.read()
        if record.get("inputs") != inputs:
            return False
        for name, size in record.get("outputs", {}).items():
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != size:
                return False
        return True

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
        )
