"""The notebooks of the documentation, executed from top to bottom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import PROJECT
from tests.services.http import serve
from tests.services.kubeflow_api import KubeflowApi

FOLDER = PROJECT / "docs" / "notebooks"


def _execute(name: str, folder: Path) -> str:
    """Runs a notebook in a fresh kernel; gives what it printed."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert not [c for c in notebook.cells if c.get("outputs")], "commit notebooks without outputs"
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    executed: Any = client.execute()
    return "".join(
        output.get("text", "") + output.get("data", {}).get("text/plain", "") + "\n"
        for cell in executed.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )


@pytest.fixture(autouse=True)
def _no_site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MEDSEG_DATA_ROOT", "MEDSEG_WEBHOOK_URL", "MEDSEG_RUN_ID", "MEDSEG_EVENTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def test_all_notebooks_are_executed() -> None:
    assert {p.stem for p in FOLDER.glob("*.ipynb")} == {"quickstart", "compose", "schedule"}


def test_quickstart(tmp_path: Path) -> None:
    assert "3 cases are the same" in _execute("quickstart", tmp_path)


def test_compose(tmp_path: Path) -> None:
    assert "nifti_to_dicom" in _execute("compose", tmp_path)


def test_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(state: str, task: str) -> dict[str, Any]:
        details = [{"display_name": "train", "state": task}]
        return {"state": state, "run_details": {"task_details": details}}

    api = KubeflowApi(token="good", namespace="team")
    api.progress = [look("RUNNING", "RUNNING"), look("SUCCEEDED", "SUCCEEDED")]
    (tmp_path / "token").write_text("good")
    with serve(api.answer) as url:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", url)
        monkeypatch.setenv("MEDSEG_NAMESPACE", "team")
        monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
        text = _execute("schedule", tmp_path)
    assert api.violations == []
    (run,) = api.runs.values()
    assert run["runtime_config"]["parameters"]["gpu_count"] == "1"
    assert "SUCCEEDED {'train': 'SUCCEEDED'}" in text
    assert "nightly spleen 0 0 2 * * * True" in text
    assert api.recurring_runs == {}, "the notebook cleans up after itself"
