"""Events of torch.profiler, read from its trace: `profile.events()` takes many times as long."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch.profiler import ProfilerActivity, profile

__all__ = ["traced_events"]

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else torch's profiler reports its stages on stderr


def traced_events(
    work: Callable[[], Any], *, on_gpu: bool = False, memory: bool = False
) -> list[dict[str, Any]]:
    """Run work under torch.profiler; return its trace's events, by their start `ts` in microseconds.

    memory: adds an event "[memory]" for each allocation and release.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with TemporaryDirectory() as folder:
        with profile(activities=activities, profile_memory=memory) as profiler:
            work()
        profiler.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    return sorted((event for event in events if "ts" in event), key=lambda event: event["ts"])
