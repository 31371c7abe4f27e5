"""The latency table of an encoder-decoder: prefills and steps by a clock made for it, and the command."""

import pytest
import torch

from iiad.evaluation.layer_latency import choose_check_plans, measure_latency, time_layers
from iiad.influence import measure_influence
from iiad.planning import Plan
from iiad.planning.latency import LatencyTable
from tests.helpers import PAIR_VARIANTS, refused

SOURCE, TARGET = 7, 9


class Clock:
    """Stands still but for what a model does: an evaluation of layer t takes t seconds a token, the rest of a call 5.

    calls: tokens of the source, of the target, and in the cache of the target.
    """

    def __init__(self, model):
        self.seconds, self.calls = 0, []

        def begin(model, args, kwargs):
            read, cache = kwargs.get("input_ids"), kwargs["past_key_values"]
            made = kwargs["decoder_input_ids"].shape[1]
            self.calls.append((0 if read is None else read.shape[1], made, cache.get_seq_length()))
            self.seconds += 5

        def evaluate(layer):
            def advance(module, args, output):
                self.seconds += layer * output.shape[1]

            return advance

        model.register_forward_pre_hook(begin, with_kwargs=True)
        for number, layer in enumerate(model.base_model.layers, 1):
            layer.mlp.register_forward_hook(evaluate(number))

    def __call__(self, device):
        return self.seconds


@pytest.mark.parametrize("kind", PAIR_VARIANTS)
def test_the_table_is_exact_where_time_is_the_sum_of_evaluations(kind):
    model = PAIR_VARIANTS[kind]()
    most, start = model.config.iterations, model.config.num_start_evaluations
    clock = Clock(model)
    phases = time_layers(model, torch.full((2, SOURCE), 5), choose_check_plans(most), TARGET, 1, clock)
    tokens = {"prefill": [SOURCE] * 3 + [1] * 2, "decode": [0] * 3 + [1] * 2}
    for phase, own in tokens.items():
        assert phases[phase].fixed_seconds == 5
        assert phases[phase].layers == [
            [n * t * (start + i) for i in range(r + 1)]
            for t, (r, n) in enumerate(zip(most, own, strict=True), 1)
        ]
        assert phases[phase].largest_error == 0
    # The first fills the cache; then prefills of a source and the start token, and steps in the target's middle.
    assert clock.calls[0] == (0, TARGET // 2, 0)
    assert set(clock.calls[1:]) == {(SOURCE, 1, 0), (0, 1, TARGET // 2)}
    assert model.config.iterations == most


def test_a_table_is_measured_and_planned_by_from_the_command_line(pair_folders, tmp_path, iiad):
    teacher, table, profile = pair_folders.teacher, tmp_path / "latency.json", tmp_path / "profile.json"
    sizes = ["--prompt-tokens", 6, "--new-tokens", 3]
    code, shown, _ = iiad(
        "bench", teacher, "--layers", *sizes, "--repeats", 1, "--device", "cpu", "--output", table
    )
    assert code == 0
    assert all(words in shown for words in ("source 6, target 3 tokens", "encoder 3", "decoder 2"))
    made = LatencyTable.load(table)
    assert (made.settings.context, made.settings.target_tokens) == (6, 3)
    assert made.phases == ("prefill", "decode", "sentence")
    measure_influence(
        teacher, [str(pair_folders.pairs)], metrics=["kl"], output=profile, cache_dir=tmp_path / "c"
    )
    options = [profile, "--latency", table, "--speedup", 1.2, "--output", tmp_path / "plan.json"]
    code, shown, errors = iiad("plan", *options, "--source-tokens", 6, "--target-tokens", 3)
    assert code == 0, errors
    assert "a speedup of sentence of at least 1.2" in " ".join(shown.split())
    plan = Plan.load(tmp_path / "plan.json")
    assert made.phase("sentence").seconds(plan.num_iterations) * 1.19 < made.phase("sentence").seconds(
        [3] * 5
    )
    code, _, errors = iiad("plan", *options, "--target-tokens", 4, "--overwrite")
    assert code == 2
    assert "latency: expected a table with target_tokens 4, got 3" in errors


def test_more_tokens_than_positions_are_refused(pair_folders):
    for sizes in ({"prompt_tokens": 129}, {"new_tokens": 129}):
        with refused(f"{next(iter(sizes))}: expected at most 128"):
            measure_latency(
                pair_folders.teacher, **{"prompt_tokens": 4, "new_tokens": 4, **sizes}, device="cpu"
            )
