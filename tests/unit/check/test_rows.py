"""Rows and their table; the volume, the pod itself, the clock, with what breaks them."""

from __future__ import annotations

import errno
import fcntl
import json
import threading
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medseg.check import (
    Asked,
    Row,
    check_beside,
    check_site,
    lines,
    looked,
    machine,
    meeting,
    read_lines,
    read_rows,
    servers,
    site,
    volume,
)
from medseg.check.meeting import Meeting
from medseg.check.table import page
from medseg.project import DataRoot, UserError
from tests.services.http import Answer, serve
from tests.volumes import Volume


def rows_of(found: Iterator[Row]) -> dict[str, Row]:
    return {row.name: row for row in found}


def test_the_table_comes_back_from_a_log() -> None:
    rows = [
        Row("volume: space", "warning", "1.0 GiB of 2  GiB free", "enlarge the claim"),
        Row("PACS", "not asked", "give studies=… to look"),
        Row("S3", "failed", "<b>no</b> bucket"),
    ]
    log = ["check: ok: MLflow: none", "", *lines(rows), "", "1 warning, 1 failed, 1 not asked"]
    found = read_lines(log)
    assert found[1:] == rows[1:]
    assert found[0] == Row("volume: space", "warning", "1.0 GiB of 2 GiB free", "enlarge the claim")
    assert "&lt;b&gt;no&lt;/b&gt;" in page("Is it?", rows)
    assert Row.from_json({"name": "x", "state": "fine", "found": ""}) is None
    assert Row.from_json("x") is None


def test_an_error_is_a_row() -> None:
    def refuses() -> Iterator[Row]:
        yield Row("PACS", "ok", "there")
        raise UserError("the server http://a:1/b answered 401: give a password.")

    def breaks() -> Iterator[Row]:
        raise ValueError("PATIENT^NAME")
        yield

    first, second = looked("store", refuses)
    assert first.state == "ok"
    assert (second.found, second.remedy) == (
        "the server http://a:1/b answered 401",
        "give a password",
    )
    (row,) = looked("store", breaks)
    assert row.state == "failed"
    assert "ValueError in test_rows.py" in row.found
    assert "PATIENT" not in row.found


# --- the volume ---


@pytest.fixture(autouse=True)
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume, "SAMPLE", 2**20)


