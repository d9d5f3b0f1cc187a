"""What running a stage as a KFP task costs, beside the stage itself.

The pipeline ``dicom_to_nifti`` (three tasks) runs on studies that are converted already, so that
hardly anything is left but overhead: starting ``medseg``, KFP, and a process a task. Against it
the same three functions, each in a Python process of its own that imports what it uses.

First, what each start costs: the command, a component, a compilation.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TASKS = (
    "from medseg.dicom import list_studies; list_studies(root, studies, 'NIFTI')",
    "from medseg.dicom import convert_studies; convert_studies(root, studies, 0, 'NIFTI')",
    "from medseg.dataset import collect_dataset; collect_dataset(root, 'NIFTI')",
)
START = (
    "from medseg.project import DataRoot; root = DataRoot.from_environment();"
    "studies = 'file:///mnt/Data/DICOM';"
)

MEDSEG = str(Path(sys.executable).with_name("medseg"))


def seconds(*commands: list[str], root: Path) -> float:
    environment = {**os.environ, "MEDSEG_DATA_ROOT": str(root)}
    started = time.perf_counter()
    for command in commands:
        subprocess.run(command, check=True, capture_output=True, env=environment)
    return time.perf_counter() - started


STARTS = {
    "medseg --help": (["{medseg}", "--help"], 0.5),
    "importing a component": (["{python}", "-c", "from medseg.components import train"], 1),
    "compiling a pipeline": (["{python}", "-c", "{compile}"], 3),
}
"""What a person waits for at every start, and the seconds that it should take at most."""

COMPILE = (
    "from kfp import compiler; from medseg.pipelines.train import train;"
    "compiler.Compiler().compile(train, 'train.yaml')"
)


def starts() -> None:
    """Prints what starting costs: the best of three, in seconds of one core."""
    words = {"medseg": MEDSEG, "python": sys.executable, "compile": COMPILE}
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MEDSEG_", "PYTHON"))}
    with tempfile.TemporaryDirectory() as folder:
        for name, (command, target) in STARTS.items():
            used = []
            for _ in range(3):
                before = os.times()
                subprocess.run(
                    [word.format(**words) for word in command],
                    cwd=folder,
                    env=clean,
                    check=True,
                    capture_output=True,
                )
                after = os.times()
                used.append(sum(after[2:4]) - sum(before[2:4]))
            print(f"{name}: {min(used):.2f} s (target: at most {target} s)")


def main() -> None:
    """Prints both sides and the overhead a task."""
    from medseg.demo import generate_phantoms

    starts()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        generate_phantoms(root / "decathlon", training_cases=2, test_cases=0)
        run = [
            MEDSEG,
            "run",
            "nifti_to_dicom",
            "-p",
            "input_folder=decathlon",
            "-p",
            "output=DICOM",
        ]
        seconds(run, root=root)
        run = [MEDSEG, "run", "dicom_to_nifti", "-p", "studies=file:///mnt/Data/DICOM"]
        run += ["-p", "output_folder=NIFTI"]
        seconds(run, root=root)  # converts
        direct = [[sys.executable, "-c", f"{START} {task}"] for task in TASKS]
        pairs = [(seconds(run, root=root), seconds(*direct, root=root)) for _ in range(5)]
    for ours, theirs in pairs:
        print(f"medseg run {ours:.2f} s, the functions alone {theirs:.2f} s")
    overheads = sorted((ours - theirs) / len(TASKS) for ours, theirs in pairs)
    print(f"overhead a task: {overheads[len(pairs) // 2]:.2f} s (target: at most 2 s)")


if __name__ == "__main__":
    main()
