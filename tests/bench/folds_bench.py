"""Five folds that vote, against one: time, and memory beyond the weights.

    ./build.sh bench folds [--shape 96 96 96]

Folds are the demo's network with other numbers; a case of the shape goes through them, without
mirrored copies. Each run is a process of its own, by turns.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch

from medseg.bundle.torchscript import load_packaged
from medseg.nnunet.prediction import CasePredictor
from tests.bench import project

FOLDS = 5


def child(folds: int, shape: list[int]) -> None:
    """Prints the seconds of one case, and MB beyond what the networks take."""
    networks = []
    for _ in range(folds):
        packaged = load_packaged(project.model_file())
        with torch.no_grad():
            for weight in packaged.network.parameters():
                weight.mul_(1 + 0.01 * torch.randn_like(weight))
        networks.append(packaged.network)
    predictor = CasePredictor(
        networks,
        packaged.plans,
        packaged.dataset,
        configuration=packaged.checkpoint["configuration"],
        mirror_axes=(),
        device="cpu",
    )
    data = torch.randn((1, *shape))
    for _ in range(3):  # TorchScript compiles in its first passes
        predictor.logits(data[:, :8, :8, :8])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    predictor.logits(data)
    seconds = time.perf_counter() - started
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))


def run(folds: int, shape: list[int]) -> tuple[float, float]:
    command = [sys.executable, "-m", "tests.bench.folds_bench", "--folds", str(folds)]
    done = subprocess.run([*command, "--shape", *map(str, shape)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{folds} folds failed:\n{done.stdout}{done.stderr}")
    seconds, kilobytes = json.loads(done.stdout.splitlines()[-1])
    return seconds, kilobytes / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=[96, 96, 96])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folds", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folds:
        return child(options.folds, options.shape)
    project.demo_root()
    ratios = []
    for _ in range(options.repeats):
        (one, small), (all_, large) = (run(folds, options.shape) for folds in (1, FOLDS))
        print(f"one fold {one:.2f} s, {small:.0f} MB; {FOLDS} folds {all_:.2f} s, {large:.0f} MB")
        ratios.append(all_ / one)
    print(f"ratio (median of {options.repeats}): {statistics.median(ratios):.2f} (target: 5.2)")


if __name__ == "__main__":
    main()
