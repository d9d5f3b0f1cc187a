"""A real S3 server: SeaweedFS, the object store of Kubeflow Pipelines."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.services.mlflow_server import free_port

ACCESS_KEY, SECRET_KEY = "medseg", "open-sesame"


@dataclass(frozen=True)
class ObjectStore:
    """A running server.

    Attributes:
        port: Where it speaks S3, on 127.0.0.1.
        bucket: The bucket that it has.
    """

    port: int
    bucket: str

    @property
    def client(self) -> Any:
        """A client with all rights."""
        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
            config=Config(retries={"max_attempts": 1}, connect_timeout=1, read_timeout=5),
        )

    def names(self) -> list[str]:
        """The names of all objects."""
        found = self.client.list_objects_v2(Bucket=self.bucket)
        return [item["Key"] for item in found.get("Contents", ())]


@contextlib.contextmanager
def serve_objects(folder: Path, bucket: str) -> Iterator[ObjectStore]:
    """Runs a server with its storage in ``folder``, and makes a bucket."""
    rights = {"actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    login = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
    identity = {"name": "medseg", "credentials": [login], **rights}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    store = ObjectStore(free_port(), bucket)
    ports = [
        f"-{part}.port{kind}={free_port()}"
        for part in ("master", "volume", "filer")
        for kind in ("", ".grpc")
    ]
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or "weed"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
                *("-master.telemetry=false", "-volume.max=50", "-master.volumeSizeLimitMB=64"),
                *("-s3", f"-s3.config={folder / 's3.json'}", f"-s3.port={store.port}"),
                *(f"-s3.port.grpc={free_port()}", "-s3.port.iceberg=0", "-s3.port.lance=0"),
                *ports,
            ],
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                store.client.create_bucket(Bucket=bucket)
                break
            except (BotoCoreError, ClientError):  # it is not up yet
                assert process.poll() is None, (folder / "log").read_text()[-2000:]
                assert time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
                time.sleep(0.3)
        yield store
    finally:
        process.kill()  # told to end, it waits half a minute for its own parts
        process.wait(timeout=20)
