from pathlib import Path

import pytest

from medseg.project import Manifest, atomic_file, atomic_folder, fingerprint, write_json


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


def test_what_a_killed_write_left_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".partial-12345678-out").mkdir()
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "x").touch()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


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
