"""Whether bfloat16 gives a network's results."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.nn.modules.conv import _ConvNd


def bfloat16_dice(network: torch.nn.Module, patches: torch.Tensor, *, regions: bool) -> float:
    """Dice between a network's label maps in float32 and in bfloat16.

    bfloat16 is worked out as autocast and the CPUs' units have it: inputs and outputs of all
    layers and the weights of convolutions are rounded, sums are not. So every machine measures the
    same, also one without such units, in the time of two passes.

    Args:
        network: As it was trained: no TorchScript.
        patches: Real input ``(batch, channels, *patch)``.
        regions: Whether heads are regions, each with a sigmoid of its own.

    Returns:
        The lowest Dice of a label or region over all patches; 1 where there is none in either.
    """
    rounded = _rounded(network)
    overlap, total = torch.zeros(2, 1, dtype=torch.float64)
    with torch.inference_mode():
        for patch in torch.split(patches, 1):
            first, second = (_masks(each(patch), regions) for each in (network, rounded))
            overlap = overlap + (first & second).sum(1)
            total = total + first.sum(1) + second.sum(1)
    there = total > 0
    return float((2 * overlap[there] / total[there]).min()) if there.any() else 1.0


def _masks(logits: torch.Tensor, regions: bool) -> torch.Tensor:
    """The voxels of each foreground label, or region: ``(label, voxel)``."""
    heads = logits[0].flatten(1)
    if regions:
        return heads > 0
    values = torch.arange(1, len(heads))
    return heads.argmax(0) == values[:, None]


def _rounded(network: torch.nn.Module) -> torch.nn.Module:
    """A copy that computes in float32 what bfloat16 units compute."""

    def low(value: Any) -> Any:
        return value.bfloat16().to(value.dtype) if isinstance(value, torch.Tensor) else value

    network = copy.deepcopy(network).eval()
    for module in network.modules():
        if isinstance(module, _ConvNd):
            for parameter in module.parameters(recurse=False):
                parameter.data = low(parameter.data)
        if not list(module.children()):
            module.register_forward_pre_hook(lambda _, inputs: tuple(map(low, inputs)))
            module.register_forward_hook(lambda *arguments: low(arguments[-1]))
    return network
