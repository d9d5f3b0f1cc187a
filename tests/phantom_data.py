"""Synthetic cases in the place of the real ones, for a checkout without ``shared/data``.

They have the names, layout, sizes and kinds of headers that tests ask of the real ones; a test that
is about a scanner's own headers asks for the fixture ``real_data``.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom

from medseg.demo import generate_phantoms
from medseg.dicom import nifti_to_dicom
from medseg.project import DataRoot

CASES = [f"hippocampus_{number:03d}" for number in (1, 3, *range(17, 54), 64)]
FIRST = (35, 51, 35)
"""Voxels of the first case."""

SERIES = {"T1post": "T1post", "FLAIR_reg": "FLAIRreg"}
"""Channel of the clinical study, and the folder of its series."""


def write_phantom_data(folder: Path) -> None:
    """Writes ``Task04_Hippocampus`` and ``PGBM-002``, as ``shared/data`` has them."""
    phantoms = folder / "phantoms"
    with contextlib.redirect_stdout(io.StringIO()):
        generate_phantoms(phantoms, training_cases=8, test_cases=0)
    _write_hippocampi(phantoms, folder / "Task04_Hippocampus")
    _write_study(phantoms, folder / "PGBM-002")
    shutil.rmtree(phantoms)


def _write_hippocampi(phantoms: Path, folder: Path) -> None:
    """MR-like blocks of 1 mm around the phantoms' spleens, whose two ends get the two labels."""
    sources = sorted((phantoms / "imagesTr").glob("*.nii.gz"))
    rng = np.random.default_rng(4)
    for name, source in zip(CASES, itertools.cycle(sources), strict=False):
        image, label = (
            np.asarray(nibabel.load(path).dataobj)
            for path in (source, phantoms / "labelsTr" / source.name)
        )
        margin = rng.uniform(0.15, 0.4)
        places = np.argwhere(label)
        low, high = places.min(axis=0), places.max(axis=0) + 1
        wide = np.ceil(margin * (high - low)).astype(int)
        block = tuple(map(slice, np.maximum(low - wide, 0), high + wide))
        shape = FIRST if name == CASES[0] else rng.integers((34, 46, 30), (40, 53, 42))
        values = _resampled(image[block].astype(np.float32), shape, order=1)
        painted = _resampled(label[block], shape, order=0)
        middle = np.argwhere(painted)[:, 1].mean()
        front = np.arange(shape[1])[:, None] > middle
        painted = np.where(painted > 0, np.where(front, 1, 2), 0).astype(np.uint8)
        scale = rng.uniform(0.5, 2)
        affine = nibabel.affines.from_matvec(np.eye(3), [1, 1, 1])
        for part, array in (("imagesTr", (values + 1024) * scale), ("labelsTr", painted)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            nifti = nibabel.Nifti1Image(array, affine)
            nifti.header.set_xyzt_units("mm")
            nibabel.save(nifti, folder / part / f"{name}.nii.gz")
    files = [f"{name}.nii.gz" for name in CASES]
    description = {
        "name": "Hippocampus",
        "description": "Synthetic, in the place of the Decathlon's hippocampi",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "numTraining": len(CASES),
        "numTest": 0,
        "training": [{"image": f"./imagesTr/{n}", "label": f"./labelsTr/{n}"} for n in files],
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def _write_study(phantoms: Path, folder: Path) -> None:
    """Two MR-like series of one study, on one oblique grid of 22 slices."""
    source = phantoms / "imagesTr" / "phantom_003.nii.gz"
    image = np.asarray(nibabel.load(source).dataobj).astype(np.float32)
    first = np.clip(_resampled(image, (512, 512, 22), order=1) + 1024, 0, None)
    first *= np.linspace(0.2, 1.8, 22)  # no slice is like its neighbour
    channels = np.stack([first, first.max() - first], axis=3).astype(np.int16)
    turn = np.deg2rad(15)
    axes = np.array(  # of patient coordinates in RAS, like a head's oblique slices
        [[-1, 0, 0], [0, -np.cos(turn), np.sin(turn)], [0, np.sin(turn), np.cos(turn)]]
    )
    affine = nibabel.affines.from_matvec(axes * (0.43, 0.43, 6.5), [107, 152, -50])
    dataset = folder.with_name("study")
    (dataset / "imagesTr").mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(channels, affine), dataset / "imagesTr" / "PGBM-002.nii.gz")
    names = dict(enumerate(SERIES))
    (dataset / "dataset.json").write_text(json.dumps({"name": "MR", "modality": names}))
    with contextlib.redirect_stdout(io.StringIO()):
        nifti_to_dicom(DataRoot.at(folder.parent), "study", "DICOM", modality="MR")
    folder.mkdir()
    for number, (channel, name) in enumerate(SERIES.items(), start=1):
        (series,) = (folder.parent / "DICOM" / "PGBM-002").glob(f"{number}_{channel}*")
        (folder / name).mkdir()
        for position, path in enumerate(sorted(series.iterdir())):
            path.rename(folder / name / f"{position:06d}.dcm")
    for name in ("study", "DICOM", ".medseg"):
        shutil.rmtree(folder.parent / name, ignore_errors=True)


def _resampled(array: NDArray[np.generic], shape: object, order: int) -> NDArray[np.generic]:
    factors = np.asarray(shape) / array.shape
    return np.asarray(zoom(array, factors, order=order, grid_mode=True, mode="nearest"))