def test_a_good_volume(root: DataRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(volume.volume_rows(root))
    assert list(rows) == [f"volume: {what}" for what in ("writable", "locks", "space", "speed")]
    assert rows["volume: writable"].state == rows["volume: locks"].state == "ok"
    assert list((root.path / volume.FOLDER).iterdir()) == []
    monkeypatch.setattr(volume, "SLOW_MB_S", 1e9)
    assert rows_of(volume.volume_rows(root))["volume: speed"].state == "warning"


def test_a_volume_that_is_full_or_read_only(volume: Volume) -> None:
    from medseg.check.volume import volume_rows

    root = DataRoot.at(volume.folder)
    rows = rows_of(volume_rows(root))
    assert rows["volume: space"].state == "failed", "300 MB"
    assert "(tmpfs)" in rows["volume: writable"].found
    volume.leave(0)
    (row,) = volume_rows(root)
    assert (row.name, row.state) == ("volume: writable", "failed")
    assert "the disk is full" in row.found
    volume.enlarge()
    volume.make_read_only()
    (row,) = volume_rows(root)
    assert row.state == "failed"
    assert "make it writable for uid" in row.remedy


@pytest.mark.parametrize("way", ["none", "twice", "this node only"])
def test_a_volume_without_locks(root: DataRoot, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    real = fcntl.flock

    def refuse(file: Any, how: int) -> None:
        if way == "none" and getattr(file, "name", "").endswith("/lock"):
            raise OSError(errno.ENOLCK, "No locks available")
        if way == "none" or not getattr(file, "name", "").endswith("/lock"):
            real(file, how)  # of twice: a lock that holds nobody off

    if way == "this node only":
        monkeypatch.setattr(volume, "unshared_locks", lambda _: "nfs, local_lock=all")
    else:
        monkeypatch.setattr(fcntl, "flock", refuse)
    row = rows_of(volume.volume_rows(root))["volume: locks"]
    assert row.state == "failed"
    assert "NFS 4.1" in row.remedy


def test_no_volume_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSEG_DATA_ROOT", str(tmp_path / "none"))
    monkeypatch.setattr(site, "_looks", lambda *_: [])
    check_site("run", Asked(), tmp_path / "table.html")
    assert "mount the project volume there" in (tmp_path / "table.html").read_text()


# --- two pods ---


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "POLL_S", 0.01)


def pair(root: DataRoot) -> tuple[Meeting, Meeting]:
    return Meeting(root, "run 1", "check", "beside"), Meeting(root, "run 1", "beside", "check")


def test_two_pods_meet(root: DataRoot, fast: None) -> None:
    one, other = pair(root)
    row = one.row(0.05)
    assert row.state == "failed"
    assert row.found.startswith("the second pod (beside) did not come within")
    assert "ReadWriteMany" in row.remedy
    with one.present(), other.present():
        assert one.row(1).state == "ok"
        assert one.rows() is None
        other.leave([Row("registry", "ok", "answers")])
        assert one.rows(1) == [Row("registry", "ok", "answers")]
        assert one.row(1).state == "ok", "it is still there"
    row = one.row(1)
    assert row.state == "warning"
    assert "had ended before this pod came" in row.found
    assert one.rows() == [Row("registry", "ok", "answers")]


@pytest.mark.parametrize("way", ["none", "twice"])
def test_locks_that_do_not_reach_the_other_pod(
    root: DataRoot, fast: None, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    one, other = pair(root)
    with other.present():
        monkeypatch.setattr(fcntl, "flock", refuse if way == "none" else lambda *_: None)
        row = one.row(1)
    assert row.state == "failed"
    assert "NFS 4.1" in row.remedy


def test_the_two_stages_of_a_cluster(
    root: DataRoot, fast: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSEG_RUN_ID", "1234")
    monkeypatch.setattr(site, "_looks", lambda *_: [])
    other = threading.Thread(target=check_beside, args=("run-1", ""))
    other.start()
    check_site("run-1", Asked(), tmp_path / "table.html")
    other.join(20)
    rows = {row.name: row for row in read_rows(root.path / "reports" / "run-1")}
    assert rows["volume: two pods"].state == "ok"
    assert rows["registry"].state == "not asked"
    assert "two pods" in (tmp_path / "table.html").read_text()


# --- the pod itself ---


def test_image_and_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getuid", lambda: 1000)
    rows = rows_of(machine.image_rows(machine.__version__))
    assert {row.state for row in rows.values()} == {"ok"}
    monkeypatch.setattr("os.getuid", lambda: 0)
    rows = rows_of(machine.image_rows("0.0.1"))
    assert {row.state for row in rows.values()} == {"warning"}
    assert "-p image=" in rows["image"].remedy


def test_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Volume(tmp_path / "shm", 64)
    try:
        monkeypatch.setattr(machine, "SHM", str(small.folder))
        (row,) = machine.shared_memory_rows()
    finally:
        small.close()
    assert row.state == "failed"
    assert "64 MiB" in row.found
    monkeypatch.setattr(machine, "SHM", str(tmp_path / "none"))
    (row,) = machine.shared_memory_rows()
    assert row.state == "failed"


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "_driver", lambda: "")
    (row,) = machine.gpu_rows("0")
    assert row.state == "warning"
    monkeypatch.setattr(torch.version, "cuda", None)
    (row,) = machine.gpu_rows("1")
    assert "a build for the CPU" in row.found
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (row,) = machine.gpu_rows("1")
    assert "no NVIDIA driver" in row.found
    monkeypatch.setattr(machine, "_driver", lambda: "470.1")
    (row,) = machine.gpu_rows("0")
    assert row.state == "failed"
    assert "update the node's driver" in row.remedy


def test_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    found = SimpleNamespace(name="Tesla P4", major=6, minor=1)
    memory = {"now": (15 * 2**30, 16 * 2**30)}
    multiply: dict[str, Callable[..., None]] = {"now": lambda *_: None}
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_properties": lambda _: found,
        "mem_get_info": lambda _: memory["now"],
        "is_bf16_supported": lambda including_emulation: including_emulation,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(machine, "_multiply", lambda *given: multiply["now"](*given))
    rows = rows_of(machine.gpu_rows("2"))
    assert rows["GPU"].state == "ok"
    assert "Tesla P4, 16 GiB (15 free)" in rows["GPU"].found
    assert rows["GPU: number"].state == rows["GPU: bfloat16"].state == "warning"
    for free, total, remedy in ((3, 4, "a larger GPU"), (3, 16, "another program")):
        memory["now"] = (free * 2**30, total * 2**30)
        row = rows_of(machine.gpu_rows("1"))["GPU"]
        assert row.state == "warning"
        assert remedy in row.remedy

    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA error: no kernel image is available\nmore")

    multiply["now"] = fail
    row = rows_of(machine.gpu_rows("1"))["GPU"]
    assert row.state == "failed"
    assert "compute capability 6.1" in row.remedy


# --- servers that a real one cannot play ---


@pytest.mark.parametrize(("seconds", "state"), [(0, "ok"), (60, "warning"), (-3600, "failed")])
def test_the_clock(root: DataRoot, seconds: int, state: str) -> None:
    import time

    date = formatdate(time.time() + seconds, usegmt=True)
    with serve(lambda _: Answer(404, date=date)) as url:
        (row,) = servers.clock_rows(root, [url, "", "file:///mnt/Data"])
    assert row.state == state
    if seconds:
        assert ("behind" if seconds > 0 else "ahead of") in row.found


def test_no_clock_at_all() -> None:
    (row,) = servers.clock_rows(None, [])
    assert row.state == "warning"


def test_a_pacs_that_does_not_store(root: DataRoot) -> None:
    def answer(request: Any) -> Answer:
        if request.method == "GET":
            return Answer(200, json.dumps([]).encode(), "application/dicom+json")
        return Answer(403)

    with serve(answer) as url:
        rows = rows_of(looked("PACS", lambda: servers.pacs_rows(root, url, store=True)))
    assert rows["PACS"].state == "ok"
    assert "it holds no study" in rows["PACS"].found
    assert rows["PACS: store"].state == "failed"
    assert "answered 403" in rows["PACS: store"].found


def test_folders_of_studies(root: DataRoot) -> None:
    def row(studies: str) -> Row:
        return next(iter(looked("PACS", lambda: servers.pacs_rows(root, studies))))

    assert row("file:///mnt/Data/DICOM").state == "failed"
    (root.path / "DICOM").mkdir()
    assert "holds no DICOM file" in row("file:///mnt/Data/DICOM").found
    instance = servers._instance()
    instance.save_as(root.path / "DICOM" / "1.dcm", enforce_file_format=True)
    assert row("file:///mnt/Data/DICOM").state == "ok"
    assert "outside the data root" in row("file:///etc").found
    assert "malformed" in row("https://").found
