"""The rule that decides for bfloat16, and what it goes by."""

from __future__ import annotations

import pytest
import torch

from medseg.nnunet.devices import choose_precision
from medseg.nnunet.precision import _rounded, bfloat16_dice
from medseg.project import UserError
from tests.unit.nnunet.test_prediction import REGIONS, Setting, balanced_network

UNITS = {"avx2", "amx_bf16"}


@pytest.mark.parametrize(
    ("precision", "device", "flags", "dice", "expected"),
    [
        ("auto", "cpu", UNITS, 0.999, "bfloat16"),
        ("auto", "cpu", UNITS, 0.9989, "float32"),
        ("auto", "cpu", UNITS, None, "float32"),
        ("auto", "cpu", {"avx2"}, 1.0, "float32"),
        ("bfloat16", "cpu", UNITS, 0.5, "bfloat16"),
        ("bfloat16", "cpu", {"avx2"}, 1.0, "float32"),
        ("float32", "cpu", UNITS, 1.0, "float32"),
        ("auto", "cuda", UNITS, 1.0, "float16"),
        ("bfloat16", "cuda", set(), None, "bfloat16"),
        ("float32", "cuda", set(), None, "float32"),
    ],
)
def test_one_rule(
    precision: str, device: str, flags: set[str], dice: float | None, expected: str
) -> None:
    asked = []
    chosen = choose_precision(precision, device, lambda: asked.append(1) or dice, flags)
    assert chosen == expected
    # it is measured only where it decides
    assert bool(asked) is (precision == "auto" and device == "cpu" and flags is UNITS)


def test_a_choice_that_does_not_exist() -> None:
    with pytest.raises(UserError, match="precision: 'half' is unknown: use auto, float32 or bf"):
        choose_precision("half", "cpu", lambda: 1.0)


@pytest.mark.parametrize("setting", [Setting(), Setting(patch=(16, 24), spacing=(1, 1))])
def test_rounding_is_what_autocast_computes(setting: Setting) -> None:
    network = balanced_network(setting).eval()
    patch = torch.randn(1, 1, *setting.patch, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        exact, worked_out = network(patch), _rounded(network)(patch)
        with torch.autocast("cpu", torch.bfloat16):
            computed = network(patch).float()
    assert (exact - computed).abs().mean() > 0.005
    assert (worked_out - computed).abs().mean() < 0.05 * (exact - computed).abs().mean()


@pytest.mark.parametrize("dataset", [None, REGIONS])
def test_dice_is_that_of_the_label_that_differs_most(dataset: dict | None) -> None:
    setting = Setting(dataset) if dataset else Setting()
    network = balanced_network(setting).eval()
    patches = torch.randn(3, 1, *setting.patch, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        first, second = network(patches), _rounded(network)(patches)
    if dataset:
        pairs = [(first[:, head] > 0, second[:, head] > 0) for head in range(2)]
    else:
        pairs = [(first.argmax(1) == value, second.argmax(1) == value) for value in (1, 2)]
    expected = min(2 * int((a & b).sum()) / int(a.sum() + b.sum()) for a, b in pairs)
    dice = bfloat16_dice(network, patches, regions=dataset is not None)
    assert 0.9 < dice < 1
    assert dice == pytest.approx(expected, abs=1e-4)


def test_where_nothing_is_found_nothing_differs() -> None:
    network = torch.nn.Conv3d(1, 3, 1)
    with torch.no_grad():
        network.bias += torch.tensor([100.0, 0.0, 0.0])
    assert bfloat16_dice(network, torch.zeros(1, 1, 4, 4, 4), regions=False) == 1
