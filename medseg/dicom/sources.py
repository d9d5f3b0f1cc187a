"""Where studies come from: a DICOMweb server or a folder, behind one interface.

dicomweb-client's own file client is not used: it refuses implicit little endian, leaves out every
file with an attribute that breaks the standard, and keeps patient names in its index. A scan of the
headers with pydicom does the same work; what it found is remembered under the data root, never in
the source's folder.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import warnings
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import pydicom
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
)

from medseg.dicom.dicomweb import server_errors, url_scheme, web_client
from medseg.dicom.private import private_path
from medseg.dicom.series import left_out_reason
from medseg.project import DataRoot, UserError, read_json, write_json

# For the whole process, as the room's docstring says: pydicom looks at a value when it is first
# asked for, which may be long after the file was read.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
warnings.filterwarnings("ignore", module=r"pydicom\.")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # what matters we say ourselves

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
        no_volume: Why none of its instances can be a slice of a volume (a localizer, …), as far as
            the source knows without fetching them; else empty.
    """

    study_uid: str
    uid: str
    modality: str
    description: str
    instances: int
    state: str
    no_volume: str = ""

    def __str__(self) -> str:
        """The series in a message, as a person sees it in a viewer."""
        return f"{self.modality} {self.description!r} ({self.instances} instances)"


@dataclass(frozen=True)
class LeftOut:
    """A file that a source holds and does not use.

    Attributes:
        what: The file, as messages name it.
        reason: Why it is left out.
        instead: The file that was read in its place, if any.
        study_uid: The study that lacks it, where one can tell.
    """

    what: str
    reason: str
    instead: str = ""
    study_uid: str = ""

    def __str__(self) -> str:
        """The reason in a message, which names the file beside it."""
        return self.reason + (f" ({self.instead} was read)" if self.instead else "")


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

    def left_out(self) -> list[LeftOut]:
        """What the place holds and the source does not use, by name; each is to be told of."""
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


def open_source(root: DataRoot, studies: str, *, nameless: bool = False) -> Source:
    """The source that the parameter ``studies`` names.

    Args:
        root: The data root.
        studies: A DICOMweb URL (``https://server/dicom-web``), or a folder inside the data root:
            ``file:///mnt/Data/DICOM`` or just ``DICOM``.
        nameless: Whether messages give files by number, as their names may tell who the patient is.

    Raises:
        UserError: The folder does not exist, leaves the data root or holds no DICOM; or the URL is
            none that can be read.
    """
    studies = studies.strip()
    scheme = url_scheme(studies, field="studies")
    if scheme in ("http", "https"):
        return WebSource(studies)
    if scheme == "file":
        studies = unquote(urlsplit(studies).path)
    elif scheme:
        raise UserError(f"studies: {scheme}:// is not supported; give http(s):// or file:///.")
    folder = root.resolve(studies, field="studies")
    index = private_path(root, "index", str(folder), ".json")
    return FolderSource(folder, index, within=root.path, nameless=nameless)


