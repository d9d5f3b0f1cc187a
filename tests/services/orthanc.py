"""A real Orthanc for tests."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

import pytest
import requests

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc.

    Attributes:
        rest: The root of its own REST interface.
        node: It as a DICOM node.
        username: Who may use its HTTP interface.
        password: That user's password.
    """

    rest: str
    node: str
    username: str
    password: str

    @property
    def url(self) -> str:
        """Its DICOMweb root."""
        return f"{self.rest}/dicom-web"

    def get(self, path: str) -> requests.Response:
        return requests.get(self.rest + path, auth=(self.username, self.password), timeout=10)

    def count(self) -> int:
        """Instances that it holds."""
        return int(self.get("/statistics").json()["CountInstances"])

    def empty(self) -> None:
        """Deletes all that it holds."""
        for patient in self.get("/patients?expand").json():
            self.delete(patient["MainDicomTags"]["PatientID"])

    def delete(self, patient_id: str) -> None:
        """Deletes what it holds of a patient."""
        for patient in self.get("/patients?expand").json():
            if patient["MainDicomTags"]["PatientID"] == patient_id:
                requests.delete(
                    f"{self.rest}/patients/{patient['ID']}",
                    auth=(self.username, self.password),
                    timeout=10,
                ).raise_for_status()


@contextmanager
def serve_orthanc(folder: Path) -> Iterator[Orthanc]:
    """Runs an Orthanc of its own on free ports, with its storage in ``folder`` and a password.

    Where Orthanc is missing it is installed with apt if this is root; else the test is skipped
    (in CI: fails) with the command to run.
    """
    program = _program()
    http, dicom, password = free_port(), free_port(), token_hex(8)
    configuration = folder / "orthanc.json"
    configuration.write_text(
        json.dumps(
            {
                "Name": "tests",
                "StorageDirectory": str(folder / "storage"),
                "IndexDirectory": str(folder / "storage"),
                "Plugins": [str(PLUGIN)],
                "HttpPort": http,
                "DicomPort": dicom,
                "DicomAet": "ORTHANC",
                "DicomCheckCalledAet": True,
                "AuthenticationEnabled": True,
                "RegisteredUsers": {"medseg": password},
                "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            }
        )
    )
    node = f"dicom://ORTHANC@127.0.0.1:{dicom}"
    server = Orthanc(f"http://127.0.0.1:{http}", node, "medseg", password)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, str(configuration)], stdout=log, stderr=log)
    try:
        for _ in range(100):
            if process.poll() is not None:
                pytest.fail(f"Orthanc ended: {(folder / 'log').read_text()[-2000:]}")
            try:
                server.get("/system")
                break
            except requests.ConnectionError:
                time.sleep(0.2)
        else:
            pytest.fail("Orthanc did not answer within 20 s")
        yield server
    finally:
        process.terminate()
        process.wait(timeout=20)


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _program() -> str:
    for attempt in ("found", "installed"):
        program = shutil.which("Orthanc")
        if program is not None and PLUGIN.exists():
            return program
        if attempt == "found" and os.geteuid() == 0 and shutil.which("apt-get"):
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            for command in ("apt-get update", "apt-get install -y orthanc orthanc-dicomweb"):
                subprocess.run(command.split(), env=environment, capture_output=True, check=False)
    missing = "Orthanc is not installed: apt-get install -y orthanc orthanc-dicomweb"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)
