"""Where to compute, and in which arithmetic.

The worker processes of ``prepare_dataset`` import this module: torch is imported where it is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.config import TaskConfig
from medseg.project import UserError

if TYPE_CHECKING:
    import torch

BFLOAT16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
"""CPU flags of units that multiply bfloat16: two of x86, one of ARM."""


SAME = 0.999
"""Dice with float32 from which on bfloat16 counts as giving the same result."""


def choose_device(wanted: str) -> torch.device:
    """The device to compute on.

    Args:
        wanted: ``cpu``, ``cuda``, or ``auto``: CUDA where there is one.

    Raises:
        UserError: ``cuda`` without a CUDA device, or another word.
    """
    import torch

    if wanted not in ("auto", "cpu", "cuda"):
        raise UserError(f"device: {wanted!r} is unknown: use auto, cpu or cuda.")
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UserError(
            "device: cuda is asked for, but PyTorch finds no CUDA device: give the stage a GPU, or "
            "set device to auto or cpu."
        )
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


def choose_bfloat16(precision: str, device: str, flags: Iterable[str] | None = None) -> bool:
    """Whether to train in bfloat16 on the CPU.

    On a GPU never: nnU-Net has its own mixed precision there.

    Args:
        precision: The config's ``precision``.
        device: The device's type, ``cpu`` or ``cuda``.
        flags: The CPU's flags; by default those of this machine.

    Returns:
        True where the CPU has units for it and ``precision`` is not ``float32``. Without units
        bfloat16 is emulated and slower, so even ``precision: bfloat16`` falls back.
    """
    if device != "cpu" or precision == "float32":
        return False
    return not BFLOAT16_FLAGS.isdisjoint(cpu_flags() if flags is None else flags)


def choose_precision(
    precision: str,
    device: str,
    dice: Callable[[], float | None],
    flags: Iterable[str] | None = None,
) -> str:
    """The arithmetic that a trained network predicts in, wherever it does.

    Args:
        precision: ``float32``, ``bfloat16``, or ``auto``: on a GPU float16 autocast, as nnU-Net
            has it; on a CPU bfloat16 where it has units for it and the results are the same,
            else float32.
        device: The device's type, ``cpu`` or ``cuda``.
        dice: Gives the Dice between the network's results in float32 and in bfloat16, or None
            where nobody has measured it; called only where it decides.
        flags: The CPU's flags; by default those of this machine.

    Returns:
        ``float32``, ``bfloat16`` (on a CPU only where it has units for it) or ``float16``.

    Raises:
        UserError: There is no such choice.
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise UserError(f"precision: {precision!r} is unknown: use auto, float32 or bfloat16.")
    if device == "cuda":
        return "float16" if precision == "auto" else precision
    if not choose_bfloat16(precision, device, flags):
        return "float32"
    if precision == "auto" and (dice() or 0.0) < SAME:
        return "float32"
    return "bfloat16"


def cpu_flags() -> set[str]:
    """The flags of this machine's CPU, by the kernel's names; empty where it has no such list."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    listed = (line.partition(":") for line in lines)
    return {
        flag
        for key, _, value in listed
        if key.strip() in ("flags", "Features")
        for flag in value.split()
    }


def use_bfloat16(network: Any, flags: Iterable[str] | None = None) -> None:
    """Makes the forward pass (and so the backward pass) of ``network`` compute in bfloat16.

    Weights, gradients, optimizer and outputs stay float32, so the loss is computed as before.
    Channels-last memory makes a step a tenth shorter where oneDNN computes with AMX; elsewhere the
    normalizations between, which want their channels apart, make it up to a tenth longer.

    Args:
        network: A network of nnU-Net for 2D or 3D input, on the CPU.
        flags: The CPU's flags; by default those of this machine.
    """
    import torch

    memory_format = torch.contiguous_format
    if "amx_bf16" in (cpu_flags() if flags is None else flags):
        volumetric = any(parameter.dim() == 5 for parameter in network.parameters())
        memory_format = torch.channels_last_3d if volumetric else torch.channels_last
    network.to(memory_format=memory_format)
    forward: Callable[..., Any] = network.forward

    def mixed(image: torch.Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = forward(image.contiguous(memory_format=memory_format))
        if isinstance(output, list | tuple):  # deep supervision
            return [level.float() for level in output]
        return output.float()

    network.forward = mixed


def processes(config: TaskConfig, most: int = 8) -> int:
    """The number of worker processes: the config's, else the CPUs at hand, at most ``most``."""
    return config.num_processes or min(available_cpus(), most)


def available_cpus() -> int:
    """The CPUs that this process may use: its affinity, and its container's CPU limit."""
    cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cpus = min(cpus, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no control group of version 2, or "max": no limit
        pass
    return cpus


def augmentation_processes(config: TaskConfig) -> int:
    """nnU-Net's worker processes for augmentation.

    A GPU waits for them: nnU-Net's own number, at most the CPUs at hand. On a CPU they would take
    from the training what they give, and cost its reproducibility, so augmentation runs in
    between.
    """
    if choose_device(config.device).type == "cpu":
        return 0
    return config.num_processes or min(available_cpus(), 12)


@contextmanager
def threads(device: str) -> Iterator[None]:
    """All CPUs for work on the CPU, one thread beside a GPU, as nnU-Net's command has it.

    Args:
        device: The device's type, ``cpu`` or ``cuda``.
    """
    import torch

    before, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True  # all patches have one shape
    if device == "cuda":
        torch.set_num_threads(1)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cpus())
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.backends.cudnn.benchmark = benchmark
