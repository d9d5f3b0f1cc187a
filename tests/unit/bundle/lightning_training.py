"""Trains a network with Lightning, as MAIA does it; run as a program, as Lightning takes long.

Arguments: the plans, ``dataset.json``, the configuration, and a folder; the checkpoints of a
network that is wrapped as ``plain``, ``compiled`` or ``ddp`` lie in its folder of that name.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.imports import RequirementCache

# Lightning's metrics import torchvision where it is installed, also one for another build of torch
_available = RequirementCache.__bool__
RequirementCache.__bool__ = lambda self: self.requirement != "torchvision" and _available(self)

import lightning  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans  # noqa: E402
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager  # noqa: E402


class Wrapper(torch.nn.Module):
    """Names the weights as ``torch.compile`` (``_orig_mod``) and DDP (``module``) do."""

    def __init__(self, name: str, network: torch.nn.Module) -> None:
        super().__init__()
        self.add_module(name, network)
        self.inner = [network]

    def forward(self, image: torch.Tensor) -> Any:
        return self.inner[0](image)


class Training(lightning.LightningModule):
    """A few steps towards nothing in particular."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: list[torch.Tensor], _index: int) -> torch.Tensor:
        loss: torch.Tensor = self.network(batch[0])[0].square().mean()
        self.log("Val_Dice", 1 / (1 + self.current_epoch))  # the first epoch is the best
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1e-2, momentum=0.99, nesterov=True)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)]


def main(plans: Path, dataset: Path, configuration: str, folder: Path, wrapped: str) -> None:
    """Writes ``epoch=0-Val_Dice=1.00.ckpt``, ``epoch=1.ckpt`` and ``last.ckpt``."""
    manager = PlansManager(json.loads(plans.read_text()))
    chosen = manager.get_configuration(configuration)
    torch.manual_seed(7)
    network = get_network_from_plans(
        chosen.network_arch_class_name,
        chosen.network_arch_init_kwargs,
        chosen.network_arch_init_kwargs_req_import,
        1,
        len(json.loads(dataset.read_text())["labels"]),
        deep_supervision=True,
    )
    if wrapped != "plain":
        network = Wrapper("_orig_mod", network)
    if wrapped == "ddp":
        network = Wrapper("module", network)
    patches = torch.rand(2, 1, *chosen.patch_size)
    keep = {"dirpath": folder, "every_n_epochs": 1, "save_on_train_epoch_end": True}
    best = ModelCheckpoint(
        filename="{epoch}-{Val_Dice:.2f}", monitor="Val_Dice", mode="max", **keep
    )
    newest = ModelCheckpoint(filename="{epoch}", save_last=True, **keep)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[best, newest],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(patches), batch_size=1)
    trainer.fit(Training(network), loader)


if __name__ == "__main__":
    plans_file, dataset_file, name, target = sys.argv[1:]
    for how in ("plain", "compiled", "ddp"):
        main(Path(plans_file), Path(dataset_file), name, Path(target) / how, how)
