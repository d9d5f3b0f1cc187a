"""The pod itself: image and user, shared memory, GPUs."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medseg import __version__
from medseg.check.rows import Row

UID = 1000
"""The user that the images are made for."""
SHARED_MEMORY = 2**30
"""bytes: with Docker's 64 MiB the workers of nnU-Net die of a bus error."""
GPU_MEMORY = 8 * 2**30
"""bytes: nnU-Net plans its networks for this much."""
SHM = "/dev/shm"  # noqa: S108 - where the kernel has it
"""Shared memory, and the name of its row."""
_DRIVER = Path("/proc/driver/nvidia/version")


def image_rows(compiled_by: str) -> Iterator[Row]:
    """The image's version beside that of the pipeline, and the user.

    Args:
        compiled_by: The version of this package that compiled the pipeline.
    """
    text = f"medseg {__version__}, Python {platform.python_version()}"
    if compiled_by and compiled_by != __version__:
        yield Row(
            "image",
            "warning",
            f"{text}, but the pipeline is of medseg {compiled_by}",
            "upload the pipelines of this version, or give the image of that one (-p image=…)",
        )
    else:
        yield Row("image", "ok", text)
    uid = os.getuid()
    if uid == UID:
        yield Row("user", "ok", f"uid {uid}")
    else:
        who = "root" if uid == 0 else f"uid {uid}"
        yield Row(
            "user",
            "warning",
            f"stages run as {who}, the images are made for uid {UID}",
            "Kubeflow Pipelines before 2.16 leaves out the securityContext: see that the image's "
            "own user holds; else set security_context in the site's settings",
        )


def shared_memory_rows() -> Iterator[Row]:
    """The size of ``/dev/shm``."""
    remedy = "set shared_memory in the site's settings, and compile anew"
    try:
        found = os.statvfs(SHM)
    except OSError as error:
        yield Row(SHM, "failed", f"it is not there ({error.strerror})", remedy)
        return
    size = found.f_blocks * found.f_frsize
    text = f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
    if not os.access(SHM, os.W_OK):
        yield Row(SHM, "failed", f"uid {os.getuid()} cannot write there", remedy)
    elif size < SHARED_MEMORY:
        yield Row(SHM, "failed", f"{text}, too little for nnU-Net's workers", remedy)
    else:
        yield Row(SHM, "ok", text)


def gpu_rows(asked: str) -> Iterator[Row]:
    """The GPUs: driver, PyTorch, memory, and whether both arithmetics of a training work.

    Args:
        asked: How many the stage asked for (``gpu_count``); empty where nobody could ask.
    """
    import torch

    driver = _driver()
    build = f"PyTorch {torch.__version__}"
    wanted = int(asked) if asked.isdigit() else 0
    if not torch.cuda.is_available():
        if driver or wanted:
            yield Row("GPU", "failed", *_no_gpu(driver, build, torch.version.cuda))
        else:
            yield Row(
                "GPU",
                "warning",
                f"none was asked for (gpu_count 0); {build}",
                "stages compute on the CPU: for a GPU give -p gpu_count=1, or set it in the "
                "site's settings",
            )
        return
    count = torch.cuda.device_count()
    if wanted and count != wanted:
        yield Row(
            "GPU: number",
            "warning",
            f"{wanted} asked for, {count} seen",
            "see that the device plugin shares GPUs as you expect, and gpu_type names the right "
            "resource",
        )
    for number in range(count):
        yield from _device(torch, number, driver, build)


def _no_gpu(driver: str, build: str, cuda: str | None) -> tuple[str, str]:
    if cuda is None:
        found = f"{build} is a build for the CPU"
        return found, "make the images with a CUDA build of torch (./build.sh images --torch …)"
    if not driver:
        return (
            f"no NVIDIA driver is seen in the pod; {build}",
            "see that the node has the driver and the device plugin, and that gpu_type is the "
            "resource that it offers (kubectl describe node)",
        )
    return (
        f"driver {driver}, but {build} (CUDA {cuda}) finds no device",
        f"update the node's driver to one for CUDA {cuda}, or make images with an older torch",
    )


def _device(torch: Any, number: int, driver: str, build: str) -> Iterator[Row]:
    cuda = torch.cuda
    found = cuda.get_device_properties(number)
    free, total = cuda.mem_get_info(number)
    name = "GPU" if number == 0 else f"GPU {number}"
    text = (
        f"{found.name}, {total / 2**30:.0f} GiB ({free / 2**30:.0f} free), "
        f"driver {driver or 'unknown'}, {build}"
    )
    try:
        # float16 is what nnU-Net trains and predicts in on a GPU
        for kind in ("float32", "float16", "bfloat16"):
            _multiply(torch, number, kind)
    except RuntimeError as error:
        yield Row(
            name,
            "failed",
            f"{text}: it does not compute ({str(error).splitlines()[0][:120]})",
            "see that this PyTorch was built for the GPU's architecture (compute capability "
            f"{found.major}.{found.minor}), and that no other program fills its memory",
        )
        return
    if free >= GPU_MEMORY:
        yield Row(name, "ok", text)
    elif total < GPU_MEMORY:
        remedy = "nnU-Net plans for 8 GiB: give a larger GPU, or plan with less memory"
        yield Row(name, "warning", text, remedy)
    else:
        remedy = "another program holds its memory: give stages GPUs of their own (nvidia-smi)"
        yield Row(name, "warning", text, remedy)
    if cuda.is_bf16_supported(including_emulation=False):
        yield Row(f"{name}: bfloat16", "ok", "in hardware")
    else:
        yield Row(
            f"{name}: bfloat16",
            "warning",
            "emulated, which is slow",
            "leave precision at auto: float16 is used on a GPU",
        )


def _multiply(torch: Any, number: int, kind: str) -> None:
    made = torch.ones(64, 64, device=f"cuda:{number}", dtype=getattr(torch, kind))
    if float((made @ made)[0, 0]) != 64.0:
        raise RuntimeError(f"a product in {kind} is wrong")


def _driver() -> str:
    """The NVIDIA driver's version; empty where there is none."""
    try:
        first = _DRIVER.read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return ""
    words = first.split()
    return next((word for word in words if word[:1].isdigit() and "." in word), "unknown")
