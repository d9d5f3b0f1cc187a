"""The demo's data root, which the benchmarks share: phantoms, a short training, a model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path("build/bench/demo").resolve()
NAME = "Task09_SpleenPhantom"
MEDSEG = str(Path(sys.executable).with_name("medseg"))


def run_demo() -> str:
    """Runs the demo, or finishes one that was begun; returns what it printed."""
    command = [MEDSEG, "demo", "--data-root", str(ROOT)]
    environment = {**os.environ, "COLUMNS": "120"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the demo failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def demo_root() -> Path:
    """The data root after a demo; the demo runs first where none has."""
    if not model_file().is_file():
        print("(running the demo once, for its model)", flush=True)
        run_demo()
    return ROOT


def model_file() -> Path:
    """The demo's packaged model."""
    return ROOT / f"MONet_Bundle/{NAME}/MONetBundle/models/model.ts"


def dataset() -> Path:
    """The phantoms in the Decathlon layout."""
    return demo_root() / "decathlon" / NAME


def held_back_image() -> Path:
    """A case that the training has not seen."""
    return min((dataset() / "imagesTs").glob("*.nii.gz"))


def results_folder() -> Path:
    """nnU-Net's folder of the demo's training."""
    return next((demo_root() / "nnUNet/nnUNet_trained_models").glob("*/*__*__*"))
