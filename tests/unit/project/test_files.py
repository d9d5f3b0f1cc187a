import errno
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from medseg.project import Manifest, atomic_file, atomic_folder, fingerprint, write_json
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
    inputs = fingerprint([source], {"size": 3})
    assert not manifest.is_done(inputs)
    manifest.record(inputs, [output], {"cases": 1})
    assert manifest.is_done(inputs)
    assert manifest.read()["result"] == {"cases": 1}
    assert not manifest.is_done(fingerprint([source], {"size": 4}))
    source.write_text("2")
    assert not manifest.is_done(fingerprint([source], {"size": 3}))
    output.write_text("123")
    assert not manifest.is_done(inputs)


def test_manifest_that_is_no_json_counts_as_nothing_done(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path, "stage")
    write_json(manifest.path, {})
    manifest.path.write_text("{")
    assert manifest.read() == {}
    assert not manifest.is_done("x")
