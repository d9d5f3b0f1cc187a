"""CT-like phantoms of the upper abdomen, made from formulas alone.

Anatomy is described once, in patient coordinates (LPS, mm: +x is the patient's left, +y
posterior, +z superior), as signed distances; a case is that anatomy, varied, and sampled on a voxel
grid of its own. The torso is child-sized, so that a coarse grid still holds every organ in many
voxels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.imaging import ENDING, LPS_TO_RAS, write_nifti
from medseg.project import atomic_folder, progress, write_json

SPLEEN = 1
"""The value of the spleen in the label map."""

Array = NDArray[np.float32]
Distance = Callable[[Array, Array, Array], Array]
"""Signed distance in mm to a surface, negative inside, of points x, y, z."""

# Field of view in mm, before a case's own scale: the torso and a finger's width of air.
_FIELD_OF_VIEW = (172.0, 138.0, 102.0)
_FINEST, _COARSEST = 0.8, 5.0


@dataclass(frozen=True)
class _Structure:
    """Something to paint over what was painted before."""

    hounsfield: float
    distance: Distance


def generate_phantoms(
    folder: Path, *, training_cases: int = 12, test_cases: int = 3, seed: int = 20
) -> None:
    """Writes a synthetic dataset in the layout of the Medical Segmentation Decathlon.

    Images are int16 in HU, label maps uint8 with ``spleen`` = 1. In-plane and slice spacing both
    run from 0.8 to 5 mm over the cases (fine in the one direction where coarse in the other, as
    scanners do), every third case is oblique by up to 15 degrees, and shapes, positions, HU and
    noise are each case's own. The same arguments give the same bytes.

    Args:
        folder: The dataset's folder; what it held before is replaced.
        training_cases: Cases in ``imagesTr`` and ``labelsTr``.
        test_cases: Cases in ``imagesTs`` and ``labelsTs`` (the Decathlon itself has no labels
            there).
        seed: Decides all of the content.
    """
    total = training_cases + test_cases
    names = [f"phantom_{number:03d}" for number in range(1, total + 1)]
    with atomic_folder(folder) as temporary:
        for part, count in (("Tr", training_cases), ("Ts", test_cases)):
            (temporary / f"images{part}").mkdir()
            (temporary / f"labels{part}").mkdir()
            fineness = np.random.default_rng([seed, count]).permutation(count)
            for index in range(count):
                number = index + (training_cases if part == "Ts" else 0)
                name = names[number]
                _write_case(
                    temporary / f"images{part}" / f"{name}{ENDING}",
                    temporary / f"labels{part}" / f"{name}{ENDING}",
                    np.random.default_rng([seed, total, number]),
                    # Training cases reach both ends of the range, test cases lie inside it.
                    fineness=(fineness[index] + 0.5) / count
                    if part == "Ts"
                    else fineness[index] / max(count - 1, 1),
                    oblique=number % 3 == 2,
                )
                progress(f"phantom {name}", number + 1, total)
        write_json(
            temporary / "dataset.json",
            {
                "name": "SpleenPhantom",
                "description": "Synthetic CT-like phantoms of the upper abdomen with the spleen "
                "labelled. Made from formulas by medseg.demo: no patient was imaged.",
                "reference": "kfp-medseg, medseg.demo.generate_phantoms",
                "licence": "CC0-1.0 (public domain): synthetic, free of any patient's data",
                "release": f"seed {seed}",
                "tensorImageSize": "3D",
                "modality": {"0": "CT"},
                "labels": {"0": "background", str(SPLEEN): "spleen"},
                "numTraining": training_cases,
                "numTest": test_cases,
                "training": [
                    {"image": f"./imagesTr/{n}{ENDING}", "label": f"./labelsTr/{n}{ENDING}"}
                    for n in names[:training_cases]
                ],
                "test": [f"./imagesTs/{n}{ENDING}" for n in names[training_cases:]],
            },
        )
        (temporary / "README.md").write_text(
            "# SpleenPhantom\n\nThese images are synthetic: CT-like phantoms computed from "
            "formulas.\nThey show no patient and say nothing about how well a model does on real "
            "scans.\n",
            encoding="utf-8",
        )


def _write_case(
    image_path: Path,
    label_path: Path,
    rng: np.random.Generator,
    *,
    fineness: float,
    oblique: bool,
) -> None:
    affine, shape = _grid(rng, fineness, oblique)
    structures = _anatomy(rng)
    image, spleen = _render(structures, affine, shape)
    image += _noise(rng, shape)
    for path, voxels in (
        (image_path, np.clip(np.rint(image), -1024, 3071).astype(np.int16)),
        (label_path, (spleen > 0.5).astype(np.uint8) * np.uint8(SPLEEN)),
    ):
        write_nifti(voxels, LPS_TO_RAS @ affine, path)


def _grid(
    rng: np.random.Generator, fineness: float, oblique: bool
) -> tuple[NDArray[np.float64], tuple[int, int, int]]:
    """The voxel grid of a case.

    Args:
        rng: The case's random numbers.
        fineness: 0 (in-plane 5 mm, slices 0.8 mm) to 1 (in-plane 0.8 mm, slices 5 mm).
        oblique: Whether the axes are turned against the patient's.

    Returns:
        Affine from voxel indices to LPS in mm, and the shape (columns, rows, slices).
    """
    span = _COARSEST - _FINEST
    in_plane = round(_COARSEST - span * fineness**3, 2)
    between_slices = round(_COARSEST - span * (1 - fineness) ** 3, 2)
    spacing = np.array([in_plane, in_plane, between_slices])
    size = np.array(_FIELD_OF_VIEW) * rng.uniform(0.96, 1.04, 3)
    shape = np.maximum(np.rint(size / spacing), 8).astype(int)
    turn = np.eye(3)
    if oblique:
        # About x as a tilted gantry does, and a little about z as a patient who lies askew.
        tilt, askew = np.deg2rad(rng.uniform(6, 15, 2) * rng.choice([-1, 1], 2) * [1, 0.5])
        turn = np.array(
            [[np.cos(askew), -np.sin(askew), 0], [np.sin(askew), np.cos(askew), 0], [0, 0, 1]]
        ) @ np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    # Where the table stands decides the origin; the patient is never quite in the middle.
    centre = rng.uniform(-4, 4, 3)
    affine[:3, 3] = centre - affine[:3, :3] @ ((shape - 1) / 2)
    columns, rows, slices = (int(n) for n in shape)
    return affine, (columns, rows, slices)


def _anatomy(rng: np.random.Generator) -> list[_Structure]:
    """One patient: structures in the order in which they are painted, the spleen last."""

    def near(value: float, spread: float) -> float:
        return float(value + spread * rng.uniform(-1, 1))

    def about(x: float, y: float, z: float, spread: float = 4) -> tuple[float, float, float]:
        return near(x, spread), near(y, spread), near(z, spread)

    def radii(x: float, y: float, z: float, spread: float = 0.1) -> tuple[float, float, float]:
        return x * near(1, spread), y * near(1, spread), z * near(1, spread)

    a, b = near(79, 3), near(63, 2)
    fat, muscle = near(9, 3), near(7, 1)
    body = _cylinder(a, b)
    wall = _cylinder(a - fat, b - fat)
    cavity = _cylinder(a - fat - muscle, b - fat - muscle)
    stomach = _ellipsoid(about(22, -27, 6), radii(19, 16, 26))
    gas_level = near(-30, 3)
    liver = _smooth_union(
        _ellipsoid(about(-36, -2, 12), radii(44, 46, 46)),
        _ellipsoid(about(-2, -26, 24), radii(38, 18, 22)),
        10,
    )
    centre, size = about(42, 15, 2, 5), radii(29, 35, 42, 0.12)
    hollow = (centre[0] - size[0] * near(1.0, 0.1), centre[1] - 14, near(centre[2], 8))
    spleen = _inside(
        _without(_ellipsoid(centre, size), _ellipsoid(hollow, (16, 16, 26)), 0),
        cavity,
        2,
    )
    spine = (near(0, 2), near(40, 2))
    bone = near(230, 30)
    return [
        _Structure(near(40, 10), body),  # skin; the fat below leaves a rim of it
        _Structure(near(-100, 8), _cylinder(a - 2, b - 2)),
        _Structure(near(55, 8), wall),
        _Structure(near(-85, 10), cavity),
        _Structure(
            near(350, 50),
            _ribs(_cylinder(a - fat - muscle / 2, b - fat - muscle / 2), near(20, 2), near(0, 10)),
        ),
        _Structure(near(95, 8), _inside(_without(liver, stomach, 2), cavity, 2)),
        _Structure(near(20, 10), _inside(_without(stomach, spleen, 2), cavity, 2)),
        _Structure(-900, lambda x, y, z: np.maximum(stomach(x, y, z) + 3, y - gas_level)),
        _Structure(
            near(170, 15), _without(_ellipsoid(about(30, 38, -36), radii(13, 13, 24)), spleen, 2)
        ),
        _Structure(near(170, 15), _ellipsoid(about(-32, 36, -36), radii(13, 13, 24))),
        _Structure(near(160, 15), _tube(near(6, 2), 16, near(8, 1))),
        _Structure(bone + 250, _tube(*spine, near(15, 1))),
        _Structure(bone, _tube(*spine, 12)),
        _Structure(bone + 150, _tube(spine[0], spine[1] + 22, 10)),
        _Structure(30, _tube(spine[0], spine[1] + 20, 6)),  # spinal canal
        _Structure(near(140, 10), spleen),
    ]


def _render(
    structures: list[_Structure], affine: NDArray[np.float64], shape: tuple[int, int, int]
) -> tuple[Array, Array]:
    """The image in HU and the spleen's share of every voxel, each the mean of 4 sub-voxels."""
    image = np.zeros(shape, np.float32)
    spleen = np.zeros(shape, np.float32)
    # The corners of a tetrahedron: every axis is sampled at both of its quarters.
    offsets = 0.25 * np.array([(-1, -1, -1), (1, 1, -1), (1, -1, 1), (-1, 1, 1)])
    for offset in offsets:
        i, j, k = (
            (np.arange(n, dtype=np.float32) + o).astype(np.float32)
            for n, o in zip(shape, offset, strict=True)
        )
        x, y, z = (
            (row[0] * i[:, None, None] + row[1] * j[:, None] + row[2] * k + row[3])
            for row in affine[:3].astype(np.float32)
        )
        values = np.full(shape, -1000, np.float32)
        inside: Array = np.zeros(shape, np.float32)
        for structure in structures:
            # The scanner's point spread: an edge is 1.5 mm wide.
            inside = np.clip(0.5 - structure.distance(x, y, z) / 1.5, 0, 1)
            values += inside * (structure.hounsfield - values)
        image += values / len(offsets)
        spleen += inside / len(offsets)
    return image, spleen


