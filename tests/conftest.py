"""What all tests share."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest
from xdist.scheduler import LoadScopeScheduling

from medseg.project import DataRoot
from tests.volumes import Volume

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real cases beside the checkout, for tests that are about real headers."""
    folder = PROJECT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real cases (shared/data beside the checkout) are not here")
    return folder


@pytest.fixture(scope="session")
def shared_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real cases beside the checkout; where they are not here, phantoms in their place."""
    folder = PROJECT.parent / "shared" / "data"
    if folder.is_dir():
        return folder
    from tests.phantom_data import write_phantom_data

    return made_once("phantoms", write_phantom_data, tmp_path_factory)


def made_once(
    name: str, make: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder for all processes of a test run: the first to ask makes it, the others wait."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with folder.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if lock.tell() == 0:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            lock.write("made")
    return folder


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataRoot:
    """An empty data root that the environment points to."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("MEDSEG_DATA_ROOT", str(folder))
    return DataRoot.at(folder)


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Volume]:
    """A data root on a volume of its own, which can be filled; the environment points to it."""
    small = Volume(tmp_path / "volume")
    monkeypatch.setenv("MEDSEG_DATA_ROOT", str(small.folder))
    try:
        yield small
    finally:
        small.close()


ORDER = (
    "containers",  # the longest: all others run beside it
    "unit/project",
    "unit/config",
    "unit/kubeflow",
    "unit/cli",
    "unit/deploy",
    "unit/demo",
    "unit/tracking",
    "pipelines/test_compiled",
    "pipelines/test_manifests",
    "pipelines/test_recurring",  # minutes each: not at the end, where they would run alone
    "pipelines/test_demo",
    "pipelines/test_hippocampus",
    "cases",
    "services",
    "unit",
    "pipelines",
)
"""Parts of the tests, the cheap ones before others; a test belongs to the longest that fits it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is cheap fails first."""

    def rank(item: pytest.Item) -> int:
        place = item.path.relative_to(PROJECT / "tests").as_posix()
        return ORDER.index(max((p for p in ORDER if place.startswith(p)), key=len))

    items.sort(key=rank)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The longest part has the right of way: processes with others step back, once."""
    aside = "PYTEST_XDIST_WORKER" in os.environ and "containers" not in item.path.parts
    if aside and os.getpriority(os.PRIO_PROCESS, 0) == 0:
        os.nice(5)


class TogetherScheduling(LoadScopeScheduling):
    """Tests that share expensive fixtures, or build on each other, run in one process.

    pytest-xdist's own groups (``--dist loadgroup``) have no effect with pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = PurePosixPath(nodeid.split("::")[0])
        return str(file if file.is_relative_to("tests/pipelines") else file.parent)


def pytest_xdist_make_scheduler(config: pytest.Config) -> TogetherScheduling:
    return TogetherScheduling(config)
