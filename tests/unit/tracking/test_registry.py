"""Promoted models in MLflow's registry: the embedded store, and a real server that is away."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from medseg.project import DataRoot, UserError
from medseg.project.variables import RUN_ID, TASK_RUN, TRACKING_URI
from medseg.tracking import fetch_model, is_registered, register
from tests.services.mlflow_server import free_port, start_server
from tests.unit.tracking.test_runs import client, task


@pytest.fixture(autouse=True)
def no_server_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (TRACKING_URI, TASK_RUN, RUN_ID):
        monkeypatch.delenv(variable.name, raising=False)


def write_model(root: DataRoot, content: bytes) -> Path:
    path = root.path / "model.ts"
    path.write_bytes(content)
    return path


def test_versions_and_the_champion(root: DataRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    config = task(root)
    first = register(config, write_model(root, b"one"), {"medseg.test_Dice": "0.9"})
    assert (first.name, first.version) == ("Task", "1")
    assert register(config, write_model(root, b"one"), {"medseg.test_Dice": "0.91"}) == first
    second = register(config, write_model(root, b"two"), {"medseg.dataset_hash": "abc"})
    assert second.version == "2"

    store = client(root)
    champion = store.get_model_version_by_alias("Task", "champion")
    assert champion.version in (2, "2")
    assert champion.tags["medseg.dataset_hash"] == "abc"
    assert store.get_model_version("Task", "1").tags["medseg.test_Dice"] == "0.91"
    assert champion.run_id == store.get_model_version("Task", "1").run_id

    assert is_registered("models:/Task@champion")
    assert not is_registered("models/model.ts")
    fetched = fetch_model("models:/Task@champion")
    assert fetched.read_bytes() == b"two"
    assert fetched.is_relative_to(root.path / ".medseg" / "models")
    assert fetch_model("models:/Task/1").read_bytes() == b"one"
    before = fetched.stat().st_mtime_ns
    assert fetch_model("models:/Task/2").stat().st_mtime_ns == before  # not fetched again
    fetched.write_bytes(b"damaged")
    assert fetch_model("models:/Task/2").read_bytes() == b"two"

    # where no data root is named, as with `medseg segment` on a laptop
    monkeypatch.setenv(TRACKING_URI.name, f"sqlite:///{root.path / 'mlflow.db'}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(root.path / "cache"))
    monkeypatch.delenv("MEDSEG_DATA_ROOT")
    assert fetch_model("models:/Task/1").is_relative_to(root.path / "cache" / "kfp-medseg")


def test_what_is_refused(root: DataRoot) -> None:
    with pytest.raises(UserError, match="no MLflow store is named: set MLFLOW_TRACKING_URI"):
        fetch_model("models:/Task@champion")
    config = task(root)
    register(config, write_model(root, b"one"), {})
    for address in ("models:/Task", "models:/Task@", "models:/Task/one", "models:/../x/1"):
        with pytest.raises(UserError, match="is no address of a registered model: write models:/"):
            fetch_model(address)
    for address in ("models:/Other@champion", "models:/Task@best", "models:/Task/7"):
        with pytest.raises(UserError, match=f"has no model {address}: look which"):
            fetch_model(address)
    (stored,) = (root.path / "mlartifacts").rglob("model.ts")
    stored.write_bytes(b"other")
    with pytest.raises(UserError, match=r"Task version 1 is not what was registered"):
        fetch_model("models:/Task/1")
    stored.unlink()
    with pytest.raises(UserError, match="cannot be reached"):
        fetch_model("models:/Task/1")
    client(root).create_model_version("Task", (root.path / "mlartifacts").as_uri())
    with pytest.raises(UserError, match="was not registered by promote: it has no tag"):
        fetch_model("models:/Task/2")


def test_a_registry_that_is_away(
    root: DataRoot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    config = task(root, tracking_uri=uri)
    model = write_model(root, b"one")
    assert register(config, model, {}).version == ""
    told = capsys.readouterr().out
    assert "the model is promoted, but not yet models:/Task@champion; run promote again" in told
    server = start_server(tmp_path, port)
    try:
        assert register(config, model, {}).version == "1"
        assert "MLflow: models:/Task@champion is version 1" in capsys.readouterr().out
        assert fetch_model("models:/Task@champion", uri).read_bytes() == b"one"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    with pytest.raises(UserError, match=rf"registry at {uri} cannot be reached .*name the model's"):
        fetch_model("models:/Task@champion", uri)
