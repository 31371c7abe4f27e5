"""Latency tables of made-up models."""

from iiad.planning.latency import LatencySettings, LatencyTable, PhaseLatency

SETTINGS = LatencySettings(
    device="cpu",
    device_name="a CPU",
    dtype="float32",
    batch_size=2,
    context=256,
    num_threads=1,
    repeats=3,
    torch_version="2.11",
)


def make_phase(layers, fixed=0.001, plan=None, error=0.05):
    """A phase whose one check, of the largest plan unless another is named, is `error` above the clock."""
    plan = plan or [len(layer) - 1 for layer in layers]
    seconds = fixed + sum(layer[r] for layer, r in zip(layers, plan, strict=True))
    return PhaseLatency.of(fixed, layers, [(plan, seconds / (1 + error) or 1.0)])


def make_table(model, layers=None, fixed=0.001, **fields):
    """A table by which an evaluation takes 1 ms of decoding and 10 ms of prefill; or `layers` as they are given."""
    evaluations = [
        [model.num_start_evaluations + r for r in range(most + 1)] for most in model.num_iterations
    ]
    decode, prefill = ([[n * each for n in layer] for layer in evaluations] for each in (0.001, 0.01))
    return LatencyTable(
        model=model,
        settings=SETTINGS,
        decode=make_phase(layers or decode, fixed),
        prefill=make_phase(layers or prefill, fixed, error=-0.02),
        **fields,
    )
