import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from medseg.project import (
    Manifest,
    UserError,
    atomic_file,
    atomic_folder,
    fingerprint,
    private_folder,
    read_json,
    safe_name,
    write_json,
)
from tests.volumes import Volume


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a" / "x.nii.gz"
    with atomic_file(target) as temporary:
        assert temporary.name.endswith("x.nii.gz")
        temporary.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(target) as temporary:
        temporary.write_text("ne")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [p.name for p in target.parent.iterdir()] == ["x.nii.gz"]


def test_a_failed_folder_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for content in ("old", "new"):
        with atomic_folder(target) as temporary:
            (temporary / content).write_text(content)
    with pytest.raises(RuntimeError), atomic_folder(target) as temporary:
        (temporary / "half").write_text("")
        raise RuntimeError
    assert [p.name for p in target.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


WRITERS = {
    "file": "with atomic_file(path) as new: new.write_text('half'); wait()",
    "folder": "with atomic_folder(path) as new: (new / 'half').touch(); wait()",
    "link": "with atomic_file(path) as new: new.unlink(); new.symlink_to('half'); wait()",
}


@contextmanager
def writer(path: Path, kind: str) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of writing ``path``."""
    code = (
        "import sys; from pathlib import Path; from medseg.project import atomic_file\n"
        "from medseg.project import atomic_folder; path = Path(sys.argv[1])\n"
        f"def wait(): print('written', flush=True); sys.stdin.read()\n{WRITERS[kind]}"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def write(path: Path, kind: str) -> None:
    if kind == "folder":
        with atomic_folder(path) as temporary:
            (temporary / "whole").touch()
    else:
        with atomic_file(path) as temporary:
            temporary.write_text("whole")


@pytest.mark.parametrize("kind", WRITERS)
def test_what_a_killed_write_left_is_removed_by_the_next(tmp_path: Path, kind: str) -> None:
    target, other = tmp_path / "a[1].nii.gz", tmp_path / "b.nii.gz"
    for path in (target, other):
        with writer(path, kind):
            pass
    assert len(list(tmp_path.iterdir())) == 2
    write(target, kind)
    assert target.exists()
    (left,) = tmp_path.glob(".partial-*")  # not ours to remove
    assert left.name.endswith(other.name)
    write(other, kind)
    assert sorted(tmp_path.iterdir()) == [target, other]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_living_process_writes_is_left_alone(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    with writer(target, kind) as first:
        (temporary,) = tmp_path.iterdir()
        write(target, kind)
        assert temporary.exists()
        first.communicate("", timeout=20)
        assert first.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # the last one counts
    assert (target / "half").exists() if kind == "folder" else target.read_text() == "half"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_full_disk_behind_another_error(volume: Volume, kind: str) -> None:
    """Libraries that write files by themselves raise a RuntimeError, which does not say why."""
    target = volume.folder / "out"
    write(target, kind)
    scope = atomic_folder if kind == "folder" else atomic_file
    volume.leave(0)
    with pytest.raises(OSError) as caught, scope(target):
        raise RuntimeError("could not write")
    assert caught.value.errno == errno.ENOSPC
    volume.enlarge()
    with pytest.raises(RuntimeError, match="could not write"), scope(target):
        raise RuntimeError("could not write")
    assert [path.name for path in volume.folder.iterdir()] == ["out"]
    assert (target / "whole").exists() if kind == "folder" else target.read_text() == "whole"


def test_manifest_knows_changed_inputs_and_damaged_outputs(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    source.write_text("1")
    output.write_text("12345")
    manifest = Manifest(tmp_path, "stage")
    inputs = fingerprint({"size": 3}, [source])
    assert not manifest.is_done(inputs)
    manifest.record(inputs, [output], {"cases": 1})
    assert manifest.is_done(inputs)
    assert manifest.result(inputs) == manifest.result() == {"cases": 1}
    assert not manifest.is_done(fingerprint({"size": 4}, [source]))
    source.write_text("2")
    assert not manifest.is_done(fingerprint({"size": 3}, [source]))
    assert manifest.result(fingerprint({"size": 3}, [source])) is None
    output.write_text("123")
    assert not manifest.is_done(inputs)
    assert manifest.result() is None


def test_a_manifest_can_be_forgotten(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path, "stage")
    manifest.record("x", [])
    assert manifest.result("x") == {}  # done, with nothing to report
    manifest.forget()
    assert not manifest.is_done("x")
    manifest.forget()


def test_manifest_that_is_no_json_counts_as_nothing_done(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path, "stage")
    write_json(manifest.path, {})
    manifest.path.write_text("{")
    assert manifest.read() == {}
    assert not manifest.is_done("x")


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0o002)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("open_umask")
def test_private_files_are_their_owners_from_the_first_byte(tmp_path: Path) -> None:
    target = tmp_path / "new" / "deeper" / "x.json"
    with atomic_file(target, private=True) as temporary:
        assert mode(temporary) == 0o600
        temporary.write_text("Doe^Jane")
    assert mode(target) == 0o600
    assert mode(target.parent) == mode(target.parent.parent) == 0o700
    write_json(target, ["Doe^Jane"], private=True)
    assert mode(target) == 0o600
    Manifest(tmp_path / "record", "send", private=True).record("inputs", [])
    modes = {path.name: mode(path) for path in (tmp_path / "record").rglob("*")}
    assert modes == {".medseg": 0o700, "send.json": 0o600}


@pytest.mark.usefixtures("open_umask")
def test_a_private_folder_is_closed_where_it_is_there_already(tmp_path: Path) -> None:
    folder = tmp_path / ".medseg" / "dicom"
    assert mode(private_folder(folder)) == 0o700
    assert mode(folder.parent) == 0o775
    folder.chmod(0o755)
    private_folder(folder)
    assert mode(folder) == 0o700


def test_json_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    assert read_json(path, {}) == {}
    with pytest.raises(FileNotFoundError):
        read_json(path)
    write_json(path, {"name": "Säge"})
    assert read_json(path) == read_json(path, {}) == {"name": "Säge"}


@pytest.mark.parametrize(
    ("content", "default", "reason"),
    [
        (b'{"half": ', {}, "no valid JSON: Expecting value: line 1"),
        (b"\xff\xfe", {}, "no valid JSON: 'utf-8' codec"),
        (b"[]", {}, "no JSON object"),
        (b"{}", [], "no JSON list"),
    ],
)
def test_damaged_json_is_named_in_one_sentence(
    tmp_path: Path, content: bytes, default: object, reason: str
) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_json(path, default)
    assert str(caught.value).startswith(f"{path} is damaged ({reason}")
    assert str(caught.value).endswith("remove it and run the stage that writes it again.")
    with pytest.raises(UserError, match=r"\. Correct it\.$"):
        read_json(path, default, remedy="Correct it.")


@pytest.mark.parametrize(
    ("text", "name", "in_ascii"),
    [
        ("Doe^Jane", "Doe_Jane", "Doe_Jane"),
        ("../etc/passwd", "etc_passwd", "etc_passwd"),
        ("Müller 3.b", "Müller_3.b", "M_ller_3.b"),
        ("...", "", ""),
    ],
)
def test_any_text_as_the_name_of_a_file(text: str, name: str, in_ascii: str) -> None:
    assert (safe_name(text), safe_name(text, ascii_only=True)) == (name, in_ascii)


def test_an_error_of_writing_names_the_file(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError) as caught,
        atomic_file(tmp_path / "result.txt"),
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        full.write(b"a")
    assert caught.value.filename.endswith("-result.txt")
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from medseg.project import atomic_folder
import medseg.project.files as files
if sys.argv[2] == "without":  # as on a volume that cannot exchange two names
    files._exchange = lambda *_: False
replace = Path.replace
def and_die(path, target):
    replace(path, target)
    os.kill(os.getpid(), signal.SIGKILL)
Path.replace = and_die
with atomic_folder(Path(sys.argv[1])) as new:
    (new / "new").touch()
"""


@pytest.mark.parametrize("exchange", ["with", "without"])
def test_a_kill_while_a_folder_is_replaced_loses_neither(tmp_path: Path, exchange: str) -> None:
    target = tmp_path / "out"
    with atomic_folder(target) as temporary:
        (temporary / "old").touch()
    subprocess.run([sys.executable, "-c", KILLED, str(target), exchange])
    with pytest.raises(RuntimeError), atomic_folder(target):  # the next writer comes to nothing
        raise RuntimeError
    assert [path.name for path in target.iterdir()] in (["old"], ["new"])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
