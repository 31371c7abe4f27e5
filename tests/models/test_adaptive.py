"""Iterations that stop by themselves: each token stops in a layer once its state hardly moves, and nothing else."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

from iiad.models.solvers import relative_change
from tests.helpers import make_iiet, make_pcformer, make_seq2seq

FIELDS = {"num_iterations": [3, 2, 3], "cache_policy": "shared", "tolerance": 0.3}
PADDING = torch.tensor([[0] * 5 + [1] * 11, [1] * 16])
KINDS = {
    "history": lambda **changes: make_iiet(**FIELDS | changes),
    "plain": lambda **changes: make_iiet(**FIELDS | {"tolerance": 0.2} | changes, history=False),
    "relaxed": lambda **changes: make_iiet(
        **FIELDS | {"tolerance": 0.02} | changes, history=False, relaxation=True
    ),
    "pcformer": lambda **changes: make_pcformer(**FIELDS | changes),
    "layers": lambda **changes: make_iiet(**FIELDS | {"tolerance": [0.4, None, 0.1]} | changes),
}
pytestmark = pytest.mark.usefixtures("norms_in_float64")


@pytest.fixture(params=KINDS)
def model(request):
    return KINDS[request.param]().double()


@pytest.fixture
def text():
    """Two sequences that differ, of which the first is padded by PADDING."""
    return torch.randint(3, 90, (2, 16), generator=torch.Generator().manual_seed(1))


def reference(model, text, mask=None):
    """Logits, token by token, of the model whose layers run all iterations, and each layer's evaluations (B, T)."""
    (own, tolerances), model.config.tolerance = (model.config.tolerance, model.config.tolerances), None
    positions = None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)
    x, context = model.model.prepare(text, mask, positions)
    history, counts = (x,), []
    for layer, tolerance in zip(model.model.layers, tolerances, strict=True):
        _, iterates = layer.solve(x, model.model.first_iterate, *history, **context)
        rows, stops = [], torch.zeros(text.shape, dtype=torch.long)
        for b in range(len(text)):
            states = []
            for t in range(text.shape[1]):
                i = min(1, layer.num_iterations)
                while i < layer.num_iterations:
                    before, after = iterates[i - 1][b, t], iterates[i][b, t]
                    if tolerance is not None and (after - before).norm() <= tolerance * before.norm():
                        break
                    i += 1
                states.append(iterates[i][b, t])
                stops[b, t] = model.config.num_start_evaluations + i
            rows.append(torch.stack(states))
        state = torch.stack(rows)
        x, history = layer.output(state, *history), (*history, state)
        counts.append(stops)
    model.config.tolerance = own
    return model.lm_head(model.model.norm(x)), torch.stack(counts)


def tokens_through(model):
    """The tokens that each layer's MLP has seen, once the model has run."""
    seen = [0] * len(model.base_model.layers)
    for place, layer in enumerate(model.base_model.layers):

        def add(module, given, place=place):
            seen[place] += given[0].shape[:-1].numel()

        layer.mlp.register_forward_pre_hook(add)
    return seen


@pytest.mark.parametrize(
    ("attention", "mask"),
    [("sdpa", None), ("sdpa", PADDING), ("eager", None)],  # the other has NaN at padding in float64
    ids=["whole", "padded", "eager"],
)
def test_each_token_stops_where_its_state_hardly_moves_and_no_other_is_computed(model, text, mask, attention):
    model.set_attn_implementation(attention)
    positions = None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)
    wanted, counts = reference(model, text, mask)
    assert len(counts.unique()) > 2  # they do stop at different iterations
    seen = tokens_through(model)
    with torch.no_grad():
        found = model(text, attention_mask=mask, position_ids=positions).logits
    asked = torch.ones_like(text) if mask is None else mask
    torch.testing.assert_close(found[asked == 1], wanted[asked == 1], rtol=0, atol=1e-12)
    assert seen == counts.sum((1, 2)).tolist()


