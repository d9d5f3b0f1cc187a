"""The Decathlon's tasks: from a real server with ranges, that breaks off, or from a folder."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from medseg.config import load_config
from medseg.dataset import cases, collect_dataset, download_decathlon, fetching
from medseg.dicom import list_studies
from medseg.project import DataRoot, UserError, stage
from tests.volumes import Volume, contents, says_that_the_disk_is_full

TASK = "Task09_Spleen"


def archive(name: str = TASK, **more: tarfile.TarInfo) -> bytes:
    """An archive like the Decathlon's: macOS's dot files, a description, images and labels."""
    described = {
        "name": "Spleen",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "spleen"},
        "training": [
            {"image": f"./imagesTr/s_{n}.nii.gz", "label": f"./labelsTr/s_{n}.nii.gz"}
            for n in range(6)
        ],
        "test": ["./imagesTs/t_1.nii.gz"],
    }
    files = {"dataset.json": json.dumps(described).encode(), "imagesTs/t_1.nii.gz": b"test"}
    for n in range(6):
        files[f"imagesTr/s_{n}.nii.gz"] = bytes([n]) * 40_000
        files[f"labelsTr/s_{n}.nii.gz"] = bytes([n])
        files[f"imagesTr/._s_{n}.nii.gz"] = b"macOS"
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for path, content in {"._" + name: b"macOS", **files}.items():
            info = tarfile.TarInfo(path if path.startswith("._") else f"./{name}/{path}")
            info.size, info.mode = len(content), 0o400
            tar.addfile(info, io.BytesIO(content))
        for info in more.values():
            tar.addfile(info)
    return stream.getvalue()


GOOD = archive()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@dataclass
class Server:
    """Serves one file, and breaks off after some bytes as often as it is told to."""

    content: bytes
    pieces: list[int] = field(default_factory=list)  # how many bytes it sends before each break
    ranges: bool = True
    url: str = ""
    asked: list[str] = field(default_factory=list)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        self.asked.append(handler.headers.get("Range", ""))
        etag = f'"{md5(self.content)}"'
        same = handler.headers.get("If-Range", etag) == etag
        start = int(wanted[1]) if wanted and self.ranges and same else 0
        if not handler.path.endswith(f"/{TASK}.tar"):
            handler.send_error(404)
            return
        handler.send_response_only(206 if start else 200)
        if start:
            total = len(self.content)
            handler.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        handler.send_header("Content-Length", str(len(self.content) - start))
        handler.send_header("ETag", etag)
        handler.end_headers()
        rest = self.content[start:]
        handler.wfile.write(rest[: self.pieces.pop(0)] if self.pieces else rest)


@contextlib.contextmanager
def serving(server: Server) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_port}/files"
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "WAIT_S", 0.001)


def downloads(root: DataRoot) -> list[Path]:
    return list((root.path / ".medseg/downloads").glob("*"))


def test_a_connection_that_breaks_ten_times(root: DataRoot) -> None:
    with serving(Server(GOOD, [20_000] * 10)) as server:
        done = download_decathlon(root, TASK, mirror=server.url, checksum=md5(GOOD))
        assert len(server.asked) == 11
        assert server.asked[-1] == "bytes=200000-"
        before = contents(root.path)
        again = download_decathlon(root, TASK, mirror=server.url, checksum=md5(GOOD))
        assert len(server.asked) == 11  # nothing is fetched twice
    assert again == done
    assert contents(root.path) == before
    assert downloads(root) == []
    assert done.cases == 6
    assert not list(done.folder.rglob("._*"))
    source = (done.folder / "SOURCE.md").read_text()
    assert "CC-BY-SA 4.0" in source
    assert "s41467-022-30695-9" in source
    assert done.facts["licence"].startswith("CC-BY-SA 4.0")


def test_download_and_lifecycle_are_two_commands(root: DataRoot) -> None:
    (root.path / "mirror").mkdir()
    (root.path / f"mirror/{TASK}.tar").write_bytes(GOOD)
    download_decathlon(root, TASK, mirror="file:///mnt/Data/mirror", checksum=f"md5:{md5(GOOD)}")
    config = load_config(f"configs/{TASK}_config.yaml", root)
    assert config.labels == {"background": 0, "spleen": 1}
    assert (config.dataset_name, config.modality_list) == ("Dataset009_Task09_Spleen", ["CT"])
    assert [case.missing for case in cases(config)] == [""] * 6
    before = contents(root.path)
    assert list_studies(root, "", config=config) == []
    collected = collect_dataset(root, config=config)["dataset"]
    assert (len(collected["cases"]), collected["cases_without_label"]) == (7, ["t_1"])
    assert contents(root.path) == before  # the Decathlon's dataset.json, too


def test_what_is_there_stays_and_what_lacks_comes(root: DataRoot) -> None:
    (root.path / f"{TASK}.tar").write_bytes(GOOD)
    arguments = {"mirror": f"{TASK}.tar", "checksum": hashlib.sha256(GOOD).hexdigest()}
    folder = download_decathlon(root, TASK, **arguments).folder
    (folder / "DICOM").mkdir()
    (folder / "DICOM/mine").write_text("mine")
    config = root.path / f"configs/{TASK}_config.yaml"
    config.write_text("mine")
    (folder / "labelsTr/s_1.nii.gz").write_text("edited")
    (folder / "labelsTr/s_2.nii.gz").unlink()
    with pytest.raises(UserError, match=r"1 files that differ .* labelsTr/s_1\.nii\.gz: move them"):
        download_decathlon(root, TASK, **arguments)
    (folder / "labelsTr/s_1.nii.gz").unlink()
    download_decathlon(root, TASK, **arguments)
    assert (folder / "labelsTr/s_2.nii.gz").read_bytes() == b"\2"
    assert (folder / "DICOM/mine").read_text() == config.read_text() == "mine"
    assert (root.path / f"{TASK}.tar").is_file()  # a mirror's archive is not ours to remove


def test_a_server_that_goes_away_and_comes_back(root: DataRoot) -> None:
    with serving(Server(GOOD, [50_000] + [0] * 8)) as server:
        arguments = {"mirror": server.url, "checksum": md5(GOOD)}
        with pytest.raises(UserError, match=r"broke off 8 times in a row .* 0\.1 MB are here and"):
            download_decathlon(root, TASK, **arguments)
        server.asked.clear()
        assert download_decathlon(root, TASK, **arguments).cases == 6
        assert server.asked == ["bytes=50000-"]  # the next run goes on


def test_a_server_whose_file_is_another_now(root: DataRoot) -> None:
    with serving(Server(GOOD, [50_000] + [0] * 8)) as server:
        arguments = {"mirror": server.url, "checksum": md5(GOOD)}
        with pytest.raises(UserError, match="broke off"):
            download_decathlon(root, TASK, **arguments)
        server.content = GOOD + bytes(512)
        with pytest.raises(UserError, match="the archive has the md5"):
            download_decathlon(root, TASK, **arguments)
        assert downloads(root) == []
        server.content, server.pieces, server.ranges = GOOD, [1000], False
        assert download_decathlon(root, TASK, **arguments).cases == 6


@pytest.mark.parametrize(
    ("mirror", "message"),
    [
        ("http://user:secret@host/x", "carries a user name or password"),
        ("http:///x", "the address is malformed"),
        ("ftp://host/x", "only https://, http:// and file:// addresses"),
        ("../elsewhere", "mirror: ../elsewhere/Task09_Spleen.tar lies outside the data root"),
        ("nowhere", r"nowhere/Task09_Spleen\.tar does not exist: put the archive there"),
    ],
)
def test_mirrors_that_are_none(root: DataRoot, mirror: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        download_decathlon(root, TASK, mirror=mirror)
    assert "secret" not in str(caught.value)


def test_a_mirror_without_the_archive(root: DataRoot) -> None:
    with serving(Server(GOOD)) as server, pytest.raises(UserError, match="answers 404 Not Found"):
        download_decathlon(root, TASK, mirror=f"{server.url}/none.tar")


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (archive(x=_member(f"{TASK}/../../evil")), "would be written outside of its folder"),
        (archive(x=_member("/evil")), "would be written outside of its folder"),
        (archive(x=_member(f"{TASK}/x", tarfile.SYMTYPE, "/etc")), "is a link or a device"),
        (archive(x=_member(f"{TASK}/x", tarfile.LNKTYPE, "/etc")), "is a link or a device"),
        (archive(x=_member(f"{TASK}/x", tarfile.FIFOTYPE)), "is a link or a device"),
        (archive("Task03_Liver"), "it is not that of Task09_Spleen"),
        (GOOD[:60_000], "it is damaged or no tar archive|it is not that of"),
        (b"no archive", "it is damaged or no tar archive"),
    ],
)
def test_archives_that_are_not_unpacked(root: DataRoot, content: bytes, message: str) -> None:
    (root.path / f"{TASK}.tar").write_bytes(content)
    with pytest.raises(UserError, match=message):
        download_decathlon(root, TASK, mirror=f"{TASK}.tar", checksum=md5(content))
    assert not (root.path / TASK).exists()
    assert not (root.path.parent / "evil").exists()
    assert list(root.path.rglob(".partial-*")) == []


def test_a_wrong_checksum(root: DataRoot) -> None:
    (root.path / f"{TASK}.tar").write_bytes(GOOD)
    with pytest.raises(UserError, match=f"has the md5 {md5(GOOD)}, not 410d4a301da4"):
        download_decathlon(root, TASK, mirror=f"{TASK}.tar")
    with pytest.raises(UserError, match="checksum: '12' is no checksum: give the output of md5sum"):
        download_decathlon(root, TASK, mirror=f"{TASK}.tar", checksum="12")


def test_a_full_disk(volume: Volume, capsys: pytest.CaptureFixture[str]) -> None:
    root = DataRoot.at(volume.folder)
    (volume.folder / ".medseg/locks").mkdir(parents=True)
    with serving(Server(GOOD)) as server:
        arguments = {"mirror": server.url, "checksum": md5(GOOD)}
        with pytest.raises(SystemExit), stage("download_decathlon"):
            volume.leave(400_000)
            download_decathlon(root, TASK, **arguments)
        assert "error: the disk is full: the download of http" in capsys.readouterr().err
        volume.enlarge()
        (volume.folder / f"{TASK}.tar").write_bytes(GOOD)
        with pytest.raises(SystemExit), stage("download_decathlon"):
            volume.leave(150_000)  # too little for what is unpacked
            download_decathlon(root, TASK, mirror=f"{TASK}.tar", checksum=md5(GOOD))
        says_that_the_disk_is_full(capsys.readouterr().err)
        assert list(volume.folder.rglob(".partial-*")) == []
        volume.enlarge()
        assert download_decathlon(root, TASK, **arguments).cases == 6
