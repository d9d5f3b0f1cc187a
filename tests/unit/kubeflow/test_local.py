"""Local runs: their names."""

from __future__ import annotations

import pytest

from medseg.kubeflow.compiled import read_pipeline
from medseg.kubeflow.local import run_local
from medseg.project import DataRoot, UserError


@pytest.mark.parametrize("name", ["../x", "a b", ".x", "a/b", "läuft"])
def test_a_run_is_named_like_a_folder(root: DataRoot, name: str) -> None:
    given = {"config_file_path": "configs/none.yaml"}
    with pytest.raises(UserError, match="is none for a folder"):
        run_local(read_pipeline("validate"), root, given, name=name)
    assert not (root.path / "runs").exists()


def test_a_name_is_taken_once(root: DataRoot) -> None:
    given = {"config_file_path": "configs/none.yaml"}
    run = run_local(read_pipeline("validate"), root, given, name="nightly-7")
    assert run.name == "nightly-7"
    assert run.log == root.path / "runs" / "nightly-7" / "log.txt"
    assert "none.yaml does not exist" in run.errors[0]
    with pytest.raises(UserError, match="has a run nightly-7 already: give another name"):
        run_local(read_pipeline("validate"), root, given, name="nightly-7")
