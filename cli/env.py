"""`iiad env`."""

from __future__ import annotations

from .output import print_result

__all__ = ["env"]

PACKAGES = "iiad torch transformers accelerate tokenizers numpy scipy pydantic lm-eval".split()


def env() -> None:
    """Print versions and hardware, for bug reports.

    Example:  iiad env
    """
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    def version_of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    capability = torch.backends.cpu.get_cpu_capability()
    rows = {name: version_of(name) for name in PACKAGES} | {
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {capability}",
        "gpu": ", ".join(gpus) or "none",
    }
    print_result(rows, lambda width: "\n".join(f"{name:13}{value}" for name, value in rows.items()))
