"""Damaged folders of DICOM: a sentence or a volume, no traceback, nothing outside the output."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medseg.dataset import collect_dataset
from medseg.dicom import convert_studies, list_studies
from medseg.project import DataRoot, UserError
from tests.unit.dicom.phantom import write_series

UNFORESEEN = re.compile(r"\b[A-Z]\w*(Error|Exception) in \w+\.py, line \d+")
"""How a stage tells of an error that it did not foresee."""

damage = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1), st.none()),
    st.tuples(st.just("zero"), st.floats(0, 1), st.integers(1, 64)),
    st.tuples(st.just("bytes"), st.floats(0, 1), st.binary(min_size=1, max_size=12)),
    st.tuples(st.just("insert"), st.floats(0, 1), st.binary(min_size=1, max_size=12)),
    st.tuples(st.just("copy"), st.floats(0, 1), st.floats(0, 1)),
)
"""What happens to a file: its kind, where in the file, and what with."""


def spoil(content: bytes, kind: str, place: float, what: object) -> bytes:
    start = int(place * len(content))
    if kind == "cut":
        return content[:start]
    if isinstance(what, bytes):
        return content[:start] + what + content[start + len(what) * (kind == "bytes") :]
    if isinstance(what, int):
        return content[:start] + b"\0" * what + content[start + what :]
    assert isinstance(what, float)
    other = int(what * len(content))
    return content[:start] + content[other : other + 40] + content[start + 40 :]


def seeds(real_data: Path) -> list[Path]:
    """The cases that are small series, and a phantom."""
    cases = [*real_data.glob("cases/*/DICOM/*"), *real_data.glob("cases/*/L04_cd")]
    return sorted(path for path in cases if path.is_dir())


def convert(root: DataRoot) -> str:
    """What the stages tell of the folder ``DICOM``."""
    try:
        list_studies(root, "DICOM", "NIFTI")
        convert_studies(root, "DICOM", 0, "NIFTI", max_failed_cases=9)
        collected = collect_dataset(root, "NIFTI")
    except UserError as error:
        return str(error)
    return " ".join(warning for row in collected["left_out"] for warning in row.warnings)


def check(seed: Path, number: int, spoiled: Sequence[tuple[str, float, object]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = DataRoot.at(Path(folder))
        for path in (path for path in seed.rglob("*") if path.is_file()):
            target = root.path / "DICOM" / path.relative_to(seed)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        paths = sorted(path for path in (root.path / "DICOM").rglob("*") if path.is_file())
        victim = paths[number % len(paths)]
        content = victim.read_bytes()
        for kind, place, what in spoiled:
            content = spoil(content, kind, place, what)
        victim.write_bytes(content)
        told = convert(root)
        assert not UNFORESEEN.search(told), told
        assert {path.name for path in root.path.iterdir()} <= {".medseg", "DICOM", "NIFTI"}
        assert victim.read_bytes() == content


def examples(number: int, *, again: bool) -> settings:
    return settings(
        max_examples=number,
        deadline=None,
        derandomize=again,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def one(folders: list[Path], data: st.DataObject) -> None:
    seed = data.draw(st.sampled_from(folders))
    check(seed, data.draw(st.integers(0, 9)), data.draw(st.lists(damage, min_size=1, max_size=3)))


@examples(60, again=True)
@given(st.data())
def test_damaged_series(folders: list[Path], data: st.DataObject) -> None:
    one(folders, data)


@pytest.mark.slow
@examples(1500, again=False)
@given(st.data())
def test_damaged_series_at_length(folders: list[Path], data: st.DataObject) -> None:
    one(folders, data)


@pytest.fixture(scope="module")
def folders(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    phantom = tmp_path_factory.mktemp("fuzz") / "phantom"
    write_series(phantom)
    return [phantom, *seeds(shared_data)]
