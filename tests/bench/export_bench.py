"""Logits to files on disk, against nnU-Net's ``export_prediction_from_logits``: time and memory.

    ./build.sh bench export [--classes 25] [--shape 512 512 300] [--probabilities]

Logits of a network with 1.5 mm voxels become a label map, and with ``--probabilities`` the
probabilities of all labels too, of an image of the shape with 0.8 x 0.8 x 1 mm. Each run is a
process of its own, by turns; its memory is the most that it holds beyond the logits. By default the
image is an eighth of 512 x 512 x 300; nnU-Net needs 20 GB and more for the whole one's.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseg.imaging import Volume, from_zyx, read_nifti, write_nifti
from tests.unit.nnunet.test_prediction import Setting

SPACING = (1.0, 0.8, 0.8)
PLANNED = (1.5, 1.5, 1.5)


def setting(classes: int) -> Setting:
    labels = {"background": 0, **{f"label {value}": value for value in range(1, classes)}}
    return Setting({"labels": labels}, spacing=PLANNED, patch=(128, 128, 128))


def properties(shape: tuple[int, ...]) -> dict[str, Any]:
    return {
        "spacing": list(SPACING),
        "shape_before_cropping": shape,
        "shape_after_cropping_and_before_resampling": shape,
        "bbox_used_for_cropping": [[0, size] for size in shape],
        "sitk_stuff": {
            "spacing": SPACING[::-1],
            "origin": (0.0, 0.0, 0.0),
            "direction": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
        },
    }


def make_logits(path: Path, classes: int, shape: tuple[int, ...]) -> None:
    """Smooth blobs: a trained network's logits are as smooth."""
    planned = [round(size * a / b) for size, a, b in zip(shape, SPACING, PLANNED, strict=True)]
    random = torch.Generator().manual_seed(0)
    logits = np.lib.format.open_memmap(path, "w+", np.float16, (classes, *planned))
    for head in logits:
        coarse = torch.randn((1, 1, *(size // 12 for size in planned)), generator=random)
        fine = torch.nn.functional.interpolate(coarse, tuple(planned), mode="trilinear")
        head[:] = (6 * fine[0, 0]).numpy()


def ours(logits: torch.Tensor, options: argparse.Namespace, target: Path) -> None:
    from medseg.bundle.probabilities import write_probabilities

    planned = setting(options.classes)
    predictor = planned.predictor(torch.nn.Identity())
    affine, facts = np.diag([*SPACING[::-1], 1.0]), properties(options.shape)
    if options.probabilities:
        files = [target / f"case_prob_{value}.nii.gz" for value in predictor.values]
        grid = from_zyx(np.broadcast_to(np.uint8(0), options.shape))
        blocks = predictor.exporter.blocks(logits, facts)
        mask = write_probabilities(blocks, files, Volume(grid, affine, "case"))
    else:
        mask = from_zyx(predictor.labels(logits, facts))
    write_nifti(mask, affine, target / "case.nii.gz")


def theirs(logits: torch.Tensor, options: argparse.Namespace, target: Path) -> None:
    from nnunetv2.inference.export_prediction import export_prediction_from_logits

    predictor = setting(options.classes).theirs(torch.nn.Identity())
    export_prediction_from_logits(
        logits,
        properties(options.shape),
        predictor.configuration_manager,
        predictor.plans_manager,
        predictor.dataset_json,
        str(target / "case"),
        options.probabilities,
    )


def child(options: argparse.Namespace) -> None:
    """One export: prints seconds, and MB beyond the logits."""
    work = {"ours": ours, "theirs": theirs}[options.side]
    logits = torch.from_numpy(np.load(options.logits))
    small = torch.zeros((options.classes, 4, 4, 4)).half()
    warm = argparse.Namespace(**{**vars(options), "shape": (6, 8, 8)})
    with tempfile.TemporaryDirectory() as folder:  # what is imported late is not to be measured
        work(small, warm, Path(folder))
    lines = Path("/proc/self/status").read_text().splitlines()
    held = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    started = time.perf_counter()
    work(logits, options, options.target)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([seconds, (peak - held) / 1024]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=25)
    parser.add_argument("--shape", type=int, nargs=3, default=(256, 256, 150), help="x y z")
    parser.add_argument("--probabilities", action="store_true", help="of all labels too")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--logits", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.shape = tuple(options.shape)[::-1]
    if options.side:
        return child(options)
    kinds = [True] if options.probabilities else [False, True]
    with tempfile.TemporaryDirectory() as folder:
        logits = Path(folder, "logits.npy")
        make_logits(logits, options.classes, options.shape)
        for probabilities in kinds:
            compare(options, probabilities, logits, Path(folder))


def compare(options: argparse.Namespace, probabilities: bool, logits: Path, folder: Path) -> None:
    print("label map and probabilities" if probabilities else "label map")
    figures: dict[str, list[list[float]]] = {"ours": [], "theirs": []}
    for _ in range(options.repeats):
        for side, known in figures.items():
            target = folder / side
            target.mkdir(exist_ok=True)
            command = [sys.executable, "-m", "tests.bench.export_bench", "--side", side]
            command += ["--logits", str(logits), "--target", str(target)]
            command += ["--classes", str(options.classes)]
            command += ["--shape", *map(str, options.shape[::-1])]
            command += ["--probabilities"] * probabilities
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{side} failed:\n{done.stdout}{done.stderr}")
            known.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"  {side}: {known[-1][0]:.2f} s, {known[-1][1]:.0f} MB", flush=True)
    mine, other = (np.median(known, axis=0) for known in figures.values())
    wanted = "at least 3" if probabilities else "at least 8"
    print(f"  times faster: {other[0] / mine[0]:.1f} (target: {wanted})")
    small = "" if probabilities else " (target: at most 0.25)"
    print(f"  of its memory beyond the logits: {mine[1] / other[1]:.2f}{small}")
    first, second = (read_nifti(folder / side / "case.nii.gz").array for side in figures)
    print(f"  voxels with another label: {(first != second).sum()} of {first.size}")


if __name__ == "__main__":
    main()
