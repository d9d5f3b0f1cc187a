"""Large files from a server: streamed to the disk, and continued where a connection broke."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import requests

from medseg.project import UserError, certificate_error, progress, read_json, write_json
from medseg.project.files import disk_errors

ATTEMPTS = 8
"""How many attempts in a row may bring nothing before a download is given up."""

WAIT_S = 1.0  # after the first that brought nothing; doubled up to a minute

_TIMEOUT_S = (10, 60)
_BLOCK = 1 << 16
_TELL_EVERY_S = 30.0
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class _Broken(Exception):  # noqa: N818 - another attempt may do better
    """Why an attempt ended early."""


class Download:
    """One file of a server on its way to the disk; what has come survives a kill.

    Args:
        url: ``http(s)://…``, without a password.
        part: Where it is gathered. A second file beside it, ``<part>.json``, remembers which
            version of the server's file it is.
        space: How many times the file's size must be free on the disk at the end, for whatever is
            made of it.

    Attributes:
        resumed: Whether some of the file came in an earlier connection.
    """

    def __init__(self, url: str, part: Path, *, space: int = 1) -> None:
        self.url, self.part, self.space = url, part, space
        self.resumed = False
        self._state = part.with_name(f"{part.name}.json")
        self._total: int | None = None
        self._told = time.monotonic()

    def run(self) -> None:
        """Downloads what is missing.

        Raises:
            UserError: The server refuses or is away, :data:`ATTEMPTS` connections in a row brought
                nothing, or the disk is too small. What has come is kept for the next run.
        """
        self.part.parent.mkdir(parents=True, exist_ok=True)
        fruitless = 0
        while True:
            before = self._size()
            try:
                self._attempt()
                return
            except _Broken as broken:
                fruitless = 0 if self._size() > before else fruitless + 1
                if fruitless >= ATTEMPTS:
                    raise UserError(
                        f"{self._name} broke off {ATTEMPTS} times in a row ({broken}): "
                        f"{_megabytes(self._size())} are here and kept. Look at the network "
                        "(where it reaches no such server, name a mirror), then run the same "
                        "command again: it goes on from there."
                    ) from None
                if fruitless:
                    time.sleep(min(60.0, WAIT_S * 2 ** (fruitless - 1)))

    def discard(self) -> None:
        """Removes what has come."""
        self.part.unlink(missing_ok=True)
        self._state.unlink(missing_ok=True)

    @property
    def _name(self) -> str:
        return f"the download of {self.url}"

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _attempt(self) -> None:
        size, state = self._size(), read_json(self._state, {})
        if state.get("url") != self.url:
            self.discard()
            size, state = 0, {}
        self.resumed = size > 0
        if size and state.get("total") == size:
            return
        headers = {"Accept-Encoding": "identity"}
        if size:
            headers["Range"] = f"bytes={size}-"
            if state.get("version"):  # else the whole file comes if it is another by now
                headers["If-Range"] = state["version"]
        try:
            with requests.get(
                self.url, headers=headers, stream=True, timeout=_TIMEOUT_S
            ) as response:
                if response.status_code == 416 and size:
                    return  # there is no more; the checksum tells whether it is the file
                self._check_status(response)
                start = self._start(response, size)
                self._check_space(start)
                self._receive(response, start)
        except (requests.Timeout, requests.ConnectionError) as error:
            if untrusted := certificate_error(error, self.url):
                raise untrusted from None
            raise _Broken(type(error).__name__) from None
        except requests.exceptions.ChunkedEncodingError:
            raise _Broken("the connection ended early") from None
        except requests.RequestException as error:
            raise UserError(
                f"{self._name} failed ({type(error).__name__}): check the address."
            ) from None

    def _check_status(self, response: requests.Response) -> None:
        status = response.status_code
        if status in (200, 206):
            return
        if status == 429 or status >= 500:
            raise _Broken(f"the server answers {status}")
        raise UserError(
            f"{self._name} is refused: the server answers {status} {response.reason}. Check the "
            "address; where this network reaches no such server, name a mirror."
        )

    def _start(self, response: requests.Response, size: int) -> int:
        """Where in the file the answer begins; notes which version of the file it is."""
        headers = response.headers
        start, length = 0, headers.get("Content-Length")
        self._total = int(length) if length and length.isdecimal() else None
        if response.status_code == 206:
            found = _RANGE.fullmatch(headers.get("Content-Range", ""))
            if found is None or int(found[1]) != size:
                self.discard()
                raise _Broken("the server sent another part of the file than was asked for")
            start = size
            self._total = int(found[2]) if found[2].isdecimal() else None
        if not start:
            self.resumed = False
            state = {"url": self.url, "version": _version(headers), "total": self._total}
            write_json(self._state, state)
        return start

    def _check_space(self, start: int) -> None:
        if self._total is None:
            return
        needed = self._total * self.space - start
        free = shutil.disk_usage(self.part.parent).free
        if needed > free:
            raise UserError(
                f"the disk is full: {self._name} needs {_megabytes(needed)} on "
                f"{self.part.parent}, {_megabytes(free)} are free. Free some space or enlarge the "
                "volume, then run the same command again; finished work is kept."
            )

    def _receive(self, response: requests.Response, start: int) -> None:
        with disk_errors(self.part), self.part.open("r+b" if start else "wb") as file:
            done = file.seek(start)
            response.raw.enforce_content_length = False  # what came before a break would be lost
            for block in response.iter_content(_BLOCK):
                file.write(block)
                done += len(block)
                self._tell(done)
        if self._total is not None and done < self._total:
            raise _Broken("the connection ended early")

    def _tell(self, done: int) -> None:
        now = time.monotonic()
        if now - self._told > _TELL_EVERY_S:
            self._told = now
            of = f" of {_megabytes(self._total)}" if self._total else ""
            progress(f"{_megabytes(done)}{of} downloaded", done >> 20, (self._total or 0) >> 20)


def check_address(url: str, *, field: str) -> None:
    """Refuses an address that cannot be one, or that would bring a password into logs.

    Args:
        url: ``http(s)://…``.
        field: The parameter, for the message.

    Raises:
        UserError: It is malformed, or carries a user name or password.
    """
    try:
        parts = urlsplit(url)
        sound = bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound:  # it is not quoted: it may hold a password
        raise UserError(
            f"{field}: the address is malformed: write it as https://server.example.org/folder."
        )
    if parts.username or parts.password:
        raise UserError(
            f"{field}: the address carries a user name or password, which would end in logs: give "
            "one that needs none, or put the file into the data root and name its folder."
        )


def _version(headers: Mapping[str, str]) -> str:
    """What tells the server's file from a later one; a weak ETag does not serve for ranges."""
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
