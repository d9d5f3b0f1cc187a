"""Runs the benchmarks: ``./build.sh bench [NAME…]``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main() -> int:
    folder = Path(__file__).parent
    known = sorted(path.stem.removesuffix("_bench") for path in folder.glob("*_bench.py"))
    names = sys.argv[1:] or known
    unknown = set(names) - set(known)
    if unknown:
        print(f"unknown benchmark {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        return 2
    status = 0
    for name in names:
        print(f"== {name}", flush=True)
        status |= subprocess.run([sys.executable, folder / f"{name}_bench.py"]).returncode
    return status


if __name__ == "__main__":
    raise SystemExit(main())
