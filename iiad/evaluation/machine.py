"""What a machine calls its devices."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

__all__ = ["device_name"]

CPU_INFO = Path("/proc/cpuinfo")


def device_name(device: str) -> str:
    """The model of a GPU or CPU as the driver or the kernel knows it; on a system that says neither, its kind."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # only Linux has this file
        lines = []
    fields = ((key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines))
    models = (value for key, value in fields if key == "model name" and value)
    # The platform module asks `uname`, which on Linux knows the instruction set at most.
    return next(models, None) or platform.processor() or platform.machine()
