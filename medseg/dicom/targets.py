"""Where DICOM goes: a folder, a DICOMweb server or a DICOM node.

Sending and remembering are two jobs: a :class:`Sender` takes instances and knows nothing of cases;
a :class:`Target` keeps cases, each once, whichever way their instances go.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pydicom import Dataset
from pynetdicom.sop_class import Verification

from medseg import project
from medseg.dicom.dicomweb import server_errors, url_scheme, web_client
from medseg.dicom.dimse import Node
from medseg.dicom.private import private_path
from medseg.project import DataRoot, Manifest, UserError, atomic_folder

_BATCH = 64
"""Instances in one STOW-RS request: bounds its memory."""


class Sender(Protocol):
    """A way to a server that takes instances."""

    def send(self, instances: Sequence[Dataset]) -> None:
        """Sends instances; all are stored when it returns.

        An instance that the server holds already is no error, so what was cut off can be repeated
        whole.

        Args:
            instances: Complete instances, with ``file_meta``, of any number of series and studies.

        Raises:
            UserError: The server cannot be reached, or refuses an instance; some may be stored.
        """
        ...

    def holds(self, study_uid: str, instance_uids: Collection[str]) -> bool:
        """Whether the server holds all these instances.

        Args:
            study_uid: StudyInstanceUID of the instances.
            instance_uids: Their SOPInstanceUIDs.

        Returns:
            Also True where the server cannot be asked: what was sent counts as held.

        Raises:
            UserError: The server cannot be reached.
        """
        ...


class Target(Protocol):
    """What keeps the cases that a stage makes, each once.

    A case is one study. A stage asks :meth:`is_done` before it makes a case, and hands it to
    :meth:`store` complete.
    """

    @property
    def folder(self) -> Path | None:
        """Its folder on the data root; None where it is elsewhere."""
        ...

    def is_done(self, case: str, inputs: str) -> bool:
        """Whether the case made from these inputs is already there, whole.

        Args:
            case: The case's name, as PatientID; safe as a file name.
            inputs: The :func:`medseg.project.fingerprint` of all that decides the study's content:
                the case's files, names, labels, modality, our version. Other inputs, another study.

        Raises:
            UserError: The target cannot be asked.
        """
        ...

    def store(self, case: str, inputs: str, series: Mapping[str, Sequence[Dataset]]) -> None:
        """Stores a case, and remembers it only when all is stored.

        Args:
            case: As in :meth:`is_done`. What is stored under this name is replaced in a folder; on
                a server it stays, for it has other UIDs.
            inputs: As in :meth:`is_done`.
            series: Series name, safe as a file name, to the series' instances. All belong to one
                study, are complete and have ``file_meta``.

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
    if url_scheme(output, field="output") in ("http", "https", "dicom"):
        return _ServerTarget(root, output)
    return _FolderTarget(root.resolve(output, field="output"))


def open_sender(url: str, *, field: str) -> Sender:
    """The way to the server that a URL names, after a first look whether it answers.

    Args:
        url: A DICOMweb URL (STOW-RS), or ``dicom://AETITLE@host:port`` (C-STORE).
        field: The parameter that holds the URL, for the message.

    Raises:
        UserError: The URL is malformed or the server cannot be reached.
    """
    if url_scheme(url, field=field) == "dicom":
        return _NodeSender(Node.from_url(url, field=field))
    return _WebSender(url)


class _FolderTarget:
    """Files ``<folder>/<case>/<series>/0001.dcm``."""

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


class _ServerTarget:
    """Sends, and remembers under the data root what was sent."""

    folder = None

    def __init__(self, root: DataRoot, url: str) -> None:
        self._sender = open_sender(url, field="output")
        self._records = project.private_folder(private_path(root, "sent", url))

    def is_done(self, case: str, inputs: str) -> bool:
        sent = self._manifest(case).result(inputs)
        if sent is None:
            return False
        # empty where an earlier version sent to a node
        return self._sender.holds(sent.get("study", ""), sent.get("instances", ()))

    def store(self, case: str, inputs: str, series: Mapping[str, Sequence[Dataset]]) -> None:
        instances = [instance for items in series.values() for instance in items]
        self._sender.send(instances)
        sent = {
            "study": str(instances[0].StudyInstanceUID),
            "instances": [str(instance.SOPInstanceUID) for instance in instances],
        }
        self._manifest(case).record(inputs, (), sent)

    def _manifest(self, case: str) -> Manifest:
        return Manifest(self._records, case, private=True)


class _WebSender:
    """STOW-RS."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = web_client(url)
        with server_errors(url):
            self._client.search_for_studies(limit=1)

    def send(self, instances: Sequence[Dataset]) -> None:
        for start in range(0, len(instances), _BATCH):
            with server_errors(self._url):
                answer = self._client.store_instances(instances[start : start + _BATCH])
            failed = answer.get("FailedSOPSequence") or ()
            if failed:
                reason = failed[0].get("FailureReason")
                raise UserError(
                    f"the DICOMweb server {self._url} refused {len(failed)} instances "
                    f"(failure reason {reason}): look into the server's log."
                )

    def holds(self, study_uid: str, instance_uids: Collection[str]) -> bool:
        with server_errors(self._url):  # someone may have deleted it there
            items = self._client.search_for_instances(study_uid, get_remaining=True)
        there = {str(Dataset.from_json(item).SOPInstanceUID) for item in items}
        return there >= set(instance_uids)


class _NodeSender:
    """C-STORE. A node cannot be asked what it holds."""

    def __init__(self, node: Node) -> None:
        self._node = node
        with node.associate({Verification}):
            pass

    def send(self, instances: Sequence[Dataset]) -> None:
        with self._node.associate({instance.SOPClassUID for instance in instances}) as association:
            for instance in instances:
                try:
                    status = association.send_c_store(instance).get("Status")
                except (ValueError, RuntimeError) as error:  # no accepted context, or cut off
                    raise UserError(
                        f"the DICOM node {self._node.url} refused an instance "
                        f"({type(error).__name__}): look into the node's log."
                    ) from None
                if status is None or (status != 0 and status >> 12 != 0xB):  # 0xBxxx: a warning
                    answer = "no answer" if status is None else f"status 0x{status:04X}"
                    raise UserError(
                        f"the DICOM node {self._node.url} did not store an instance "
                        f"({answer}): look into the node's log."
                    )

    def holds(self, study_uid: str, instance_uids: Collection[str]) -> bool:  # noqa: ARG002
        return True