def test_with_gradients_all_are_computed_and_those_that_stopped_keep_their_state(model, text):
    wanted, _ = reference(model, text)
    found = model(text).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    weights = torch.randn(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(2))
    parameters = list(model.parameters())
    own, naive = (
        torch.autograd.grad((each * weights).sum(), parameters, materialize_grads=True)
        for each in (found, wanted)
    )
    for a, b in zip(own, naive, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    for recompute in ("layer", "evaluation"):
        model.train().set_recompute(recompute)
        again = torch.autograd.grad((model(text).logits * weights).sum(), parameters, materialize_grads=True)
        for a, b in zip(again, own, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_cached_decoding_of_a_padded_batch_stops_each_token_where_the_full_forward_does(model, text):
    positions = (PADDING.cumsum(-1) - 1).clamp(min=0)
    wanted, counts = reference(model, text, PADDING)
    seen, cache, found = tokens_through(model), DynamicCache(config=model.config), []
    with torch.no_grad():
        for part in [slice(0, 6), slice(6, 9), *(slice(t, t + 1) for t in range(9, 16))]:
            mask = PADDING[:, : part.stop]
            found.append(
                model(
                    text[:, part],
                    attention_mask=mask,
                    position_ids=positions[:, part],
                    past_key_values=cache,
                    use_cache=True,
                ).logits
            )
    found = torch.cat(found, 1)
    torch.testing.assert_close(found[PADDING == 1], wanted[PADDING == 1], rtol=0, atol=1e-12)
    assert seen == counts.sum((1, 2)).tolist()


def test_a_prompt_in_a_static_cache_longer_than_itself_is_masked_causally(text):
    model = KINDS["history"]().double()
    cache = StaticCache(config=model.config, max_cache_len=24)
    with torch.no_grad():
        found = model(text, past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(found, reference(model, text)[0], rtol=0, atol=1e-12)


def test_under_compilation_masks_give_the_same_logits(text):
    model = make_iiet(**FIELDS | {"num_layers": 1, "num_iterations": 3}).double()
    with torch.no_grad():
        wanted = model(text).logits
        found = torch.compile(model, backend="eager", fullgraph=True)(text).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_a_tolerance_of_0_changes_nothing_and_one_above_all_stops_after_one_iteration(text):
    full = make_iiet(**FIELDS | {"tolerance": None}).double()
    with torch.no_grad():
        for tolerance, plan in ((0, [3, 2, 3]), (1e5, [1, 1, 1])):
            model = make_iiet(**FIELDS | {"tolerance": tolerance}).double()
            full.set_num_iterations(plan)
            assert torch.equal(model(text).logits, full(text).logits)


def test_both_sides_of_an_encoder_decoder_stop_by_themselves(text):
    fields = {"num_iterations": 3, "num_encoder_iterations": 2, "cache_policy": "shared", "tolerance": 0.3}
    model = make_seq2seq(**fields).double()
    given = {"input_ids": text, "attention_mask": PADDING, "decoder_input_ids": text.flip(0)}
    wanted = model(**given).logits  # with gradients: masked
    full, seen = model.config.num_evaluations, tokens_through(model)
    with torch.no_grad():
        found = model(**given).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    assert sum(seen) < full * text.numel()


def test_a_saved_tolerance_is_loaded_and_another_can_be_given(text, tmp_path):
    model = make_iiet(**FIELDS)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "selection.py").is_file()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert again.config.tolerance == 0.3
        assert torch.equal(again(text).logits, model(text).logits)
        plain = AutoModelForCausalLM.from_pretrained(tmp_path, tolerance=None)
        assert not torch.equal(plain(text).logits, model(text).logits)
        model.reconfigure(tolerance=None)
        assert torch.equal(plain(text).logits, model(text).logits)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "0.1", True, [0.1, None, -1], [[0.1], 0.1, 0.1]])
def test_a_tolerance_is_a_number_from_0(value):
    with pytest.raises(ValueError, match="tolerance: expected a number from 0, below 1,000,000, or a list"):
        make_iiet(**FIELDS | {"tolerance": value})


def test_a_list_of_tolerances_has_one_for_each_layer():
    with pytest.raises(ValueError, match=r"tolerance: expected one number, or one for each of 3 layers, got"):
        make_iiet(**FIELDS | {"tolerance": [0.1, 0.2]})


def test_a_tolerance_needs_the_shared_cache_and_no_extrapolation():
    for wrong in ({"cache_policy": "exact"}, {"extrapolation": [[[0.5]], [], []]}):
        with pytest.raises(ValueError, match=r"tolerance: expected none .*, got 0.3"):
            make_iiet(**FIELDS | wrong)
    model = make_iiet(**FIELDS)
    with pytest.raises(ValueError, match="tolerance: expected none with cache_policy 'exact'"):
        model.set_cache_policy("exact")
    assert model.config.cache_policy == "shared"


def test_the_change_of_a_state_is_relative_to_what_it_was():
    before, after = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[3.0, 5.0]]])
    assert relative_change(before, after).item() == pytest.approx(0.2)
    assert not relative_change(before * 0, before * 0) > 0  # one that is 0 and stays so stops
