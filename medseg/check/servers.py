"""The servers that stages speak to: PACS, MLflow and its storage, the webhook; and their clocks."""

from __future__ import annotations

import os
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from medseg.check.rows import Row, refused
from medseg.project import DataRoot, UserError, secret
from medseg.project.variables import TRACKING_URI, library_secrets

if TYPE_CHECKING:
    from pydicom import Dataset

PATIENT = "MEDSEG-CHECK"
"""PatientID of the one instance that is stored in a PACS, MLflow's experiment in small letters."""
CLOCK_S = 30.0
"""seconds that a clock may be off: certificates and tokens allow little, S3 900."""
CLOCK_LIMIT_S = 300.0
_LOOKED_AT = 2000  # files of a folder


def pacs_rows(root: DataRoot | None, studies: str, *, store: bool = False) -> Iterator[Row]:
    """Whether studies can be found, and stored if that is asked.

    Args:
        root: The data root, for a folder.
        studies: As ``list_studies`` takes it, or ``dicom://AETITLE@host:port``; empty: not asked.
        store: Whether to store one small instance of a patient :data:`PATIENT`.
    """
    if not studies:
        yield Row("PACS", "not asked", "give studies=… to look")
        return
    from medseg.dicom import holds_studies, open_sender, url_scheme

    scheme = url_scheme(studies, field="studies")
    if scheme in ("http", "https"):
        start = time.perf_counter()
        found = holds_studies(studies)
        text = f"QIDO-RS answered in {1000 * (time.perf_counter() - start):.0f} ms"
        yield Row("PACS", "ok", text + ("" if found else "; it holds no study"))
    elif scheme == "dicom":
        open_sender(studies, field="studies")
        yield Row("PACS", "ok", "the node answered C-ECHO")
    else:
        yield _folder(root, studies)
    if not store:
        yield Row("PACS: store", "not asked", "give store=true to store one small instance")
    elif scheme in ("http", "https", "dicom"):
        try:
            open_sender(studies, field="studies").send([_instance()])
        except UserError as error:
            yield refused("PACS: store", error)
        else:
            text = f"stored one instance of the patient {PATIENT}, which you may delete there"
            yield Row("PACS: store", "ok", text)


def _folder(root: DataRoot | None, studies: str) -> Row:
    from medseg.dicom import is_dicom_file

    if root is None:
        return Row("PACS", "failed", "a folder of the volume, which is not there", "see its row")
    path = root.resolve(unquote(urlsplit(studies).path) or studies, field="studies")
    if not path.is_dir():
        remedy = "name a folder on the volume: file:///mnt/Data/…"
        return Row("PACS", "failed", f"{studies} is no folder", remedy)
    files = islice((file for file in path.rglob("*") if file.is_file()), _LOOKED_AT)
    if any(map(is_dicom_file, files)):
        return Row("PACS", "ok", f"{studies} holds DICOM files")
    return Row("PACS", "failed", f"{studies} holds no DICOM file", "copy the studies there")


