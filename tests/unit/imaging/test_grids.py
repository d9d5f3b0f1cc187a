"""When two volumes have one grid, resampling where they have not, and the order of axes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.eulerangles import euler2mat
from pydicom import Dataset

from medseg.imaging import (
    LPS_TO_RAS,
    Volume,
    check_rectangular,
    check_same_grid,
    from_zyx,
    resampled_onto,
    to_zyx,
)
from medseg.project import UserError


def volume(
    name: str = "a",
    shape: tuple[int, ...] = (40, 50, 60),
    spacing: tuple[float, float, float] = (1.0, 1.0, 2.0),
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    turned: float = 0.0,
    frame: str = "",
) -> Volume:
    affine = np.eye(4)
    affine[:3, :3] = euler2mat(z=turned) * spacing
    affine[:3, 3] = origin
    instances = ()
    if frame:
        header = Dataset()
        header.FrameOfReferenceUID = frame
        instances = (header,)
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return Volume(array, affine, name, instances)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"shape": (40, 50, 59)}, "b has 40x50x59 voxels, but a has 40x50x60"),
        (
            {"origin": (0, 0, 3)},
            r"b lies 3 mm off a: .*different geometry \(origin: 0, 0, 0 and 0, 0, 3",
        ),
        ({"origin": (0.06, 0, 0)}, "origin: "),
        ({"spacing": (1, 1, 2.1)}, r"5.9 mm off a.*spacing: 1, 1, 2 and 1, 1, 2.1 mm\)"),
        ({"spacing": (1.002, 1, 2)}, "spacing: "),  # 0.08 mm at the far end
        ({"turned": 0.01}, "direction: "),
        ({"turned": 0.01, "origin": (1, 2, 3)}, "origin: .*; direction: "),
    ],
)
def test_another_grid(other: dict[str, object], what: str) -> None:
    with pytest.raises(UserError, match=f"{what}.*resample the one onto the other's grid first"):
        check_same_grid(volume(), volume("b", **other))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "other",
    [{}, {"origin": (0.04, 0, 0)}, {"spacing": (1.001, 1, 2)}, {"turned": 5e-4}],
)
def test_rounded_headers_are_the_same_grid(other: dict[str, object]) -> None:
    check_same_grid(volume(), volume("b", **other))  # type: ignore[arg-type]


def test_the_tolerance_is_a_share_of_a_voxel() -> None:
    """What is nothing for a coarse grid is much for a fine one."""
    shift = (0.02, 0.0, 0.0)
    check_same_grid(volume(), volume(origin=shift))
    fine = volume(spacing=(0.1, 0.1, 0.1))
    with pytest.raises(UserError, match=r"0\.02 mm off"):
        check_same_grid(fine, volume(spacing=(0.1, 0.1, 0.1), origin=shift))


def test_a_grid_without_extent_is_another_grid() -> None:
    flat = volume("b", spacing=(1, 1, 0))
    with pytest.raises(UserError, match=r"b lies 118 mm off a.*spacing: "):
        check_same_grid(volume(), flat)
    with pytest.raises(UserError, match="b has no usable affine"):
        check_rectangular(flat)


def test_sheared() -> None:
    check_rectangular(volume(turned=0.3))
    sheared = volume()
    sheared.affine[0, 1] = 0.01
    with pytest.raises(UserError, match="a is sheared"):
        check_rectangular(sheared)


def test_resampling() -> None:
    reference = volume("reference", frame="1.2")
    same = volume("same", origin=(0.01, 0, 0))
    assert resampled_onto(same, reference) is same
    moved = resampled_onto(volume("moved", origin=(-0.5, 0, 0), frame="1.2"), reference)
    assert moved.name == "moved" and moved.shape == reference.shape and moved.instances
    assert np.array_equal(moved.affine, reference.affine) and moved.array.dtype == np.float32
    values = volume().array
    expected = (values[:-1] + values[1:]) / 2
    np.testing.assert_allclose(moved.array[:-1], expected, atol=1e-6)
    np.testing.assert_allclose(moved.array[-1], values[-1], atol=1e-6)  # the border's values
    for other, message in (
        (volume("b", origin=(1, 0, 0), frame="1.3"), "b and reference have no common frame"),
        (volume("b", origin=(1, 0, 0)), "b and reference have no common frame"),
        (volume("b", origin=(500, 0, 0), frame="1.2"), "b and reference do not overlap"),
    ):
        with pytest.raises(UserError, match=message):
            resampled_onto(other, reference)


def test_files_without_a_frame_are_placed_by_their_affines() -> None:
    moved = resampled_onto(volume(shape=(40, 50, 30), spacing=(1, 1, 4)), volume())
    assert moved.shape == (40, 50, 60)
    np.testing.assert_allclose(moved.array[..., ::2], volume(shape=(40, 50, 30)).array, atol=1e-6)


def test_order_of_axes() -> None:
    one, two = volume("one", (2, 3, 4)), volume("two", (2, 3, 4, 2))
    stack = to_zyx([one, two])
    assert stack.shape == (3, 4, 3, 2)
    assert np.array_equal(from_zyx(stack[0]), one.array)
    assert np.array_equal(from_zyx(stack[2]), two.array[..., 1])
    assert np.shares_memory(to_zyx([two]), two.array)
    with pytest.raises(UserError, match="b has 2x3x5 voxels, but one has 2x3x4"):
        to_zyx([one, volume("b", (2, 3, 5))])


@settings(max_examples=60, deadline=None)
@given(
    axes=st.permutations(["LR", "PA", "IS"]),
    ends=st.tuples(*[st.integers(0, 1)] * 3),
    angle=st.floats(-0.3, 0.3),
)
def test_turned_voxels_stay_in_place(axes: list[str], ends: tuple[int, ...], angle: float) -> None:
    target = "".join(axis[end] for axis, end in zip(axes, ends, strict=True))
    before = volume(shape=(3, 4, 5), spacing=(1, 2, 3), origin=(5, 6, 7), turned=angle)
    before = Volume(before.array, LPS_TO_RAS @ before.affine, "lps")
    assert before.orientation == "LPS"
    after = before.turned(target)
    assert after.orientation == target

    def places(each: Volume) -> dict[float, list[float]]:
        return {
            float(each.array[index]): (each.affine @ [*index, 1]).round(6).tolist()
            for index in np.ndindex(each.shape)
        }

    assert places(after) == places(before)
    assert sorted(after.spacing) == pytest.approx([1, 2, 3])
