"""Which arithmetic the CPU gets, and that bfloat16 learns the same."""

from __future__ import annotations

import copy

import pytest
import torch

from medseg.nnunet.devices import (
    choose_bfloat16,
    choose_device,
    cpu_flags,
    use_bfloat16,
)
from medseg.project import UserError
from tests.hippocampus import write_config


@pytest.mark.parametrize(
    ("precision", "device", "flags", "expected"),
    [
        ("auto", "cpu", {"avx2", "amx_bf16"}, True),
        ("auto", "cpu", {"avx2", "avx512_bf16"}, True),
        ("auto", "cpu", {"asimd", "bf16"}, True),
        ("bfloat16", "cpu", {"amx_bf16"}, True),
        ("auto", "cpu", {"avx2", "avx512f"}, False),
        ("bfloat16", "cpu", {"avx2"}, False),
        ("float32", "cpu", {"amx_bf16"}, False),
        ("auto", "cuda", {"amx_bf16"}, False),
    ],
)
def test_choice(precision: str, device: str, flags: set[str], expected: bool) -> None:
    assert choose_bfloat16(precision, device, flags) is expected


def test_flags_of_this_machine() -> None:
    assert cpu_flags()


def test_cuda_that_is_not_there(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(UserError, match="device: cuda is asked for"):
        choose_device("cuda")


def test_a_choice_that_does_not_exist() -> None:
    with pytest.raises(UserError, match="device: 'gpu' is unknown: use auto, cpu or cuda"):
        choose_device("gpu")


@pytest.mark.parametrize("unit", ["amx_bf16", "avx512_bf16"])
def test_a_bfloat16_step_has_the_loss_of_the_float32_step(preprocessed_root, unit: str) -> None:
    from medseg.nnunet import environment
    from medseg.nnunet.trainer import make_trainer, seed_all

    config = write_config(preprocessed_root, configuration="tiny", precision="float32")
    with environment(config, nnUNet_n_proc_DA="0"):
        trainer = make_trainer(config)
        trainer.initialize()
        loader, _ = trainer.get_dataloaders()
        batch = next(loader)
        start = copy.deepcopy(trainer.network.state_dict())
        losses = {}
        for bfloat16 in (False, True):
            trainer.network.load_state_dict(start)
            seed_all(0)
            if bfloat16:
                use_bfloat16(trainer.network, {unit})
            losses[bfloat16] = float(trainer.train_step(copy.deepcopy(batch))["loss"])
        with torch.no_grad():
            output = trainer.network(batch["data"])
    assert output[0].dtype == torch.float32
    weights = [weight for weight in trainer.network.parameters() if weight.dim() == 5]
    last = all(weight.is_contiguous(memory_format=torch.channels_last_3d) for weight in weights)
    assert last is (unit == "amx_bf16")
    assert all(weight.dtype == torch.float32 for weight in trainer.network.parameters())
    assert losses[True] == pytest.approx(losses[False], abs=0.02)
    assert losses[True] != losses[False]  # it was computed in another arithmetic
