"""The builder's image has medseg without torch, imaging and DICOM."""

from __future__ import annotations

import subprocess
import sys

ABSENT = ("numpy", "torch", "pydicom", "mlflow", "jinja2", "boto3")


def test_check_beside_needs_nothing_of_the_runtime(tmp_path: object) -> None:
    code = (
        "import sys\n"
        f"for name in {ABSENT}: sys.modules[name] = None\n"
        "from medseg.check import check_beside\n"
        "check_beside('run', '')\n"
    )
    environment = {"MEDSEG_DATA_ROOT": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "not asked: registry" in done.stdout
