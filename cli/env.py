"""`iiad env`."""

from __future__ import annotations

__all__ = ["env"]


def env() -> None:
    """Print versions and hardware, for bug reports.

    Example:  iiad env
    """
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    for name in (
        "iiad",
        "torch",
        "transformers",
        "accelerate",
        "tokenizers",
        "numpy",
        "scipy",
        "pydantic",
        "lm-eval",
    ):
        try:
            print(f"{name:13}{version(name)}")
        except PackageNotFoundError:
            print(f"{name:13}not installed")
    print(f"{'python':13}{platform.python_version()} on {platform.system()} {platform.machine()}")
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"{'cpu':13}{os.cpu_count()} cores, {torch.get_num_threads()} threads, {capability}")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"{'gpu':13}{', '.join(devices) or 'none'}")
