"""Where studies come from: a DICOMweb server or a folder, behind one interface.

dicomweb-client's own file client is not used: it refuses implicit little endian, leaves out every
file with an attribute that breaks the standard, and keeps patient names in its index. A scan of the
headers with pydicom does the same work; what it found is remembered under the data root, never in
the source's folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import pydicom
import requests
from dicomweb_client.web import DICOMwebClient
from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from medseg.project import DataRoot, UserError, write_json

# What is read is taken as it is: pydicom's warnings quote the values they dislike, and a value may
# be a patient's name.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

IMAGE_MODALITIES = ("CT", "MR", "PT")
"""Modalities whose series become volumes."""

USERNAME_VARIABLE = "MEDSEG_DICOMWEB_USERNAME"
PASSWORD_VARIABLE = "MEDSEG_DICOMWEB_PASSWORD"  # noqa: S105 - the variable's name
TOKEN_VARIABLE = "MEDSEG_DICOMWEB_TOKEN"  # noqa: S105 - the variable's name


@dataclass(frozen=True)
class Study:
    """A study, as far as naming its case needs it.

    Attributes:
        uid: StudyInstanceUID.
        patient_id: PatientID, empty where there is none.
        moment: StudyDate and StudyTime, for sorting.
    """

    uid: str
    patient_id: str
    moment: str


@dataclass(frozen=True)
class Series:
    """A series of a study.

    Attributes:
        study_uid: StudyInstanceUID.
        uid: SeriesInstanceUID.
        modality: Modality, such as ``CT`` or ``SEG``.
        description: SeriesDescription.
        instances: How many instances it holds.
        state: Changes when the series' content does.
    """

    study_uid: str
    uid: str
    modality: str
    description: str
    instances: int
    state: str


class Source(Protocol):
    """What a stage needs of a place that holds studies."""

    def studies(self) -> list[Study]:
        """All studies, sorted by time and UID."""
        ...

    def series(self, study_uid: str) -> list[Series]:
        """The series of one study, sorted by UID; empty for an unknown study."""
        ...

    def fetch(self, series: Series) -> list[Dataset]:
        """All instances of a series, with pixel data."""
        ...


def describe(series: Series) -> str:
    """A series in a message: what a user sees of it in a viewer."""
    return f"{series.modality} {series.description!r} ({series.instances} instances)"


def open_source(root: DataRoot, studies: str) -> Source:
    """The source that the parameter ``studies`` names.

    Args:
        root: The data root.
        studies: A DICOMweb URL (``https://server/dicom-web``), or a folder inside the data root:
            ``file:///mnt/Data/DICOM`` or just ``DICOM``.

    Raises:
        UserError: The folder does not exist, leaves the data root or holds no DICOM; or the URL is
            none that can be read.
    """
    studies = studies.strip()
    scheme = urlsplit(studies).scheme.lower()
    if scheme in ("http", "https"):
        return WebSource(studies)
    if scheme == "file":
        studies = unquote(urlsplit(studies).path)
    elif scheme:
        raise UserError(f"studies: {scheme}:// is not supported; give http(s):// or file:///.")
    folder = root.resolve(studies, field="studies")
    key = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    return FolderSource(folder, root.path / ".medseg" / "dicom" / f"index-{key}.json")


class FolderSource:
    """The DICOM files of a folder, at any depth. The folder itself is never written to.

    Args:
        folder: The folder, or one file.
        index: Where to remember what the headers say, so that the next scan reads only new and
            changed files. Holds UIDs and PatientIDs, and is readable by its owner only.

    Raises:
        UserError: The folder does not exist or holds no DICOM.
    """

    def __init__(self, folder: Path, index: Path | None = None) -> None:
        if not folder.exists():
            raise UserError(f"the folder {folder} does not exist: check where the DICOM files are.")
        self._folder = folder
        self._index = index
        self._studies: dict[str, Study] = {}
        self._files: dict[str, dict[str, list[tuple[Path, dict[str, str]]]]] = {}
        self._scan()
        if not self._studies:
            raise UserError(
                f"{folder} holds no DICOM files: name the folder that the studies lie in."
            )

    def studies(self) -> list[Study]:
        """All studies, sorted by time and UID."""
        return sorted(self._studies.values(), key=lambda study: (study.moment, study.uid))

    def series(self, study_uid: str) -> list[Series]:
        """The series of one study, sorted by UID."""
        found = []
        for uid, files in sorted(self._files.get(study_uid, {}).items()):
            header = files[0][1]
            found.append(
                Series(
                    study_uid,
                    uid,
                    header["Modality"],
                    header["SeriesDescription"],
                    len(files),
                    _state(f"{h['SOPInstanceUID']} {h['stamp']}" for _, h in files),
                )
            )
        return found

    def fetch(self, series: Series) -> list[Dataset]:
        """All instances of a series, read in parallel."""
        paths = [path for path, _ in self._files[series.study_uid][series.uid]]
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            return list(pool.map(pydicom.dcmread, paths))

    def paths(self, study_uid: str) -> list[Path]:
        """The files of one study."""
        return [path for files in self._files[study_uid].values() for path, _ in files]

    def _scan(self) -> None:
        known = self._read_index()
        base = self._folder if self._folder.is_dir() else self._folder.parent
        paths = list(_files(self._folder))
        names = [path.relative_to(base).as_posix() for path in paths]
        stamps = [f"{status.st_size}-{status.st_mtime_ns}" for status in map(os.stat, paths)]

        def header(item: tuple[Path, str, str]) -> dict[str, str]:
            path, name, stamp = item
            before = known.get(name)
            return before if before and before["stamp"] == stamp else _header(path, stamp)

        with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
            headers = list(pool.map(header, zip(paths, names, stamps, strict=True)))
        index = dict(zip(names, headers, strict=True))
        if index != known:
            self._write_index(index)

        files: Any = defaultdict(lambda: defaultdict(dict))
        for path, found in zip(paths, headers, strict=True):
            if "SOPInstanceUID" not in found:
                continue
            study_uid = found["StudyInstanceUID"]
            self._studies.setdefault(
                study_uid,
                Study(study_uid, found["PatientID"], found["StudyDate"] + found["StudyTime"]),
            )
            # A copy of the same instance (export tools leave some) counts once.
            series = files[study_uid][found["SeriesInstanceUID"]]
            series.setdefault(found["SOPInstanceUID"], (path, found))
        self._files = {
            study: {uid: list(instances.values()) for uid, instances in series.items()}
            for study, series in files.items()
        }

    def _read_index(self) -> dict[str, dict[str, str]]:
        try:
            found = json.loads(self._index.read_text()) if self._index else {}
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write_index(self, index: dict[str, dict[str, str]]) -> None:
        if self._index:
            write_json(self._index, index)
            self._index.chmod(0o600)


_HEADER = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "Modality",
    "SeriesDescription",
    "PatientID",
    "StudyDate",
    "StudyTime",
)


def _files(folder: Path) -> Iterator[Path]:
    if folder.is_file():
        yield folder
    for place, folders, files in os.walk(folder):
        # Hidden ones are manifests, unfinished work or what file managers leave behind.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and name != "DICOMDIR":
                yield Path(place, name)


def _header(path: Path, stamp: str) -> dict[str, str]:
    """What the index keeps of a file; only the stamp where the file is no DICOM instance."""
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_HEADER))
        values = {keyword: str(dataset.get(keyword) or "") for keyword in _HEADER}
    except (InvalidDicomError, OSError, ValueError, EOFError, AttributeError, KeyError):
        return {"stamp": stamp}
    if not all(values[keyword] for keyword in _HEADER[:3]):
        return {"stamp": stamp}
    return {"stamp": stamp, **values}


def _state(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()


class WebSource:
    """A DICOMweb server: QIDO-RS to list, WADO-RS to fetch.

    Args:
        url: The server's DICOMweb root.

    Raises:
        UserError: The URL carries a password.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = web_client(url)

    def studies(self) -> list[Study]:
        """All studies, sorted by time and UID."""
        with explained(self._url):
            found = self._client.search_for_studies(
                fields=["PatientID", "StudyDate", "StudyTime"], get_remaining=True
            )
        studies = []
        for item in map(Dataset.from_json, found):
            moment = f"{item.get('StudyDate') or ''}{item.get('StudyTime') or ''}"
            study = Study(str(item.StudyInstanceUID), str(item.get("PatientID") or ""), moment)
            studies.append(study)
        return sorted(studies, key=lambda study: (study.moment, study.uid))

    def series(self, study_uid: str) -> list[Series]:
        """The series of one study, sorted by UID."""
        with explained(self._url):
            found = self._client.search_for_series(
                study_uid, fields=["SeriesDescription", "Modality"], get_remaining=True
            )
            instances = self._client.search_for_instances(study_uid, get_remaining=True)
        members = defaultdict(list)
        for item in map(Dataset.from_json, instances):
            members[str(item.SeriesInstanceUID)].append(str(item.SOPInstanceUID))
        series = []
        for item in map(Dataset.from_json, found):
            uid = str(item.SeriesInstanceUID)
            series.append(
                Series(
                    study_uid,
                    uid,
                    str(item.get("Modality") or ""),
                    str(item.get("SeriesDescription") or ""),
                    len(members[uid]),
                    _state(members[uid]),
                )
            )
        return sorted(series, key=lambda series: series.uid)

    def fetch(self, series: Series) -> list[Dataset]:
        """All instances of a series."""
        with explained(self._url):
            return list(self._client.retrieve_series(series.study_uid, series.uid))


def web_client(url: str) -> DICOMwebClient:
    """A client that waits out short failures; its credentials come from the environment.

    ``MEDSEG_DICOMWEB_TOKEN`` is sent as a bearer token; else ``MEDSEG_DICOMWEB_USERNAME`` and
    ``MEDSEG_DICOMWEB_PASSWORD`` by HTTP basic authentication.

    Args:
        url: The server's DICOMweb root.

    Raises:
        UserError: The URL carries a password, which would end in logs.
    """
    if urlsplit(url).username or urlsplit(url).password:
        raise UserError(
            f"the DICOMweb URL of {urlsplit(url).hostname} carries a user name or password: give "
            f"them by {USERNAME_VARIABLE} and {PASSWORD_VARIABLE} in the environment."
        )
    session = requests.Session()
    retry = Retry(
        total=4, backoff_factor=0.5, status_forcelist=(429, 502, 503, 504), allowed_methods=None
    )
    session.mount("http://", HTTPAdapter(max_retries=retry))
    session.mount("https://", HTTPAdapter(max_retries=retry))
    if token := os.environ.get(TOKEN_VARIABLE):
        session.headers["Authorization"] = f"Bearer {token}"
    elif username := os.environ.get(USERNAME_VARIABLE):
        session.auth = (username, os.environ.get(PASSWORD_VARIABLE, ""))
    client = DICOMwebClient(url.rstrip("/"), session=session, timeout=(10, 300))
    client.set_http_retry_params(retry=False)  # the session does it, connection errors included
    return client


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turns an error of the server or the network into a sentence.

    Args:
        url: The server's DICOMweb root.

    Raises:
        UserError: In place of any error of ``requests``.
    """
    try:
        yield
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else "an error"
        if status in (401, 403):
            advice = (
                f"set {USERNAME_VARIABLE} and {PASSWORD_VARIABLE}, or {TOKEN_VARIABLE}, "
                "to credentials that may read and write there"
            )
        elif status == 404:
            advice = "check that the URL is the DICOMweb root (Orthanc: …/dicom-web)"
        else:
            advice = "look into the server's log"
        raise UserError(f"the DICOMweb server {url} answered {status}: {advice}.") from None
    except requests.RequestException as error:
        raise UserError(
            f"the DICOMweb server {url} cannot be reached ({type(error).__name__}): "
            "check the URL and the network."
        ) from None
