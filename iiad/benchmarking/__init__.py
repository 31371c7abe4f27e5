"""How fast models run, beside what their evaluations predict: prefill, decoding, memory, cache; and each layer."""

from .artefact import Bench, BenchResult, BenchSettings, Breakdown, Phase, Spread
from .comparison import bench_models
from .layers import choose_check_plans, measure_latency, time_layers
from .machine import device_name
from .timing import Timing, time_model

__all__ = [
    "Bench",
    "BenchResult",
    "BenchSettings",
    "Breakdown",
    "Phase",
    "Spread",
    "Timing",
    "bench_models",
    "choose_check_plans",
    "device_name",
    "measure_latency",
    "time_layers",
    "time_model",
]