class FolderSource:
    """The DICOM files of a folder, at any depth. The folder itself is never written to.

    Files without preamble are read too, and links to folders are followed, but for those that lead
    out of ``within``. Hidden files and folders are no part of it.

    Args:
        folder: The folder, or one file.
        index: Where to remember what the headers say, so that the next scan reads only new and
            changed files. Holds UIDs and PatientIDs, and is readable by its owner only.
        within: The folder that links may not leave.
        nameless: As in :func:`open_source`; the number is the file's in the index.
        may_be_empty: Whether a folder without DICOM is no error.

    Raises:
        UserError: The folder does not exist, or holds no DICOM and may not.
    """

    def __init__(
        self,
        folder: Path,
        index: Path | None = None,
        *,
        within: Path | None = None,
        nameless: bool = False,
        may_be_empty: bool = False,
    ) -> None:
        if not folder.exists():
            raise UserError(f"the folder {folder} does not exist: check where the DICOM files are.")
        self._folder = folder
        self._base = folder if folder.is_dir() else folder.parent
        self._index = index
        self._nameless = nameless
        self._numbers: dict[str, int] = {}
        self._studies: dict[str, Study] = {}
        self._files: dict[str, dict[str, list[tuple[Path, dict[str, str]]]]] = {}
        self._left_out: list[LeftOut] = []
        self._instances: dict[Path, str] = {}
        self._scan(within)
        if not self._studies and not may_be_empty:
            reasons = "".join(f"; {item.what}: {item}" for item in self._left_out[:3])
            raise UserError(
                f"{folder} holds no DICOM files{reasons}: name the folder that the studies lie in."
            )

    def studies(self) -> list[Study]:
        """All studies, sorted by time and UID."""
        return sorted(self._studies.values(), key=lambda study: (study.moment, study.uid))

    def series(self, study_uid: str) -> list[Series]:
        """The series of one study, sorted by UID."""
        members = []
        for uid, files in sorted(self._files.get(study_uid, {}).items()):
            header = files[0][1]
            reasons = [
                left_out_reason(h["ImageType"], h["SOPClassUID"], h["SamplesPerPixel"])
                for _, h in files
            ]
            members.append(
                Series(
                    study_uid,
                    uid,
                    header["Modality"],
                    header["SeriesDescription"],
                    len(files),
                    _state(f"{h['SOPInstanceUID']} {h['stamp']}" for _, h in files),
                    reasons[0] if all(reasons) else "",
                )
            )
        return members

    def left_out(self) -> list[LeftOut]:
        """The files that are not used, by name."""
        return sorted(self._left_out, key=lambda item: item.what)

    def fetch(self, series: Series) -> list[Dataset]:
        """All instances of a series, read in parallel; ``filename`` is the name for messages."""
        paths = [path for path, _ in self._files[series.study_uid][series.uid]]
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            return list(pool.map(self._read, paths))

    def paths(self, study_uid: str) -> list[Path]:
        """The files of one study."""
        return [path for files in self._files[study_uid].values() for path, _ in files]

    def instances(self) -> dict[Path, str]:
        """Every file that is an instance, also one that is left out as another has its UIDs.

        Returns:
            The file to its StudyInstanceUID.
        """
        return dict(self._instances)

    def _read(self, path: Path) -> Dataset:
        name = self._name(path)
        try:
            dataset = pydicom.dcmread(path, force=True)
        except OSError:
            raise
        except Exception:  # noqa: BLE001 - whatever pydicom says of a damaged file
            raise UserError(
                f"{name} cannot be read as DICOM: it is damaged or cut off; fetch it again, or "
                "remove it."
            ) from None
        _complete_meta(dataset)
        dataset.filename = name
        return dataset

    def _name(self, path: Path) -> str:
        """A file in a message."""
        name = path.relative_to(self._base).as_posix()
        return f"file {self._numbers.get(name, 0)}" if self._nameless else name

    def _scan(self, within: Path | None) -> None:
        before = self._read_index()
        paths, refused = _files(self._folder, within)
        names = [path.relative_to(self._base).as_posix() for path in (*paths, *refused)]
        self._numbers = {name: number for number, name in enumerate(names, start=1)}

        def header(path: Path, name: str) -> dict[str, str]:
            stamp = _stamp(path)
            remembered = before.get(name, {})
            if stamp and remembered.get("stamp") == stamp and _is_complete(remembered):
                return remembered
            return _header(path, stamp)

        with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
            headers = list(pool.map(header, paths, names[: len(paths)]))
        headers += [{"stamp": "", "reason": reason} for reason in refused.values()]
        index = dict(zip(names, headers, strict=True))
        if index != before:
            self._write_index(index)
        self._sort([*paths, *refused], headers)

    def _sort(self, paths: list[Path], headers: list[dict[str, str]]) -> None:
        """Files into series and studies; what belongs to none is left out."""
        files: Any = defaultdict(lambda: defaultdict(dict))
        unread = []
        for path, header in sorted(zip(paths, headers, strict=True), key=_images_first):
            if "reason" in header:
                unread.append((path, header["reason"]))
                continue
            uid = self._instances[path] = header["StudyInstanceUID"]
            moment = header["StudyDate"] + header["StudyTime"]
            study = self._studies.setdefault(uid, Study(uid, header["PatientID"], moment))
            instances = files[uid][header["SeriesInstanceUID"]]
            other = instances.get(header["SOPInstanceUID"])
            reason = ""
            patients = {header["PatientID"], study.patient_id} - {""}
            if header["Modality"] in IMAGE_MODALITIES and len(patients) > 1:
                reason = (
                    "its StudyInstanceUID is that of another patient's study, which was read; give "
                    "one of them UIDs of its own"
                )
            elif other is not None:  # export tools leave such copies
                reason = "it has the SOPInstanceUID of another file"
            else:
                instances[header["SOPInstanceUID"]] = (path, header)
            if reason:
                instead = self._name(other[0]) if other else ""
                self._left_out.append(LeftOut(self._name(path), reason, instead, uid))
        self._files = {
            study: {uid: list(instances.values()) for uid, instances in series.items() if instances}
            for study, series in files.items()
        }
        self._left_out += self._unread(unread)

    def _unread(self, unread: list[tuple[Path, str]]) -> list[LeftOut]:
        """What could not be read, with the study that it lies among the files of."""
        studies = defaultdict(set)
        for uid in self._studies:
            for path in self.paths(uid):
                studies[path.parent].add(uid)
        return [
            LeftOut(
                self._name(path),
                reason,
                study_uid=min(beside) if len(beside := studies[path.parent]) == 1 else "",
            )
            for path, reason in unread
        ]

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
    "SOPClassUID",
    "ImageType",
    "SamplesPerPixel",
)


