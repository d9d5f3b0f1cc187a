"""What the tests of inputs that were once got wrong share."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from medseg.cli import main
from medseg.project import DataRoot
from tests.cases.threshold import write_threshold_model


@pytest.fixture(scope="session")
def cases(real_data: Path) -> Path:
    """Inputs that were got wrong, with their right values."""
    return real_data / "cases"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packaged model of one CT channel at 1.2 x 1.2 x 2 mm, which finds what is above 50 HU."""
    return write_threshold_model(
        tmp_path_factory.mktemp("threshold") / "model.ts",
        {"background": 0, "Spleen": 1},
        thresholds=[50],
        spacing=[2.0, 1.2, 1.2],
        patch_size=[24, 40, 40],
    )


def run(*arguments: object) -> Result:
    """Runs ``medseg`` as a user does."""
    return CliRunner().invoke(main, [str(each) for each in arguments])


def run_pipeline(name: str, root: DataRoot, **arguments: object) -> Result:
    """Runs a compiled pipeline as a user does; see :func:`run`."""
    given = [part for key, value in arguments.items() for part in ("-p", f"{key}={value}")]
    done = run("run", name, "--data-root", root.path, *given)
    assert "Traceback" not in done.output
    return done


def words(done: Result) -> str:
    """What a command printed, whatever the width of its lines."""
    return " ".join(done.output.split())
