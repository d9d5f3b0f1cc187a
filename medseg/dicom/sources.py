"""Where studies come from: a DICOMweb server or a folder, behind one interface.

dicomweb-client's own file client is not used: it refuses implicit little endian, leaves out every
file with an attribute that breaks the standard, and keeps patient names in its index. A scan of the
headers with pydicom does the same work; what it found is remembered under the data root, never in
the source's folder.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import pydicom
from pydicom import Dataset
from pydicom.errors import InvalidDicomError

from medseg.dicom.dicomweb import server_errors, web_client
from medseg.dicom.private import private_path
from medseg.project import DataRoot, UserError, read_json, write_json

# For the whole process, as the room's docstring says: pydicom looks at a value when it is first
# asked for, which may be long after the file was read.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

IMAGE_MODALITIES = ("CT", "MR", "PT")
"""Modalities whose series become volumes."""


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

    def __str__(self) -> str:
        """The series in a message, as a person sees it in a viewer."""
        return f"{self.modality} {self.description!r} ({self.instances} instances)"


class Source(Protocol):
    """A place that holds studies: all that the stages ask of it.

    A stage opens its source anew, asks once for the studies, then for the series of each study of
    its shard, and fetches only the series that it needs. Several stages may ask at once, from
    several machines. The place is only read.

    What a user can mend (no access, a wrong address, a server that refuses) is a ``UserError``,
    whose text quotes no header. Any other error fails the one case that it strikes, and only its
    type and place are told.
    """

    def studies(self) -> list[Study]:
        """All studies, each once, sorted by moment and UID; may be thousands.

        The order is part of the contract: two studies of a patient get their case names by it.

        Raises:
            UserError: The place cannot be reached or read.
        """
        ...

    def series(self, study_uid: str) -> list[Series]:
        """The series of one study, of every modality, sorted by SeriesInstanceUID.

        :attr:`Series.state` decides whether a case is converted again: it stays the same as long as
        the series holds the same instances, and changes when one is added, removed or replaced (as
        far as the place tells).

        Args:
            study_uid: StudyInstanceUID.

        Returns:
            The series; none for a study that the place does not hold.

        Raises:
            UserError: The place cannot be reached or read.
        """
        ...

    def fetch(self, series: Series) -> list[Dataset]:
        """All instances of a series, each once, in any order.

        Args:
            series: One that :meth:`series` of this source gave.

        Returns:
            Complete instances: pixel data as stored (compressed or not), and ``file_meta`` with
            the transfer syntax. They are the caller's, who takes the pixel data out of them.

        Raises:
            UserError: The place cannot be reached or read.
        """
        ...


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
    return FolderSource(folder, private_path(root, "index", str(folder), ".json"))


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
        members = []
        for uid, files in sorted(self._files.get(study_uid, {}).items()):
            header = files[0][1]
            members.append(
                Series(
                    study_uid,
                    uid,
                    header["Modality"],
                    header["SeriesDescription"],
                    len(files),
                    _state(f"{h['SOPInstanceUID']} {h['stamp']}" for _, h in files),
                )
            )
        return members

    def fetch(self, series: Series) -> list[Dataset]:
        """All instances of a series, read in parallel."""
        paths = [path for path, _ in self._files[series.study_uid][series.uid]]
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            return list(pool.map(pydicom.dcmread, paths))

    def paths(self, study_uid: str) -> list[Path]:
        """The files of one study."""
        return [path for files in self._files[study_uid].values() for path, _ in files]

    def _scan(self) -> None:
        before = self._read_index()
        base = self._folder if self._folder.is_dir() else self._folder.parent
        paths = list(_files(self._folder))
        names = [path.relative_to(base).as_posix() for path in paths]
        stamps = [f"{status.st_size}-{status.st_mtime_ns}" for status in map(os.stat, paths)]

        def header(path: Path, name: str, stamp: str) -> dict[str, str]:
            remembered = before.get(name)
            if remembered and remembered["stamp"] == stamp:
                return remembered
            return _header(path, stamp)

        with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
            headers = list(pool.map(header, paths, names, stamps))
        index = dict(zip(names, headers, strict=True))
        if index != before:
            self._write_index(index)
        self._sort(paths, headers)

    def _sort(self, paths: list[Path], headers: list[dict[str, str]]) -> None:
        """Files into series and studies; a copy of an instance (export tools leave some) is one."""
        files: Any = defaultdict(lambda: defaultdict(dict))
        for path, header in zip(paths, headers, strict=True):
            if "SOPInstanceUID" not in header:
                continue
            uid = header["StudyInstanceUID"]
            moment = header["StudyDate"] + header["StudyTime"]
            self._studies.setdefault(uid, Study(uid, header["PatientID"], moment))
            instances = files[uid][header["SeriesInstanceUID"]]
            instances.setdefault(header["SOPInstanceUID"], (path, header))
        self._files = {
            study: {uid: list(instances.values()) for uid, instances in series.items()}
            for study, series in files.items()
        }

    def _read_index(self) -> dict[str, dict[str, str]]:
        try:
            return dict(read_json(self._index, {})) if self._index else {}
        except (OSError, UserError):  # then all headers are read again
            return {}

    def _write_index(self, index: dict[str, dict[str, str]]) -> None:
        if self._index:
            write_json(self._index, index, private=True)


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
        with server_errors(self._url):
            items = self._client.search_for_studies(
                fields=["PatientID", "StudyDate", "StudyTime"], get_remaining=True
            )
        studies = []
        for item in map(Dataset.from_json, items):
            moment = f"{item.get('StudyDate') or ''}{item.get('StudyTime') or ''}"
            study = Study(str(item.StudyInstanceUID), str(item.get("PatientID") or ""), moment)
            studies.append(study)
        return sorted(studies, key=lambda study: (study.moment, study.uid))

    def series(self, study_uid: str) -> list[Series]:
        """The series of one study, sorted by UID."""
        with server_errors(self._url):
            items = self._client.search_for_series(
                study_uid, fields=["SeriesDescription", "Modality"], get_remaining=True
            )
            instances = self._client.search_for_instances(study_uid, get_remaining=True)
        members = defaultdict(list)
        for item in map(Dataset.from_json, instances):
            members[str(item.SeriesInstanceUID)].append(str(item.SOPInstanceUID))
        series = []
        for item in map(Dataset.from_json, items):
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
        with server_errors(self._url):
            return list(self._client.retrieve_series(series.study_uid, series.uid))
