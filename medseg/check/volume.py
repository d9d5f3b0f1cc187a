"""The project volume: writable, fast, large enough, and the same for two pods at once."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from medseg.check.rows import Row
from medseg.project import DataRoot, UserError, explain_os_error, scratch_folder, unshared_locks

SLOW_MB_S = 30.0
"""A training reads its cases again and again: below this rate, MB/s, it waits for them."""
SLOW_FILES_S = 20.0
LOW_SPACE = 50 * 2**30
"""bytes: the preprocessed data of a hundred CT cases takes about as much."""
NO_SPACE = 2 * 2**30
SAMPLE = 64 * 2**20
"""bytes that are written and read to see how fast that is."""
_BLOCK = 2**20
_FILES = 100

FOLDER = Path(".medseg") / "check"
"""Where checks write, below the data root."""


def volume_rows(root: DataRoot) -> Iterator[Row]:
    """What the volume can do.

    Args:
        root: The data root.
    """
    where = f"{root.path} ({_filesystem(root.path)})"
    remedy = (
        f"make it writable for uid {os.getuid()} (chown, or the storage's fsGroup), and see that "
        "it is neither full nor mounted read-only"
    )
    try:
        with scratch_folder(root.path / FOLDER / "work") as work:
            _write(work)
            yield Row("volume: writable", "ok", f"{where}, as uid {os.getuid()}")
            yield _locks(root.path, work)
            yield _space(root.path)
            yield _speed(work)
    except (OSError, UserError) as error:
        explained = explain_os_error(error) if isinstance(error, OSError) else error
        found = str(explained or error).split(". ")[0].rstrip(".")
        yield Row("volume: writable", "failed", f"{where}: {found}", remedy)


def _write(work: Path) -> None:
    """All that stages do with files: private ones, whole ones, renamed over others."""
    before, after = work / "before", work / "after"
    after.write_bytes(b"old")
    with before.open("wb") as file:
        file.write(b"new")
        file.flush()
        os.fsync(file.fileno())
    before.chmod(0o600)
    before.replace(after)
    if after.read_bytes() != b"new":
        raise OSError(f"{after} does not hold what was written there")


def _locks(root: Path, work: Path) -> Row:
    if kind := unshared_locks(root):
        found = f"other nodes do not see this node's locks ({kind})"
        return Row("volume: locks", "failed", found, LOCK_REMEDY)
    path = work / "lock"
    try:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # a process of its own: on NFS the lock of a process does not hinder itself
            other = subprocess.run([sys.executable, "-S", "-c", _TRY_LOCK, path], check=False)
    except OSError as error:
        return Row("volume: locks", "failed", f"no file locks ({error.strerror})", LOCK_REMEDY)
    if other.returncode != _HELD:
        return Row("volume: locks", "failed", "two processes had one lock", LOCK_REMEDY)
    return Row("volume: locks", "ok", "one process keeps the other out")


_HELD = 75
_TRY_LOCK = f"""
import fcntl, sys
try:
    fcntl.flock(open(sys.argv[1], "a"), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit({_HELD})
"""
LOCK_REMEDY = (
    "mount it with locks (NFS 4.1 or newer without nolock and local_lock, CephFS, Lustre with "
    "-o flock); stages keep each other out by them"
)


def _space(path: Path) -> Row:
    found = os.statvfs(path)
    free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    text = f"{_gigabytes(free)} of {_gigabytes(total)} free"
    remedy = (
        "enlarge the claim, or remove what is not needed (nnUNet_preprocessed can be made anew)"
    )
    if found.f_files and found.f_favail < 10_000:
        return Row("volume: space", "failed", f"{text}, {found.f_favail} files left", remedy)
    if free < NO_SPACE:
        return Row("volume: space", "failed", text, remedy)
    return (
        Row("volume: space", "warning", text, remedy)
        if free < LOW_SPACE
        else Row("volume: space", "ok", text)
    )


def _gigabytes(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size < 100 * 2**30 else f"{size / 2**30:.0f} GiB"


def _speed(work: Path) -> Row:
    found = os.statvfs(work)
    size = min(SAMPLE, found.f_bavail * found.f_frsize // 4) // _BLOCK * _BLOCK
    if not size:
        return Row("volume: speed", "warning", "no room to measure it", "free some space first")
    written, read = _transfer(work / "sample", size)
    files = _small_files(work / "many")
    text = f"write {written:.0f} MB/s, read {read:.0f} MB/s, {files:.0f} small files/s"
    if min(written, read) < SLOW_MB_S or files < SLOW_FILES_S:
        return Row(
            "volume: speed",
            "warning",
            text,
            f"training wants {SLOW_MB_S:.0f} MB/s and {SLOW_FILES_S:.0f} files/s at least: choose "
            "a faster storage class, or one nearer to the nodes",
        )
    return Row("volume: speed", "ok", text)


def _transfer(path: Path, size: int) -> tuple[float, float]:
    """MB/s of writing to the storage itself, and of reading from it as far as that can be had."""
    block = os.urandom(_BLOCK)
    start = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(size // _BLOCK):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        written = time.perf_counter() - start
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.read(_BLOCK):
            pass
    read = time.perf_counter() - start
    path.unlink()
    return size / 1e6 / max(written, 1e-9), size / 1e6 / max(read, 1e-9)


def _small_files(folder: Path) -> float:
    folder.mkdir()
    start = time.perf_counter()
    for number in range(_FILES):
        part = folder / f"{number}.part"
        part.write_bytes(b"x" * 4096)
        part.replace(folder / f"{number}")
    for number in range(_FILES):
        (folder / f"{number}").unlink()
    return _FILES / max(time.perf_counter() - start, 1e-9)


def _filesystem(path: Path) -> str:
    """The kind of file system that a path lies on; the longest mount point that holds it."""
    best, kind = "", "unknown"
    with suppress(OSError):
        for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
            _, point, found, *_ = line.split(" ")
            point = point.replace("\\040", " ")
            if path.is_relative_to(point) and len(point) >= len(best):
                best, kind = point, found
    return kind


def open_root() -> DataRoot:
    """The data root.

    Raises:
        UserError: It is not there.
    """
    try:
        return DataRoot.from_environment()
    except UserError as error:
        raise UserError(f"{str(error).split(':')[0]}: mount the project volume there.") from None