def _noise(rng: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """Noise of 10 to 20 HU, correlated between neighbours as reconstruction leaves it."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(rng.standard_normal(shape, np.float32), 0.5)
    return np.asarray(noise / noise.std() * rng.uniform(10, 20), np.float32)


# --- signed distances ---


def _ellipsoid(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Distance:
    """An ellipsoid; exact on the surface and to first order near it."""

    def distance(x: Array, y: Array, z: Array) -> Array:
        u, v, w = ((p - c) / r for p, c, r in zip((x, y, z), centre, radii, strict=True))
        length = np.sqrt(u * u + v * v + w * w)
        slope = np.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2 + (w / radii[2]) ** 2)
        result: Array = length * (length - 1) / np.maximum(slope, 1e-6)
        return result

    return distance


def _cylinder(a: float, b: float) -> Distance:
    """An endless elliptic cylinder along z, with half axes ``a`` (x) and ``b`` (y)."""

    def distance(x: Array, y: Array, z: Array) -> Array:
        u, v = x / a, y / b
        length = np.sqrt(u * u + v * v)
        slope = np.sqrt((u / a) ** 2 + (v / b) ** 2)
        return np.broadcast_to(length * (length - 1) / np.maximum(slope, 1e-6), z.shape)

    return distance


def _tube(x0: float, y0: float, radius: float) -> Distance:
    """An endless circular cylinder along z."""
    return lambda x, y, z: np.broadcast_to(np.hypot(x - x0, y - y0) - radius, z.shape)


def _ribs(wall: Distance, gap: float, start: float) -> Distance:
    """Slanting ribs of 7 by 5 mm, ``gap`` mm apart, along the surface ``wall``."""

    def distance(x: Array, y: Array, z: Array) -> Array:
        along = np.mod(z + 0.35 * y - start, gap) - gap / 2
        return np.maximum(np.abs(along) - 3.5, np.abs(wall(x, y, z)) - 2.5)

    return distance


def _smooth_union(first: Distance, second: Distance, width: float) -> Distance:
    """Both, with a fillet of ``width`` mm between them."""

    def distance(x: Array, y: Array, z: Array) -> Array:
        d, e = first(x, y, z), second(x, y, z)
        blend = np.maximum(width - np.abs(d - e), 0)
        result: Array = np.minimum(d, e) - blend * blend / (4 * width)
        return result

    return distance


def _without(what: Distance, other: Distance, margin: float) -> Distance:
    """``what``, kept ``margin`` mm away from ``other``."""
    return lambda x, y, z: np.maximum(what(x, y, z), margin - other(x, y, z))


def _inside(what: Distance, other: Distance, margin: float) -> Distance:
    """``what``, kept ``margin`` mm inside ``other``."""
    return lambda x, y, z: np.maximum(what(x, y, z), other(x, y, z) + margin)
