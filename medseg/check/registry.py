"""The registry: whether it lets us in, and takes an image if that is asked."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medseg.check.rows import Row

IMAGE = "medseg-check:empty"
"""What an empty image is called, below the path that the person gave."""
_OCI = "application/vnd.oci.image"


def registry_rows(registry: str, *, push: bool = False, insecure: bool = False) -> Iterator[Row]:
    """Whether the registry answers and takes the credentials.

    Args:
        registry: Registry and path, such as ``registry.example.org/imaging``; empty: not asked.
        push: Whether to push an empty image, :data:`IMAGE`, which stays there.
        insecure: As in :func:`medseg.deploy.docker_build`.
    """
    if not registry:
        yield Row("registry", "not asked", "give registry=registry/path to look")
        return
    from medseg.deploy import registry as images

    name = images.ImageName.parse(f"{registry.rstrip('/')}/{IMAGE}", "registry")
    with images.credentials() as options:
        images.remote_digest(name, options, insecure=insecure, denied_is_missing=push)
        yield Row("registry", "ok", f"{name.registry} answers")
        if not push:
            yield Row("registry: push", "not asked", "give push=true to push an empty image")
            return
        with tempfile.TemporaryDirectory() as folder:
            _empty_image(Path(folder))
            images.copy(
                f"oci:{folder}:empty",
                f"docker://{name}",
                name,
                options,
                insecure=insecure,
                environment={"TMPDIR": folder},
            )
    yield Row("registry: push", "ok", f"pushed the empty image {name}")


def _empty_image(folder: Path) -> None:
    """Writes an OCI layout with an image without layers."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def add(content: Any, kind: str) -> dict[str, Any]:
        data = json.dumps(content).encode()
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": f"{_OCI}.{kind}+json", "digest": f"sha256:{digest}", "size": len(data)}

    config = add(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": []},
            "history": [],
        },
        "config.v1",
    )
    manifest = add(
        {
            "schemaVersion": 2,
            "mediaType": f"{_OCI}.manifest.v1+json",
            "config": config,
            "layers": [],
        },
        "manifest.v1",
    )
    named = {**manifest, "annotations": {"org.opencontainers.image.ref.name": "empty"}}
    index = {"schemaVersion": 2, "manifests": [named]}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}', encoding="utf-8")
