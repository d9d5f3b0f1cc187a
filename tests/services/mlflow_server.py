"""A real MLflow server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_server(
    folder: Path, port: int, artifacts: tuple[str, ...] = ()
) -> subprocess.Popen[bytes]:
    """Starts it with its store in ``folder``.

    Args:
        folder: The folder.
        port: On 127.0.0.1.
        artifacts: Its options for artifacts; by default it takes and keeps them itself.
    """
    artifacts = artifacts or ("--artifacts-destination", str(folder / "artifacts"))
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    options = ["--port", str(port), "--workers", "1"]
    store = ["--backend-store-uri", f"sqlite:///{folder}/server.db"]
    server = subprocess.Popen(
        [*command, *options, *store, *artifacts],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={
            **os.environ,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # four more processes of its own
        },
    )
    for _ in range(240):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
            return server
        except OSError:
            time.sleep(0.5)
    os.killpg(server.pid, signal.SIGKILL)
    pytest.fail("the MLflow server did not start")