def _files(folder: Path, within: Path | None) -> tuple[list[Path], dict[Path, str]]:
    """All files that are not hidden, and the folders that are not looked into, with the reason."""
    if folder.is_file():
        return [folder], {}
    paths: list[Path] = []
    refused: dict[Path, str] = {}
    been = {os.path.realpath(folder)}

    def unreadable(error: OSError) -> None:
        refused[Path(error.filename)] = f"the folder cannot be read ({type(error).__name__})"

    for place, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        # Hidden ones are manifests, unfinished work or what file managers leave behind.
        kept = []
        for name in sorted(name for name in folders if not name.startswith(".")):
            path = Path(place, name)
            real = os.path.realpath(path)
            if path.is_symlink() and within and not Path(real).is_relative_to(within.resolve()):
                refused[path] = "a link out of the data root: copy the files there"
            elif real not in been:  # a link may lead round in a circle
                been.add(real)
                kept.append(name)
        folders[:] = kept
        paths += [Path(place, name) for name in sorted(files) if not name.startswith(".")]
    return paths, refused


def _images_first(item: tuple[Path, dict[str, str]]) -> bool:
    return item[1].get("Modality") not in IMAGE_MODALITIES


def _stamp(path: Path) -> str:
    """Changes when the file does; empty where it is none that can be read."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}" if stat.S_ISREG(status.st_mode) else ""


def _is_complete(header: dict[str, str]) -> bool:
    return "reason" in header or all(keyword in header for keyword in _HEADER)


def is_dicom_file(path: Path) -> bool:
    """Whether a file is an instance that :class:`FolderSource` reads; a DICOMDIR is none."""
    return "reason" not in _header(path, _stamp(path))


def _header(path: Path, stamp: str) -> dict[str, str]:
    """What the index keeps of a file; a reason where it is no instance that can be used."""

    def unused(reason: str) -> dict[str, str]:
        return {"stamp": stamp, "reason": reason}

    if not stamp:
        return unused("it is no file that can be read (a link that leads nowhere?)")
    try:
        with path.open("rb") as file:
            start = file.read(132)
        if not start:
            return unused("it is empty (0 bytes): fetch it again")
        marked = start[128:] == b"DICM"
        if not marked and start[:2] not in (b"\x02\0", b"\x08\0", b"\0\x08"):
            return unused("it is no DICOM file")
        dataset = pydicom.dcmread(
            path, stop_before_pixels=True, specific_tags=list(_HEADER), force=True
        )
        kind = dataset.file_meta.get("MediaStorageSOPClassUID")
        values = {keyword: str(dataset.get(keyword) or "") for keyword in _HEADER}
    except OSError as error:
        return unused(f"it cannot be read ({type(error).__name__})")
    except Exception:  # noqa: BLE001 - whatever pydicom says of a damaged file
        return unused("its header is damaged or cut off: fetch it again")
    if kind == MediaStorageDirectoryStorage:
        return unused("it is the index of a medium (DICOMDIR), whose files are read themselves")
    if not all(values[keyword] for keyword in _HEADER[:3]):
        if marked:
            return unused("its header is damaged or cut off, or has no UIDs: fetch it again")
        return unused("it is no DICOM file")
    return {"stamp": stamp, **values}


def _complete_meta(dataset: Dataset) -> None:
    """Gives an instance that was stored without file meta the transfer syntax it was read in."""
    meta = getattr(dataset, "file_meta", None)
    if meta is None:
        dataset.file_meta = meta = FileMetaDataset()
    if "TransferSyntaxUID" not in meta:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


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
        reasons = defaultdict(list)
        for item in map(Dataset.from_json, instances):
            members[str(item.SeriesInstanceUID)].append(str(item.SOPInstanceUID))
            reason = left_out_reason("", str(item.get("SOPClassUID") or ""), "")
            reasons[str(item.SeriesInstanceUID)].append(reason)
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
                    reasons[uid][0] if reasons[uid] and all(reasons[uid]) else "",
                )
            )
        return sorted(series, key=lambda series: series.uid)

    def left_out(self) -> list[LeftOut]:
        """Nothing: what a server lists, it has."""
        return []

    def fetch(self, series: Series) -> list[Dataset]:
        """All instances of a series."""
        with server_errors(self._url):
            return list(self._client.retrieve_series(series.study_uid, series.uid))
