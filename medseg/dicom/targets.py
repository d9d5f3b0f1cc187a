"""Where DICOM goes: a folder, a DICOMweb server or a DICOM node."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.sop_class import Verification

from medseg.dicom.sources import explained, web_client
from medseg.project import DataRoot, Manifest, UserError, atomic_folder

_BATCH = 64
"""Instances in one STOW-RS request: bounds its memory."""


class Target(Protocol):
    """What takes the studies that a stage makes."""

    @property
    def folder(self) -> Path | None:
        """Its folder on the data root; None where it is elsewhere."""
        ...

    def is_done(self, case: str, inputs: str) -> bool:
        """Whether the case made from these inputs is already there."""
        ...

    def store(self, case: str, inputs: str, series: Mapping[str, Sequence[Dataset]]) -> None:
        """Stores a case: series name to its instances.

        Raises:
            UserError: The target refuses an instance or cannot be reached.
        """
        ...


def open_target(root: DataRoot, output: str) -> Target:
    """The target that a parameter names, after a first look whether it answers.

    Args:
        root: The data root.
        output: A folder inside the data root, a DICOMweb URL, or ``dicom://AETITLE@host:port``.

    Raises:
        UserError: The target is malformed or cannot be reached.
    """
    scheme = urlsplit(output).scheme.lower()
    if scheme in ("http", "https"):
        return _WebTarget(root, output)
    if scheme == "dicom":
        return _NodeTarget(root, output)
    return _FolderTarget(root.resolve(output, field="output"))


class _FolderTarget:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def is_done(self, case: str, inputs: str) -> bool:
        return Manifest(self.folder, case).is_done(inputs)

    def store(self, case: str, inputs: str, series: Mapping[str, Sequence[Dataset]]) -> None:
        with atomic_folder(self.folder / case) as folder:
            for name, instances in series.items():
                (folder / name).mkdir()
                for instance in instances:
                    file = folder / name / f"{int(instance.InstanceNumber):04d}.dcm"
                    instance.save_as(file, enforce_file_format=True)
        outputs = (self.folder / case).rglob("*.dcm")
        Manifest(self.folder, case).record(inputs, outputs)


class _WebTarget:
    folder = None

    def __init__(self, root: DataRoot, url: str) -> None:
        self._url = url
        self._record = _record_folder(root, url)
        self._client = web_client(url)
        with explained(url):
            self._client.search_for_studies(limit=1)

    def is_done(self, case: str, inputs: str) -> bool:
        manifest = Manifest(self._record, case)
        if not manifest.is_done(inputs):
            return False
        sent = manifest.read()["result"]
        with explained(self._url):  # someone may have deleted it there
            found = self._client.search_for_instances(sent["study"], get_remaining=True)
        there = {str(Dataset.from_json(item).SOPInstanceUID) for item in found}
        return there >= set(sent["instances"])

    def store(self, case: str, inputs: str, series: Mapping[str, Sequence[Dataset]]) -> None:
        instances = [instance for items in series.values() for instance in items]
        for start in range(0, len(instances), _BATCH):
            with explained(self._url):
                answer = self._client.store_instances(instances[start : start + _BATCH])
            failed = answer.get("FailedSOPSequence") or ()
            if failed:
                reason = failed[0].get("FailureReason")
                raise UserError(
                    f"the DICOMweb server {self._url} refused {len(failed)} instances of {case} "
                    f"(failure reason {reason}): look into the server's log."
                )
        result = {
            "study": str(instances[0].StudyInstanceUID),
            "instances": [str(instance.SOPInstanceUID) for instance in instances],
        }
        Manifest(self._record, case).record(inputs, (), result)


class _NodeTarget:
    """C-STORE. A node cannot be asked what it holds, so the manifest alone decides."""

    folder = None

    def __init__(self, root: DataRoot, url: str) -> None:
        match = re.fullmatch(r"dicom://([^@/]{1,16})@(\[[^\]]+\]|[^:/@]+):(\d+)/?", url)
        if match is None:
            raise UserError(f"output: {url} is no DICOM node: write dicom://AETITLE@host:port.")
        self._url = url
        self._title, self._host, self._port = match[1], match[2].strip("[]"), int(match[3])
        self._record = _record_folder(root, url)
        self._associate({Verification}).release()

    def is_done(self, case: str, inputs: str) -> bool:
        return Manifest(self._record, case).is_done(inputs)

    def store(self, case: str, inputs: str, series: Mapping[str, Sequence[Dataset]]) -> None:
        instances = [instance for items in series.values() for instance in items]
        association = self._associate({instance.SOPClassUID for instance in instances})
        try:
            for instance in instances:
                try:
                    status = association.send_c_store(instance).get("Status")
                except (ValueError, RuntimeError) as error:  # no accepted context, or cut off
                    raise UserError(f"the DICOM node {self._url} refused {case}: {error}") from None
                if status is None or (status != 0 and status >> 12 != 0xB):  # 0xBxxx: a warning
                    shown = "no answer" if status is None else f"status 0x{status:04X}"
                    raise UserError(
                        f"the DICOM node {self._url} did not store an instance of {case} "
                        f"({shown}): look into the node's log."
                    )
        finally:
            association.release()
        Manifest(self._record, case).record(inputs, ())

    def _associate(self, sop_classes: set[str]) -> Any:
        node = AE(ae_title="MEDSEG")
        node.acse_timeout = node.connection_timeout = 10
        node.dimse_timeout = 60
        for sop_class in sorted(sop_classes):
            node.add_requested_context(sop_class, ExplicitVRLittleEndian)
        association = node.associate(self._host, self._port, ae_title=self._title)
        if not association.is_established:
            raise UserError(
                f"the DICOM node {self._url} accepts no association from MEDSEG: check host, port "
                "and AE title, and that the node knows MEDSEG."
            )
        return association


def _record_folder(root: DataRoot, url: str) -> Path:
    return root.path / ".medseg" / "dicom" / f"sent-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
