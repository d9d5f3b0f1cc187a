"""The manifests of an application package: how an inference image describes itself.

After the Holoscan Application Package specification, which MONAI Deploy's packages follow:
``/etc/holoscan/app.json`` says how to run it, ``/etc/holoscan/pkg.json`` what is in it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from medseg import __version__
from medseg.bundle.formats import Format

MANIFESTS = "/etc/holoscan"
MODELS = "/opt/holoscan/models"
TASK_FILE = f"{MANIFESTS}/segmentation_task.yaml"
COMMAND = ["python3", "/opt/holoscan/app"]
STACK = 32 * 1024 * 1024
"""Bytes of stack that Holoscan's threads need."""

ENVIRONMENT = {
    "HOLOSCAN_APPLICATION": "/opt/holoscan/app",
    "HOLOSCAN_INPUT_PATH": "/var/holoscan/input",
    "HOLOSCAN_OUTPUT_PATH": "/var/holoscan/output",
    "HOLOSCAN_WORKDIR": "/var/holoscan",
    "HOLOSCAN_MODEL_PATH": MODELS,
    "HOLOSCAN_CONFIG_PATH": "/var/holoscan/app.yaml",
    "HOLOSCAN_APP_MANIFEST_PATH": f"{MANIFESTS}/app.json",
    "HOLOSCAN_PKG_MANIFEST_PATH": f"{MANIFESTS}/pkg.json",
    "HOLOSCAN_DOCS_PATH": "/opt/holoscan/docs",
    "HOLOSCAN_LOGS_PATH": "/var/holoscan/logs",
}
"""What images/map sets, and what a hosting service must set where it does not start the image
itself."""


def manifests(
    input_format: Format, *, version: str = "0.0.0", model: str = ""
) -> dict[str, dict[str, Any]]:
    """Both manifests by file name.

    Args:
        input_format: ``dicom`` or ``nifti``.
        version: The model's version.
        model: The model's folder in ``/opt/holoscan/models``; empty in the base image.
    """
    return {
        "app.json": {
            "apiVersion": "1.0.0",
            "type": "application",
            "command": json.dumps(COMMAND),
            "environment": ENVIRONMENT,
            "input": {"formats": [{"type": "file", "format": input_format}], "path": "input/"},
            "output": {"format": {"type": "file", "format": input_format}, "path": "output/"},
            "readiness": None,
            "liveness": None,
            "sdk": "monai-deploy",
            "sdkVersion": "4.0.0",
            "timeout": 0,
            "version": version,
            "workingDirectory": "/var/holoscan",
        },
        "pkg.json": {
            "apiVersion": "1.0.0",
            "applicationRoot": "/opt/holoscan/app",
            "modelRoot": MODELS,
            "models": [{"name": model, "path": model}] if model else [],
            "resources": {"cpu": 1, "gpu": 0, "memory": "4Gi", "sharedMemory": "64Mi"},
            "version": __version__,
        },
    }


def write_manifests(folder: Path, contents: dict[str, dict[str, Any]]) -> None:
    """Writes the manifests.

    Args:
        folder: What becomes ``/etc/holoscan``.
        contents: As from :func:`manifests`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":  # images/map/Dockerfile
    write_manifests(Path(sys.argv[2]), manifests("dicom" if sys.argv[1] == "dicom" else "nifti"))
