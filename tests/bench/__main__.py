"""Runs the benchmarks: ``./build.sh bench [NAME…]``; without names all of them.

With one name, what follows goes to that benchmark: ``./build.sh bench nnunet --dataset DIR``.
"""

from __future__ import annotations

import subprocess
import sys

KNOWN = (
    "demo", "overhead", "conversion", "nnunet", "finetune", "report",
    "segment", "folds", "export", "containers",
)  # fmt: skip
"""In this order: the demo leaves the model that others measure."""


def main() -> int:
    """Runs them one after the other; returns an exit status."""
    names = sys.argv[1:] or list(KNOWN)
    options = names[1:] if len(names) > 1 and names[1].startswith("-") else []
    names = names[:1] if options else names
    unknown = sorted(set(names) - set(KNOWN))
    if unknown:
        print(f"unknown benchmark {', '.join(unknown)}; there are {', '.join(KNOWN)}")
        return 2
    status = 0
    for name in names:
        print(f"== {name}", flush=True)
        module = f"tests.bench.{name}_bench"
        status |= subprocess.run([sys.executable, "-m", module, *options]).returncode
    return status


if __name__ == "__main__":
    raise SystemExit(main())
