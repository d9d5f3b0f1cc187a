"""Stages in containers: how they end, and how little they need."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml

from medseg.bundle import model_file
from medseg.config import load_config
from medseg.kubeflow.local_docker import LABEL
from medseg.project import DataRoot
from tests.containers.conftest import UID, Images, give_away, run_docker
from tests.hippocampus import CONFIG
from tests.pipelines.harness import MEDSEG, newest_log, run_arguments

SECOND = "configs/second.yaml"


def events(root: Path) -> Iterator[dict[str, Any]]:
    """Those of the newest run."""
    files = sorted((root / "runs").glob("*/events.jsonl"), key=lambda path: path.stat().st_mtime)
    for line in files[-1].read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


@pytest.fixture(scope="module")
def second_fold(project: Path, images: Images, engine: docker.DockerClient) -> Path:
    """Fold 1, whose training is told to end in between, and then runs to its end."""
    content = yaml.safe_load((project / CONFIG).read_text())
    content |= {"fold": 1, "num_epochs": 6, "iterations_per_epoch": 1, "save_every": 50}
    (project / SECOND).write_text(yaml.safe_dump(content))
    give_away(project / "configs")
    given = {"config_file_path": SECOND, "image": images.runtime}
    before = {path.name for path in (project / "runs").iterdir()}
    process = subprocess.Popen(
        [MEDSEG, *run_arguments("train", project, **given), "--runner", "docker"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            **os.environ,
            "COLUMNS": "200",
            "MEDSEG_REGISTRY_AUTH": "{}",
            "AWS_SECRET_ACCESS_KEY": "x",
        },
    )
    deadline = time.monotonic() + 300
    while True:
        new = [path for path in (project / "runs").iterdir() if path.name not in before]
        if new and any(item["message"].startswith("epoch 2:") for item in events(project)):
            break
        assert process.poll() is None, newest_log(project)
        assert time.monotonic() < deadline, newest_log(project)
        time.sleep(0.2)
    (container,) = engine.containers.list(filters={"label": f"{LABEL}={new[0].name}"})
    environment = dict(item.split("=", 1) for item in container.attrs["Config"]["Env"])
    assert environment["AWS_SECRET_ACCESS_KEY"] == "x"
    assert "MEDSEG_REGISTRY_AUTH" not in environment  # another stage's
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 143, output
    assert engine.containers.list(all=True, filters={"label": f"{LABEL}={new[0].name}"}) == []
    last = [item for item in events(project) if item["stage"] == "train"][-1]
    assert (last["event"], last["message"]) == ("error", "SystemExit: 143")
    finished = sum(item["message"].startswith("epoch ") for item in events(project))
    run_docker(project, "train", images, config_file_path=SECOND)
    # checkpoint_latest.pth, or checkpoint_best.pth where the last finished epoch was the best
    told = [item["message"] for item in events(project) if item["stage"] == "train"]
    again = f"fold 1: epochs {finished + 1} to 6 on "
    assert any(text.startswith(again) and "resumed from" in text for text in told), told
    return project


def test_sigterm_ends_a_training_with_its_checkpoint(second_fold: Path) -> None:
    config = load_config(SECOND, DataRoot.at(second_fold))
    assert (config.fold_folder() / "checkpoint_final.pth").is_file()


def test_a_stage_without_network_and_privilege(second_fold: Path, images: Images) -> None:
    program = (
        "from kfp.dsl import Model\n"
        "from medseg.components import convert_pt_to_ts\n"
        "model = Model(uri='/tmp/model')\n"
        f"convert_pt_to_ts.python_func({SECOND!r}, model)\n"
        "print(model.metadata)"
    )
    command = ["docker", "run", "--rm", "--read-only", "--user", str(UID), "--cap-drop", "ALL"]
    command += ["--network", "none", "--tmpfs", "/tmp", "-v", f"{second_fold}:/mnt/Data"]
    done = subprocess.run(
        [*command, images.runtime, "python3", "-c", program], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    model = model_file(load_config(SECOND, DataRoot.at(second_fold)))
    assert model.parent.name == "fold_1"
    assert model.is_file()
    assert model.stat().st_uid == second_fold.stat().st_uid


def test_a_sites_mount_path(
    second_fold: Path, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled for a volume at /data: the paths in a run's arguments are those of the site."""
    settings = tmp_path / "site.yaml"
    settings.write_text("mount_path: /data\n")
    monkeypatch.setenv("MEDSEG_PLATFORM_FILE", str(settings))
    subprocess.run([MEDSEG, "compile", "-o", tmp_path / "out"], check=True, capture_output=True)
    pipeline = str(tmp_path / "out" / "convert_pt_to_ts.yaml")
    run_docker(second_fold, pipeline, images, config_file_path=f"/data/{SECOND}")
    assert [item["event"] for item in events(second_fold)][-1] == "end"
