"""Headers, files and configs of any kind: a result that is right, or one sentence."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medseg.config import load_config
from medseg.dataset import Case
from medseg.dicom import read_image
from medseg.imaging import Volume, read_nifti, same_grid
from medseg.nnunet.raw import prepare_case
from medseg.project import DataRoot, UserError

SHAPE = (5, 4, 3)

amounts = pytest.mark.parametrize(
    "amount", [pytest.param(50, id="short"), pytest.param(400, id="long", marks=pytest.mark.slow)]
)


def fuzz(amount: int, test: Callable[..., None], *drawn: st.SearchStrategy[Any]) -> None:
    """Calls a test with as many drawn examples, the same ones in every run."""
    bounded = settings(
        max_examples=amount,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    bounded(given(*drawn)(test))()


# --- headers ---

small = st.floats(0.3, 6)
numbers = st.floats(-300, 300)
codes = st.sampled_from([0, 0, 1, 1, 2, 3, 4])


@st.composite
def headers(draw: st.DrawFn) -> nibabel.Nifti1Header:
    """A header: forms that agree or not, in any unit, flipped, sheared, anisotropic, negative."""
    spacing = np.array([draw(small) for _ in range(3)])
    unit = draw(st.sampled_from([0, 1, 2, 2, 3, 10]))
    stated = spacing * {1: 1e-3, 3: 1e3}.get(unit, 1)
    turn = Rotation.from_euler("xyz", [draw(st.sampled_from([0, 0.3, 90, 180, 37])) for _ in "xyz"])
    directions = (
        Rotation.from_euler("z", 0).as_matrix() if draw(st.booleans()) else turn.as_matrix()
    )
    flipped = draw(st.booleans())
    header = nibabel.Nifti1Header()
    header.set_data_shape(SHAPE)
    header.set_data_dtype(np.int16)
    header["xyzt_units"] = unit
    header["pixdim"][1:4] = stated * draw(st.sampled_from([[1, 1, 1]] * 9 + [[-1, 1, 1]]))
    header["pixdim"][0] = -1 if flipped else draw(st.sampled_from([1, 1, 0]))
    x, y, z, w = Rotation.from_matrix(directions).as_quat()
    header["quatern_b"], header["quatern_c"], header["quatern_d"] = np.array([x, y, z]) * (
        -1 if w < 0 else 1
    )
    header["qform_code"], header["sform_code"] = draw(codes), draw(codes)
    origin = np.array([draw(numbers) for _ in range(3)]) * {1: 1e-3, 3: 1e3}.get(unit, 1)
    for axis, value in zip("xyz", origin, strict=True):
        header[f"qoffset_{axis}"] = value
    factor = draw(st.sampled_from([1, 1, 1, 1.0005, 0.5, 3]))
    shear = draw(st.sampled_from([0, 0, 0, 0.00005, 0.0005, 0.3]))
    other = draw(st.sampled_from([np.eye(3), np.eye(3), np.diag([-1, 1, 1]), turn.as_matrix()]))
    rows = directions @ np.diag(stated) @ np.diag([1, 1, -1 if flipped else 1]) * factor
    rows = other @ rows
    rows[:, 1] += shear * rows[:, 0]
    for number, axis in enumerate("xyz"):
        header[f"srow_{axis}"] = [*rows[number], origin[number] + draw(st.sampled_from([0, 0, 9]))]
    header["magic"], header["vox_offset"] = b"n+1", 352
    return header


def write(header: nibabel.Nifti1Header, path: Path, array: np.ndarray) -> Path:
    content = header.binaryblock + bytes(4) + array.tobytes(order="F")
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


def placed(image: Path, label: Path, raw: Path) -> Path:
    """Takes a case into a raw dataset, as ``prepare_dataset`` does; returns its image there."""
    for part in ("imagesTr", "labelsTr"):
        (raw / part).mkdir(parents=True, exist_ok=True)
    target = raw / "imagesTr" / "c_0000.nii.gz"
    target.unlink(missing_ok=True)
    prepare_case(Case("c", (image,), label), raw, ["CT"], [0, 1], "inputs")
    return target


@amounts
def test_training_and_segmenting_have_one_grid(
    amount: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    values = np.arange(60, dtype=np.int16).reshape(SHAPE)
    read = 0

    def check(header: nibabel.Nifti1Header) -> None:
        nonlocal read
        image = write(header, tmp_path / "i.nii.gz", values)
        label = write(header, tmp_path / "l.nii.gz", values % 2)
        try:
            seen = read_image(image)
        except UserError as error:
            with pytest.raises(UserError):
                placed(image, label, tmp_path / "raw")
            assert str(image) in str(error)
            return
        read += 1
        stored = placed(image, label, tmp_path / "raw")
        assert same_grid(seen, read_nifti(stored))
        array, properties = SimpleITKIO().read_images([str(stored)])
        np.testing.assert_allclose(properties["spacing"], seen.spacing[::-1], rtol=1e-4)
        assert np.array_equal(array[0], values.transpose(2, 1, 0))
        itk = sitk.ReadImage(str(stored))
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(itk.GetDirection(), (3, 3)) * itk.GetSpacing()
        affine[:3, 3] = itk.GetOrigin()
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
        assert same_grid(seen, Volume(values, affine, "itk"))
        # what nnU-Net's own reader makes of the file as it came
        with suppress(RuntimeError):
            _, properties = SimpleITKIO().read_images([str(image)])
            np.testing.assert_allclose(properties["spacing"], seen.spacing[::-1], rtol=1e-4)

    fuzz(amount, check, headers())
    assert read > amount / 3  # most are ordinary
    assert "WARNING" not in capfd.readouterr().err


# --- files ---


def seeds(cases: Path) -> list[bytes]:
    """The smaller NIfTI files of the cases, unpacked where they can be."""
    contents = []
    for path in sorted(cases.rglob("*.nii*"))[:40]:
        content = path.read_bytes()
        with suppress(Exception):
            content = gzip.decompress(content)
        contents.append(content[:20000])
    return contents


changes = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=0, max_size=6)


@amounts
def test_any_file_is_a_volume_or_a_sentence(amount: int, cases: Path, tmp_path: Path) -> None:
    contents = seeds(cases)
    header = nibabel.Nifti1Header()
    header.set_data_shape(SHAPE)
    header["magic"], header["vox_offset"] = b"n+1", 352
    contents += [header.binaryblock + bytes(4) + bytes(240)] * 10

    def check(index: int, places: list[tuple[int, int]], end: int, zipped: bool) -> None:
        content = bytearray(contents[index])
        for place, value in places:
            content[min(place, len(content) - 1)] = value
        content = content[: len(content) - end]
        image = tmp_path / ("i.nii.gz" if zipped else "i.nii")
        image.write_bytes(gzip.compress(bytes(content), 1) if zipped else bytes(content))
        with suppress(UserError):
            volume = read_nifti(image)
            assert np.isfinite(volume.affine).all() and volume.array.dtype.kind in "iuf"
        with suppress(UserError):
            placed(image, image, tmp_path / "raw")

    lengths = st.sampled_from([0, 0, 0, 1, 50, 200])
    fuzz(amount, check, st.integers(0, len(contents) - 1), changes, lengths, st.booleans())


@amounts
def test_a_damaged_stream_gives_no_other_voxels(amount: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    array = random.integers(-1000, 1000, (30, 20, 10), dtype=np.int16)
    header = nibabel.Nifti1Header()
    header.set_data_shape(array.shape)
    header.set_data_dtype(np.int16)
    header["magic"], header["vox_offset"] = b"n+1", 352
    path = tmp_path / "i.nii.gz"
    whole = write(header, path, array).read_bytes()

    def check(start: int, patch: bytes, kind: str) -> None:
        start %= len(whole)
        content = {
            "altered": whole[:start] + patch + whole[start + len(patch) :],
            "cut off": whole[:start],
            "lost": whole[:start] + whole[start + len(patch) :],
            "longer": whole + patch,
        }[kind]
        assume(content != whole)
        path.write_bytes(content)
        with suppress(UserError):
            assert np.array_equal(read_nifti(path).array, array)

    kinds = st.sampled_from(["altered", "altered", "cut off", "lost", "longer"])
    fuzz(amount * 4, check, st.integers(0, 1 << 20), st.binary(min_size=1, max_size=40), kinds)


# --- configs ---

values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
        st.sampled_from(["../..", "/etc", "CT", "all", "2026-01-01", "", "9" * 400, "a/b"]),
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)  # fmt: skip


@amounts
def test_any_config_is_a_task_or_a_sentence(amount: int, cases: Path, root: DataRoot) -> None:
    configs = [yaml.safe_load(path.read_text()) for path in sorted(cases.rglob("*.yaml"))]
    configs += [{**each, "fold": 0, "modality_dict": {"image": "_i.nii", "label": "_l.nii"}}
                for each in configs]  # fmt: skip
    keys = [*sorted({key for each in configs for key in each}), "unknown"]
    path = root.path / "config.yaml"

    def check(index: int, new: dict[str, Any], places: list[tuple[int, int]], text: bool) -> None:
        content = bytearray(yaml.safe_dump({**configs[index], **new}).encode())
        for place, value in places if text else []:
            content[min(place, len(content) - 1)] = value
        path.write_bytes(bytes(content))
        with suppress(UserError):
            load_config("config.yaml", root)

    drawn = st.dictionaries(st.sampled_from(keys), values, max_size=2)
    fuzz(amount, check, st.integers(0, len(configs) - 1), drawn, changes, st.booleans())
