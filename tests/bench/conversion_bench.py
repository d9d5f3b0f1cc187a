"""A CT of 512 x 512 x 200 voxels from DICOM to .nii.gz, against ``dcm2niix -z y``; the checksum.

    ./build.sh bench conversion

The stage's own time is compared with the whole program's, by turns: that of the PATH, which hands
compression to pigz where there is one, and the same with its own compression (``-z i``). Then what
it costs to read the result with its checksum, against inflating it without.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from isal import igzip, isal_zlib

from medseg.dicom import convert_studies, list_studies, nifti_to_dicom
from medseg.imaging import write_nifti
from medseg.project import DataRoot

SHAPE = (512, 512, 200)
REPEATS = 5
CHUNK = 2**20
HEADER = 10
"""Bytes of gzip's header (RFC 1952) where it names no file."""


def write_study(root: DataRoot) -> None:
    """Soft tissue with an organ, in air: noisy within the scanner's circle, as CT is."""
    random = np.random.default_rng(0)
    x, y = np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE[:2]), indexing="ij")
    slices = []
    for z in np.linspace(-1, 1, SHAPE[2]):
        body, organ = x**2 + (1.4 * y) ** 2 < 0.7, (x - 0.3) ** 2 + y**2 + z**2 < 0.1
        values = random.normal(np.where(body, 40 + 60 * organ, -1000), 12)
        slices.append(np.where(x**2 + y**2 < 1, values, -1024).astype(np.int16))
    folder = root.path / "NIFTI" / "imagesTr"
    folder.mkdir(parents=True)
    affine = np.diag([0.8, 0.8, 1.5, 1])
    write_nifti(np.stack(slices, axis=-1), affine, folder / "ct.nii.gz")
    nifti_to_dicom(root, "NIFTI", "DICOM", modality="CT")


def ours(root: DataRoot) -> float:
    shutil.rmtree(root.path / "OUT", ignore_errors=True)
    started = time.perf_counter()
    list_studies(root, "file:///mnt/Data/DICOM", "OUT")
    convert_studies(root, "file:///mnt/Data/DICOM", 0, "OUT")
    return time.perf_counter() - started


def theirs(root: DataRoot, folder: Path, compression: str) -> float:
    started = time.perf_counter()
    command = ["dcm2niix", "-z", compression, "-w", "1", "-o", folder, root.path / "DICOM"]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def with_checksum(path: Path) -> float:
    started = time.perf_counter()
    with igzip.open(path) as stream:
        while stream.read(CHUNK):
            pass
    return time.perf_counter() - started


def without_checksum(path: Path) -> float:
    started = time.perf_counter()
    inflate = isal_zlib.decompressobj(wbits=-15)
    with path.open("rb") as file:
        file.seek(HEADER)
        while not inflate.eof:
            data = inflate.unconsumed_tail or file.read(CHUNK)
            inflate.decompress(data, CHUNK)
    return time.perf_counter() - started


def main() -> None:
    """Prints the two ratios and their targets."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = DataRoot.at(folder)
        write_study(root)
        times = [
            (ours(root), theirs(root, folder, "y"), theirs(root, folder, "i"))
            for _ in range(REPEATS)
        ]
        (result,) = (folder / "OUT").glob("*/*_image.nii.gz")
        reads = [(with_checksum(result), without_checksum(result)) for _ in range(4 * REPEATS)]
    for each in times:
        print("dicom_to_nifti {:.2f} s, dcm2niix -z y {:.2f} s, -z i {:.2f} s".format(*each))
    told = subprocess.run(["dcm2niix", "--version"], check=False, capture_output=True, text=True)
    pigz = "with" if shutil.which("pigz") else "without"
    print(f"{told.stdout.splitlines()[0]}, {pigz} pigz")
    for column, how in ((1, "y"), (2, "i")):
        ratio = statistics.median(each[column] / each[0] for each in times)
        print(f"times faster than -z {how} (median of {REPEATS}): {ratio:.1f} (target: at least 6)")
    fastest = [min(column) for column in zip(*reads, strict=True)]
    print(f"reading {fastest[0]:.3f} s, without its checksum {fastest[1]:.3f} s")
    print(f"cost of the checksum: {100 * (fastest[0] / fastest[1] - 1):.1f} % (target: at most 5)")


if __name__ == "__main__":
    main()
