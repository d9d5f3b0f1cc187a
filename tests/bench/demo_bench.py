"""The demo from nothing: wall time, peak memory of its largest process, Dice of the test cases."""

from __future__ import annotations

import resource
import shutil
import time

from medseg.config import load_config
from medseg.demo.walkthrough import read_summaries
from medseg.project import DataRoot
from tests.bench.project import NAME, ROOT, run_demo


def main() -> None:
    """Prints the three figures and their targets."""
    shutil.rmtree(ROOT, ignore_errors=True)
    started = time.perf_counter()
    run_demo()
    minutes = (time.perf_counter() - started) / 60
    # of all descendants that were waited for, the largest; Linux counts in KiB
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    config = load_config(f"configs/{NAME}_config.yaml", DataRoot.at(ROOT))
    dice = read_summaries(config)["test"]["foreground_mean"]["Dice"]
    print(f"wall time {minutes:.1f} min (target: at most 6 on 2 cores without a GPU)")
    print(f"peak memory of a process {peak:.2f} GiB (target: at most 6)")
    print(f"spleen Dice on the test cases {dice:.3f} (target: at least 0.85)")


if __name__ == "__main__":
    main()
