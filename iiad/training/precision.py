"""bf16: auto, decided by what is faster on this machine, once a run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import torch

from iiad.progress import print_status

from .processes import from_first_process
from .run_record import RECORD, RunRecord

__all__ = ["bf16_is_faster", "decide_bf16"]


def decide_bf16(wanted: bool | Literal["auto"], folder: Path) -> bool:
    """Return True for bfloat16. auto: as the run in the folder began, else the faster one. Collective."""
    if wanted != "auto":
        return wanted
    if (folder / RECORD).exists():
        began: Any = RunRecord.load(folder / RECORD).settings.get("training")
        return isinstance(began, dict) and bool(began.get("bf16"))
    faster = from_first_process(bf16_is_faster)
    print_status(f"training.bf16: auto is {str(faster).lower()}, the faster on this machine")
    return faster


def bf16_is_faster() -> bool:
    """Return whether matrix products are faster in bfloat16 than in float32 here; measured in a second or less."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    best = dict.fromkeys((torch.bfloat16, torch.float32), float("inf"))
    for _ in range(5):
        for dtype in best:  # in turns, so that whatever slows the machine for a while slows both
            matrix = torch.ones(512, 512, dtype=dtype, device=device)
            started = time.perf_counter()
            (matrix @ matrix)[0, 0].item()
            best[dtype] = min(best[dtype], time.perf_counter() - started)
    return best[torch.bfloat16] < best[torch.float32]
