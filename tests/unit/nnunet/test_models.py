"""read_model: four kinds of files, one network; and files that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from medseg.nnunet.models import plain_names, read_model, read_weights
from medseg.project import UserError

PLANS: dict[str, Any] = {"plans_name": "nnUNetPlans", "configurations": {"3d_fullres": {}}}
DATASET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "Spleen": 1}}


class Opaque:
    """A class that nobody knows."""


def network() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.Conv3d(2, 2, 1))


def write(folder: Path, kind: str) -> Path:
    """A model as each program writes it."""
    net = network()
    fold = folder / "fold_0"
    fold.mkdir()
    initial = {"plans": PLANS, "dataset_json": DATASET, "configuration": "3d_fullres", "fold": 0}
    if kind == "torchscript":
        header = {"configuration": "3d_fullres"}
        inference = {"plans": PLANS, "dataset_json": DATASET, "nnunet_config_ckpt": header}
        traced = torch.jit.trace(net, torch.zeros(1, 1, 4, 4, 4))  # type: ignore[no-untyped-call]
        extra = {"inference.json": json.dumps(inference)}
        torch.jit.save(traced, fold / "model.ts", _extra_files=extra)  # type: ignore[no-untyped-call]
        return fold / "model.ts"
    if kind == "nnunet":
        content: dict[str, Any] = {"network_weights": net.state_dict(), "init_args": initial}
        torch.save(content, fold / "checkpoint_final.pth")
        return fold / "checkpoint_final.pth"
    (folder / "plans.json").write_text(json.dumps(PLANS))
    (folder / "dataset.json").write_text(json.dumps(DATASET))
    torch.save({"init_args": {"configuration": "3d_fullres"}}, folder / "nnunet_checkpoint.pth")
    if kind == "bundle":
        torch.save({"network_weights": net.state_dict()}, fold / "model.pt")
        return fold / "model.pt"
    state = {f"network._orig_mod.module.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3, "loops": {}}, fold / "last.ckpt")
    return fold / "last.ckpt"


@pytest.mark.parametrize("kind", ["torchscript", "nnunet", "bundle", "lightning"])
def test_every_kind_gives_the_same_model(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind)
    assert read_weights(path).kind == kind
    model = read_model(path)
    expected = network().state_dict()
    assert model.weights.keys() == expected.keys()
    assert all(torch.equal(model.weights[name], expected[name]) for name in expected)
    assert (model.plans, model.dataset) == (PLANS, DATASET)
    assert model.configuration == "3d_fullres"

    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"truncated.*Copy it again"):
        read_model(path)


def test_wrappers_in_any_order() -> None:
    value = torch.zeros(1)
    for prefix in ("", "network.", "module._orig_mod.", "model.network.module.", "_orig_mod."):
        found = plain_names({f"{prefix}encoder.a": value, f"{prefix}decoder.b": value})
        assert set(found) == {"encoder.a", "decoder.b"}


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.ts does not exist: name a model.ts"):
        read_model(tmp_path / "none.ts")
    path = tmp_path / "x.pt"
    torch.save({"network_weights": {}, "hyper_parameters": Opaque()}, path)
    with pytest.raises(UserError, match=r"pickled objects of [\w.]+\.Opaque, which are not read"):
        read_model(path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="is no model: it holds neither"):
        read_model(path)
    torch.save({"network_weights": network().state_dict()}, path)
    with pytest.raises(UserError, match=r"nothing says what network .* put its plans.json"):
        read_model(path)
    bare = torch.jit.trace(network(), torch.zeros(1, 1, 4, 4, 4))  # type: ignore[no-untyped-call]
    torch.jit.save(bare, tmp_path / "bare.ts")  # type: ignore[no-untyped-call]
    with pytest.raises(UserError, match=r"carries no inference.json"):
        read_model(tmp_path / "bare.ts")
