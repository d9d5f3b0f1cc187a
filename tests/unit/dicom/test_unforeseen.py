"""An error that nobody foresaw may quote a header: its text reaches nobody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from medseg.imaging import write_nifti
from medseg.project import DataRoot

MARKER = "Avasarala"


class Careless(BaseHTTPRequestHandler):
    """A server whose answers break the standards with a patient's name."""

    def do_GET(self) -> None:
        if "limit" in self.path:  # the first look of a target
            self.send_response(302)
            self.send_header("Location", f"http://[{MARKER}]/")
            self.end_headers()
            return
        weight = {"00101030": {"vr": "DS", "Value": [MARKER]}}
        body = json.dumps([weight]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", str(len(body)) if "offset=0" in self.path else "0")
        self.end_headers()
        if "offset=0" in self.path:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def careless() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Careless) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("component", "arguments"),
    [("list_studies", "'{url}', 'out'"), ("nifti_to_dicom", "'in', '{url}', None, modality='CT'")],
)
def test_no_text_of_an_unforeseen_error(
    root: DataRoot, careless: str, component: str, arguments: str
) -> None:
    image = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    write_nifti(image, np.eye(4), root.path / "in/a/a_image.nii.gz")
    events = root.path / "events.jsonl"
    script = (
        f"from medseg.components import {component};"
        f"{component}.python_func({arguments.format(url=careless)})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "MEDSEG_EVENTS": str(events)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    told = done.stdout + done.stderr + events.read_text()
    assert MARKER not in told
    last = json.loads(events.read_text().splitlines()[-1])
    assert (last["event"], last["error"]) == ("error", "ValueError")
    assert last["message"].startswith("ValueError in ")
