"""How fast models run, beside what their evaluations predict: prefill, decoding and cache."""

from .artefact import Bench, BenchResult, BenchSettings, Spread
from .comparison import bench_models
from .timing import Timing, time_model

__all__ = ["Bench", "BenchResult", "BenchSettings", "Spread", "Timing", "bench_models", "time_model"]
