"""``build.sh``, and that what calls it calls commands that it has."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from medseg.kubeflow.settings import PlatformSettings
from tests.conftest import PROJECT

WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))
CALLERS = [PROJECT / "README.md", PROJECT / ".ci/run", *(PROJECT / "docs").glob("*.md"), *WORKFLOWS]


def commands() -> set[str]:
    """Those that the usage names."""
    shown = subprocess.run([PROJECT / "build.sh", "help"], capture_output=True, text=True)
    assert shown.returncode == 0
    return set(re.findall(r"^  ([a-z][a-z-]*)", shown.stdout, re.MULTILINE))


@pytest.mark.parametrize("file", CALLERS, ids=lambda file: file.name)
def test_a_command_that_is_called_exists(file: Path) -> None:
    called = set(re.findall(r"^[^#\n]*\./build\.sh ([a-z][a-z-]*)", file.read_text(), re.MULTILINE))
    assert called <= commands()


def test_every_command_of_the_usage_exists() -> None:
    script = (PROJECT / "build.sh").read_text()
    assert {name for name in commands() if f"\n  {name})\n" not in script} == set()


def test_a_release_publishes_the_image_that_is_compiled_in() -> None:
    (workflow,) = WORKFLOWS
    release: dict[str, Any] = yaml.safe_load(workflow.read_text())["jobs"]["release"]
    registry = release["env"]["REGISTRY"].replace("${{ github.repository_owner }}", "kfp-medseg")
    assert registry == PlatformSettings().registry
    pushes = [step.get("run", "") for step in release["steps"]]
    assert any('./build.sh images --registry "${REGISTRY,,}" --push' in run for run in pushes)
    compiled = (PROJECT / "compiled" / "train.yaml").read_text()
    assert f"{registry}/runtime:{PlatformSettings().tag}" in compiled


def test_setup_passes_over_a_python_that_does_not_start(tmp_path: Path) -> None:
    """Such as pyenv's ``python3.12`` where that version is not installed."""
    checkout, programs = tmp_path / "checkout", tmp_path / "bin"
    checkout.mkdir()
    programs.mkdir()
    for name in ("build.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(PROJECT / name, checkout)
    scripts = {
        "python3.12": "echo 'pyenv: python3.12: command not found' >&2\nexit 127\n",
        "python3.11": 'if [ "$1 $2" = "-m venv" ]; then\n'
        '  mkdir -p "$3/bin"\n  printf "#!/bin/sh\\n" >"$3/bin/pip"\n  chmod +x "$3/bin/pip"\nfi\n'
        'if [ "$1" = --version ]; then echo "Python 3.11.9"; fi\n',
    }
    for name, text in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}")
        (programs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:/usr/bin:/bin"}
    done = subprocess.run(
        [checkout / "build.sh", "setup"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "with Python 3.11.9" in done.stdout