def _instance() -> Dataset:
    """A secondary capture of eight by eight pixels, the same one at every check."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    study, series, instance = (
        generate_uid(entropy_srcs=["medseg check", what]) for what in ("study", "series", "one")
    )
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = instance
    made.StudyInstanceUID, made.SeriesInstanceUID = study, series
    made.PatientID = made.PatientName = PATIENT
    made.PatientBirthDate = made.PatientSex = made.ReferringPhysicianName = ""
    made.StudyID = made.AccessionNumber = made.StudyTime = ""
    made.StudyDate = "20000101"
    made.Modality, made.ConversionType = "OT", "SYN"
    made.SeriesNumber, made.InstanceNumber = 1, 1
    made.Rows = made.Columns = 8
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit, made.PixelRepresentation = 7, 0
    made.PixelData = bytes(64)
    return made


# --- MLflow ---


def mlflow_rows(tracking_uri: str) -> Iterator[Row]:
    """Whether a run can be written to MLflow, and a file to its storage.

    One run in an experiment ``medseg-check`` is made once and written again by later checks.

    Args:
        tracking_uri: As the config names it; by default that of the environment, else the store
            on the volume.
    """
    uri = tracking_uri or TRACKING_URI.value
    if not uri:
        yield Row("MLflow", "ok", "none is named: the store on the volume (mlflow.db)")
        yield Row("S3", "not asked", "the store on the volume needs none")
        return
    from medseg.tracking import TryRun

    with tempfile.TemporaryDirectory() as scratch, library_secrets("mlflow", "mlflow_artifacts"):
        attempt = TryRun(uri, PATIENT.lower())
        attempt.write()
        yield Row("MLflow", "ok", f"wrote to a run of {PATIENT.lower()}")
        file = Path(scratch) / "check.txt"
        file.write_text(f"{time.time()}\n", encoding="utf-8")
        name = "S3" if attempt.storage.startswith("s3:") else "MLflow: files"
        try:
            attempt.write_file(file)
        except UserError as error:
            yield refused(name, error)
        else:
            yield Row(name, "ok", f"wrote a file to {attempt.storage}, and read it")


# --- the webhook ---


def webhook_rows() -> Iterator[Row]:
    """Whether the webhook of ``notify`` takes a message; it is sent one that says it is a test."""
    url = secret("notify", "url")
    if not url:
        yield Row("webhook", "not asked", "there is no notify Secret: nobody hears of failed runs")
        return
    from medseg.kubeflow.notify import post_message

    text = "medseg: this is a test message of the pipeline check; nothing has failed."
    post_message(url, {"text": text, "pipeline": "check", "status": "SUCCEEDED"})
    yield Row("webhook", "ok", f"{urlsplit(url).hostname} took a test message")


# --- the clock ---


def clock_rows(root: DataRoot | None, urls: Sequence[str]) -> Iterator[Row]:
    """How far this machine's clock is from those of the volume and the servers.

    Args:
        root: The data root.
        urls: Servers that may be asked for their time; those without http(s) are passed over.
    """
    apart: dict[str, float] = {}
    if root is not None and (seconds := _volume_clock(root)) is not None:
        apart["the volume"] = seconds
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and (seconds := _server_clock(url)) is not None:
            apart[str(parts.hostname)] = seconds
    if not apart:
        yield Row("clock", "warning", "no other clock could be seen", "compare it by hand (date)")
        return
    where, most = max(apart.items(), key=lambda item: abs(item[1]))
    if abs(most) <= CLOCK_S:
        yield Row("clock", "ok", f"agrees with {', '.join(apart)}")
        return
    way = "ahead of" if most > 0 else "behind"
    yield Row(
        "clock",
        "failed" if abs(most) > CLOCK_LIMIT_S else "warning",
        f"this node's is {abs(most):.0f} s {way} that of {where}",
        "let both follow a time server (timedatectl, chrony): certificates, tokens and S3 refuse "
        "a clock that is off",
    )


def _volume_clock(root: DataRoot) -> float | None:
    """Seconds that this clock is ahead of the file server's."""
    try:
        with tempfile.NamedTemporaryFile(dir=root.path, prefix=".medseg-clock-") as file:
            before = time.time()
            file.write(b"now")
            file.flush()
            os.fsync(file.fileno())
            after = time.time()
            written = Path(file.name).stat().st_mtime
    except OSError:
        return None
    if before - 2 <= written <= after + 2:  # some file systems know whole seconds only
        return 0.0
    return (before + after) / 2 - written


def _server_clock(url: str) -> float | None:
    parts = urlsplit(url)
    root = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/"
    try:
        with urllib.request.urlopen(root, timeout=5) as answer:  # noqa: S310 - http(s) only
            date = answer.headers["Date"]
    except urllib.error.HTTPError as error:
        date = error.headers["Date"]
    except OSError:
        return None
    try:
        told: datetime = parsedate_to_datetime(date)
    except (TypeError, ValueError):
        return None
    seconds = time.time() - told.timestamp()
    return 0.0 if abs(seconds) < 2 else seconds
