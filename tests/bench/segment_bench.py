"""``segment`` against ``nnUNetv2_predict`` on one case: wall time, and Dice between the results.

    ./build.sh bench segment [IMAGE --model model.ts --results FOLDER] [--shape 512 512 200]

Both start in a fresh process each time, by turns, so that load on the machine meets both alike.
The two must be the same fold: the packaged file, and nnU-Net's own model folder. By default they
are the demo's, and the image is one of its test cases; with ``--shape`` a CT of that many voxels of
0.8 x 0.8 x 2 mm which that case fills again and again. What is asked of the time there is asked of
CPUs with units for bfloat16.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np

from medseg.bundle.torchscript import load_packaged
from medseg.imaging import read_nifti, write_nifti
from medseg.nnunet.devices import BFLOAT16_FLAGS, choose_precision, cpu_flags
from tests.bench import project

OURS = """
import sys
from medseg.bundle import segment
segment(*sys.argv[1:4], test_time_augmentation=sys.argv[4] == "True", device=sys.argv[5])
"""


def large_image(source: Path, shape: list[int], target: Path) -> None:
    volume = read_nifti(source)
    spacing = (0.8, 0.8, 2.0)
    places = []
    for size, fine, coarse, have in zip(
        shape, spacing, volume.spacing, volume.array.shape, strict=True
    ):
        index = (np.arange(size) * fine / coarse).astype(int) % (2 * have)
        places.append(np.minimum(index, 2 * have - 1 - index))  # there and back again
    write_nifti(volume.array[np.ix_(*places)], np.diag([*spacing, 1.0]), target)


def arithmetic(model: Path, device: str) -> str:
    units = ", ".join(sorted(cpu_flags() & BFLOAT16_FLAGS)) or "none"
    dice = load_packaged(model).bfloat16_dice
    chosen = choose_precision("auto", device, lambda: dice)
    return f"{chosen} (units of the CPU for bfloat16: {units}; Dice in the model: {dice})"


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return time.perf_counter() - started


def environment() -> dict[str, str]:
    folders = {"nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"} - set(os.environ)
    return {**os.environ, **{name: tempfile.gettempdir() for name in folders}}


def dice(first: Path, second: Path) -> dict[int, float]:
    one, two = (np.asarray(nibabel.load(path).dataobj).astype(int) for path in (first, second))
    values = sorted((set(np.unique(one)) | set(np.unique(two))) - {0})
    return {
        int(value): 2.0
        * float(((one == value) & (two == value)).sum())
        / float((one == value).sum() + (two == value).sum())
        for value in values
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", type=Path, nargs="?", help="a NIfTI file of one channel")
    parser.add_argument("--model", type=Path, help="model.ts")
    parser.add_argument(
        "--results",
        type=Path,
        help="nnU-Net's folder of the trained model: holds plans.json and fold_F",
    )
    parser.add_argument("--fold", default="0")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shape", type=int, nargs=3, help="a large image: voxels along x, y, z")
    parser.add_argument("--no-tta", action="store_true", help="no test-time augmentation")
    options = parser.parse_args()
    given = (options.image, options.model, options.results)
    if not all(given):
        if any(given):
            parser.error("IMAGE, --model and --results belong together")
        options.image = project.held_back_image()
        options.model, options.results = project.model_file(), project.results_folder()
    with tempfile.TemporaryDirectory() as folder:
        images, theirs, ours = (Path(folder, name) for name in ("in", "theirs", "case.nii.gz"))
        images.mkdir()
        image = images / "case_0000.nii.gz"
        if options.shape:
            large_image(options.image, options.shape, image)
        else:
            shutil.copy(options.image, image)
        print(f"segment computes in {arithmetic(options.model, options.device)}")
        our_command = [sys.executable, "-c", OURS, str(options.model), str(image), str(ours)]
        our_command += [str(not options.no_tta), options.device]
        predict = Path(sys.executable).with_name("nnUNetv2_predict_from_modelfolder")
        their_command = [str(predict), "-i", str(images), "-o", str(theirs)]
        their_command += ["-m", str(options.results), "-f", options.fold]
        their_command += ["-device", options.device, "--disable_progress_bar"]
        their_command += ["--disable_tta"] * options.no_tta
        times = [(seconds(our_command), seconds(their_command)) for _ in range(options.repeats)]
        agreement = dice(ours, theirs / "case.nii.gz")
    for our_time, their_time in times:
        print(f"segment {our_time:.2f} s, nnUNetv2_predict {their_time:.2f} s")
    ratio = statistics.median(our_time / their_time for our_time, their_time in times)
    target = 0.3 if options.shape else 0.2
    print(f"ratio (median of {options.repeats}): {ratio:.2f} (target: at most {target})")
    shown = ", ".join(f"label {key}: {value:.5f}" for key, value in agreement.items())
    print(f"Dice between the two: {shown} (target: at least 0.999)")


if __name__ == "__main__":
    main()
