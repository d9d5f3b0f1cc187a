"""``./build.sh new-component``, in a copy of the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import PROJECT

NAME = "rank_cases"
GENERATED = ("compiled/", "docs/components.md", "manifests/")
VARIABLES = "medseg/project/variables.py"
ROW = """
        SecretKind(
            "sftp",
            "medseg-sftp",
            "access to the other hospital",
            (SecretKey("password", "MEDSEG_SFTP_PASSWORD", hidden=True),),
        ),
"""
"""A new kind of Secret."""


def _run(copy: Path, *command: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MEDSEG_", "PYTEST"))}
    path = f"{Path(sys.executable).parent}:{clean['PATH']}"
    environment = {**clean, "PATH": path, "PYTHONPATH": str(copy)}
    done = subprocess.run(
        command, cwd=copy, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The checkout as it stands, in which what is installed as part of medseg is that too."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        check=True,
        capture_output=True,
        text=True,
    )
    folder = tmp_path / "copy"
    for name in listed.stdout.splitlines():
        if (PROJECT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((PROJECT / name).read_bytes())
    for name in ("components", "pipelines", "compiled"):
        (folder / "medseg" / name).symlink_to(f"../{name}")
    if (PROJECT / ".mypy_cache").is_dir():  # what is the same is not looked at again
        (folder / ".mypy_cache").symlink_to(PROJECT / ".mypy_cache")
    _run(folder, "git", "init", "--quiet")
    _run(folder, "git", "add", ".")
    return folder


def test_a_new_stage_is_whole_and_a_new_kind_of_secret_one_row(copy: Path) -> None:
    text = (copy / VARIABLES).read_text()
    (copy / VARIABLES).write_text(text.replace("    for row in (\n", f"    for row in ({ROW}", 1))
    medseg = (sys.executable, "-c", "from medseg.cli import main; main()")
    arguments = ("--gpu", "--secret", "dicomweb", "--secret", "sftp")
    _run(copy, sys.executable, "scaffold/new_component.py", NAME, *arguments)
    generated = ("-o", "compiled", "--catalogue", "docs/components.md", "--manifests", "manifests")
    _run(copy, *medseg, "compile", *generated)

    status = _run(copy, "git", "status", "--porcelain", "--untracked-files=all").splitlines()
    touched = {line[3:] for line in status if line[1] != " "}
    made = {
        VARIABLES,
        f"components/{NAME}.py",
        f"pipelines/{NAME}.py",
        f"tests/unit/components/test_{NAME}.py",
    }
    assert {path for path in touched if not path.startswith(GENERATED)} == made
    assert f"### `{NAME}`" in (copy / "docs" / "components.md").read_text()
    pipeline, _ = yaml.safe_load_all((copy / "compiled" / f"{NAME}.yaml").read_text())
    inputs = pipeline["root"]["inputDefinitions"]["parameters"]
    assert {"dicomweb_secret", "gpu_count"} <= set(inputs)
    assert inputs["sftp_secret"]["defaultValue"] == "medseg-sftp"
    assert "password:" in (copy / "manifests" / "secrets" / "sftp.yaml").read_text()
    assert "- medseg-sftp\n" in (copy / "manifests" / "role.yaml").read_text()
    assert "sftp" in _run(copy, *medseg, "secrets", "--help")
    read = "from medseg.project import secret; print(secret('sftp', 'password'))"
    assert _run(copy, "env", "MEDSEG_SFTP_PASSWORD=x", sys.executable, "-c", read) == "x\n"
    (copy / "mounted" / "sftp").mkdir(parents=True)
    (copy / "mounted" / "sftp" / "password").write_text("y\n")
    assert _run(copy, "env", "MEDSEG_SECRETS_FOLDER=mounted", sys.executable, "-c", read) == "y\n"

    _run(copy, "ruff", "check", *made)
    _run(copy, "ruff", "format", "--check", *made)
    _run(copy, "mypy", VARIABLES, f"components/{NAME}.py", f"pipelines/{NAME}.py")
    _run(copy, "pytest", "-q", "tests/unit/components")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("RankCases", "'RankCases' is no name of a function"),
        ("class", "'class' is no name of a function"),
        ("train", "components/train.py is there already"),
    ],
)
def test_a_name_that_cannot_be(copy: Path, name: str, message: str) -> None:
    done = subprocess.run(
        [sys.executable, "scaffold/new_component.py", name],
        cwd=copy,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert message in done.stderr.replace("\n", " ")
