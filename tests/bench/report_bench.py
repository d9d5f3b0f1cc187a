"""The report of a study of 300 validation cases of 256 x 256 x 100 voxels: time and size.

    ./build.sh bench report [--cases N]

Targets: under 60 s, under 30 MB. Beside it stands what the same cases take as figures of
matplotlib (three views with outlines, as the report has of its best, median and worst case),
measured on some and reckoned for all.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from medseg.config import TaskConfig
from medseg.demo import generate_phantoms
from medseg.evaluation import write_report
from medseg.evaluation.overlays import overlay_figure
from medseg.evaluation.parts import case_files
from medseg.imaging import ENDING, write_nifti
from medseg.project import DataRoot, write_json
from tests.unit.evaluation.finished import finished_project, worsened

SHAPE = (256, 256, 100)
DRAWN = 12
"""Cases that matplotlib draws."""


def volumes(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A CT of an abdomen with an organ, its reference, and a prediction that is a little wrong."""
    random = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij")
    organ = (x - 0.3) ** 2 / 0.1 + (y - 0.1 * seed) ** 2 / 0.06 + z**2 / 0.5 < 1
    body = x**2 + (1.4 * y) ** 2 < 0.7
    image = random.normal(np.where(body, 40 + 60 * organ, -1000), 12).astype(np.int16)
    label = organ.astype(np.uint8)
    return image, label, worsened(label, seed + 1)


def study(root: DataRoot, count: int) -> TaskConfig:
    """A finished fold whose validation cases share a few volumes, each under a name of its own."""
    source = root.path / "phantoms"
    generate_phantoms(source, training_cases=4, test_cases=1)
    config = finished_project(root, source, "Task09_SpleenPhantom")
    folder = config.fold_folder() / "validation"
    affine = np.diag([0.8, 0.8, 2.5, 1.0])
    made = root.path / "volumes"
    for seed in range(4):
        for kind, array in zip(("image", "label", "prediction"), volumes(seed), strict=True):
            write_nifti(array, affine, made / f"{seed}_{kind}{ENDING}")
    entries, random = [], np.random.default_rng(0)
    for number in range(count):
        case = f"study_{number:03d}"
        files = case_files(config, "validation", folder, case)
        for kind, path in (
            ("image", files.image), ("label", files.reference), ("prediction", files.prediction),
        ):  # fmt: skip
            os.link(made / f"{number % 4}_{kind}{ENDING}", path)
        dice = float(random.uniform(0.6, 0.95))
        metrics = {
            "Dice": dice,
            "IoU": dice / (2 - dice),
            "ASD": 2 - 2 * dice,
            "HD95": 9 - 9 * dice,
        }
        entries.append(
            {
                "metrics": {"1": metrics},
                "prediction_file": str(files.prediction),
                "reference_file": str(files.reference),
            }
        )
    summary = json.loads((folder / "summary.json").read_text())
    write_json(folder / "summary.json", summary | {"metric_per_case": entries})
    return config


def main() -> int:
    """Measures, prints, and tells whether the targets are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=300)
    count = parser.parse_args().cases
    with tempfile.TemporaryDirectory() as folder:
        config = study(DataRoot.at(folder), count)
        started, computed = time.perf_counter(), time.process_time()
        page = write_report(config, Path(folder) / "reports" / "r" / "report.html")
        seconds, size = time.perf_counter() - started, page.stat().st_size / 1e6
        computed = time.process_time() - computed
        started, drawing = time.perf_counter(), time.process_time()
        for number in range(DRAWN):
            files = case_files(
                config, "validation", config.fold_folder() / "validation", f"study_{number:03d}"
            )
            overlay_figure(
                files.image, files.reference, files.prediction, config.label_set,
                channel="CT", case=files.case, caption="",
            )  # fmt: skip
        figures = (time.perf_counter() - started) / DRAWN * count
        drawing = (time.process_time() - drawing) / DRAWN * count
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    met = seconds < 60 and size < 30
    print(
        f"report of {count} cases: {seconds:.1f} s, {computed:.1f} s of CPU, {size:.1f} MB, "
        f"peak {peak:.2f} GiB"
    )
    print(
        f"three views of each case by matplotlib: {figures:.0f} s ({figures / seconds:.1f} times), "
        f"{drawing:.0f} s of CPU ({drawing / computed:.1f} times)"
    )
    print("targets (60 s, 30 MB): " + ("met" if met else "MISSED"))
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
