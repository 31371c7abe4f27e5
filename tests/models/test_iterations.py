"""The states of iterations against naive float64 versions of the equations, and how they are reached."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iiad.models import IIETConfig, IIETForCausalLM
from iiad.models.solvers import (
    ExplicitEuler,
    MultistepCorrector,
    PicardCorrector,
    RungeKutta,
    weighted_sum,
)
from tests.helpers import SHAPE, make_iiet, make_llama, make_pcformer


def llama_twin(model, **fields):
    """A Llama with the model's weights."""
    twin = make_llama(rms_norm_eps=1e-6, **fields)
    twin.load_state_dict({k: v for k, v in model.state_dict().items() if "corrector" not in k})
    return twin


B = [[], [1.7, -0.5, 0.3], [0.6, 0.2]]
"""Coefficients at the stops of the plan below; 9 is of stops that it does not have."""
AT_STOPS = {
    "num_iterations": [0, 2, 1],
    "max_num_iterations": 3,
    "extrapolation": [[[9]], [[9], B[1]], [B[2], [9]]],
}


def naive_layer(model, t, x, history, **context):
    """Layer t (from 0) by the equations of the paper, term by term, with nothing shared or reused."""
    layer = model.model.layers[t]
    fields = layer.corrector

    def F(slot, point):
        attended, _ = layer.self_attn(layer.input_layernorm(point), layer.slots[slot], **context)
        middle = point + attended
        return middle + layer.mlp(layer.post_attention_layernorm(middle))

    def stopped(z):
        """z(-1), ..., z(r) -> what is handed on."""
        coefficients = B[t] if model.config.extrapolation else []
        return z[-1] + sum(b * (z[-1 - k] - z[-2 - k]) for k, b in enumerate(coefficients))

    if not fields.uses_history:
        points = [x, F(0, x)]
        for i in range(1, layer.num_iterations + 1):
            z = points[-1]
            step = x + (F(i, z) - z)
            a = 1.0 if fields.relaxation is None else fields.relaxation[i - 1]
            points.append((1 - a) * z + a * step)
        z = stopped(points)
        return z, z
    predictor = model.model.predictor
    if isinstance(predictor, RungeKutta):
        n, a = predictor.order, predictor.alpha
        k = [predictor.norms[0](F(0, x))]
        for j in range(1, n):
            scale = 0.5 if n == 4 and j < 3 else 1.0
            k.append(predictor.norms[j](F(j, x + scale * k[-1])))
        if a is None:
            g = [1 / 2, 1 / 2] if n == 2 else [1 / 6, 1 / 3, 1 / 3, 1 / 6]
        else:
            g = [a * (1 - a), a] if n == 2 else [a * (1 - a) ** 3, a * (1 - a) ** 2, a * (1 - a), a]
        z, first = fields.start_norm(x + sum(gj * kj for gj, kj in zip(g, k, strict=True))), n
    else:
        z, first = fields.start_norm(F(0, x)), 1
    w, c, points = fields.update_weights, fields.output_weights, [x, z]
    for i in range(layer.num_iterations):
        u = sum(w[k] * state for k, state in enumerate(history)) + w[-1] * points[-1]
        points.append(fields.update_norm(F(first + i, u)))
    z = stopped(points)
    return sum(c[k] * state for k, state in enumerate(history)) + c[-1] * z, z


EQUATIONS = {
    "history": lambda: make_iiet(num_iterations=3),
    "history-plan": lambda: make_iiet(num_iterations=[0, 3, 1]),
    "plain": lambda: make_iiet(num_iterations=[2, 0, 1], history=False),
    "relaxed": lambda: make_iiet(num_iterations=2, history=False, relaxation=True),
    "extrapolated": lambda: make_iiet(**AT_STOPS),
    "plain-extrapolated": lambda: make_iiet(**AT_STOPS, history=False),
    "relaxed-extrapolated": lambda: make_iiet(**AT_STOPS, history=False, relaxation=True),
    "rk2-extrapolated": lambda: make_pcformer(**AT_STOPS),
    "rk2-ema": lambda: make_pcformer(),
    "rk2-fixed": lambda: make_pcformer(coefficients="fixed"),
    "rk4-ema": lambda: make_pcformer(predictor_order=4),
    "rk4-fixed": lambda: make_pcformer(predictor_order=4, coefficients="fixed"),
}


@torch.no_grad()
@pytest.mark.usefixtures("norms_in_float64")
@pytest.mark.parametrize("make", EQUATIONS.values(), ids=EQUATIONS)
def test_models_follow_their_equations_in_float64(make, tokens):
    model = make().double()
    x, context = model.model.prepare(tokens)
    history = [x]
    for t in range(model.config.num_layers):
        x, state = naive_layer(model, t, x, history, **context)
        history.append(state)
    naive = model.lm_head(model.model.norm(x))
    torch.testing.assert_close(model(tokens).logits, naive, rtol=0, atol=1e-12)


def test_plain_without_iterations_equals_llama_to_the_last_bit(tokens):
    model = make_iiet(num_iterations=0, history=False)
    twin = llama_twin(model)
    ours, theirs = model(tokens, labels=tokens), twin(tokens, labels=tokens)
    assert torch.equal(ours.logits, theirs.logits)
    ours.loss.backward()
    theirs.loss.backward()
    gradients = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, gradients[name].grad), name


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}},
        {"attention_bias": True, "mlp_bias": True},
        {"head_dim": 16},
        {"attention_dropout": 0.3},
    ],
    ids=["yarn", "linear", "biases", "head-dim", "dropout"],
)
def test_llamas_settings_mean_here_what_they_mean_there(fields, tokens):
    model = make_iiet(num_iterations=0, history=False, **fields)
    twin = llama_twin(model, **fields)
    logits = []
    for each in (model.train(), twin.train()):
        torch.manual_seed(0)
        logits.append(each(tokens).logits)
    assert torch.equal(*logits)


def test_relaxation_zero_equals_llama_whatever_the_iterations(tokens):
    model = make_iiet(num_iterations=3, history=False, relaxation=True)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.corrector.relaxation.zero_()
    assert torch.equal(model(tokens).logits, llama_twin(model)(tokens).logits)


def test_first_iterates_do_not_depend_on_how_many_follow(tokens):
    model = make_iiet(num_iterations=3)
    x, context = model.model.prepare(tokens)
    layer = model.model.layers[0]
    _, full = layer.solve(x, model.model.predictor, x, **context)
    assert len(full) == 4
    for stop in range(3):
        model.set_num_iterations([stop, 3, 3])
        _, stopped = layer.solve(x, model.model.predictor, x, **context)
        assert all(torch.equal(a, b) for a, b in zip(stopped, full, strict=False))
        assert len(stopped) == stop + 1


def test_each_iteration_costs_one_evaluation_and_the_history_is_summed_once_a_layer(tokens, monkeypatch):
    import iiad.models.solvers as solvers

    model = make_iiet(num_iterations=[3, 0, 2])
    evaluations, sums = [], []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda *_: evaluations.append(1))
    monkeypatch.setattr(solvers, "weighted_sum", lambda w, h: sums.append(len(h)) or weighted_sum(w, h))
    model(tokens)
    assert len(evaluations) == model.config.num_evaluations == 3 + 5
    assert sums == [1, 1, 2, 3, 3]  # w and c of layers 1 and 3, c alone of layer 2 (no iterations)


@settings(max_examples=30)
@given(scale=st.floats(0.05, 0.6), seed=st.integers(0, 1000), iterations=st.integers(0, 40))
def test_picard_converges_to_the_implicit_euler_solution_of_a_contraction(scale, seed, iterations):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    matrix = scale * matrix / torch.linalg.matrix_norm(matrix, 2)
    x = torch.randn(1, 1, 4, generator=generator, dtype=torch.float64)

    def step(rule, *states, going=None):
        return rule(lambda point, base=None: (point if base is None else base) + point @ matrix, *states)

    corrector = PicardCorrector(iterations, relaxation=False)
    z = ExplicitEuler()(x, step, corrector.start_norm)
    _, iterates = corrector(z, x, (), iterations, step)
    exact = x @ torch.linalg.inv(torch.eye(4, dtype=torch.float64) - matrix)  # y = x + f(y)
    assert len(iterates) == iterations + 1
    bound = scale ** (iterations + 2) / (1 - scale) * x.norm() + 1e-12
    assert (iterates[-1] - exact).norm() <= bound


@settings(max_examples=25)
@given(n=st.integers(1, 6), seed=st.integers(0, 1000))
def test_weighted_sum_has_the_values_and_gradients_of_the_stacked_sum(n, seed):
    options = {"dtype": torch.float64, "generator": torch.Generator().manual_seed(seed)}
    weights = torch.randn(n, **options, requires_grad=True)
    states = [torch.randn(2, 3, 4, **options, requires_grad=True) for _ in range(n)]
    ours = weighted_sum(weights, states)
    stacked = torch.einsum("k,kbtd->btd", weights, torch.stack(states))
    torch.testing.assert_close(ours, stacked, rtol=0, atol=1e-13)
    direction = torch.randn(2, 3, 4, **options)
    found, wanted = (torch.autograd.grad(y, [weights, *states], direction) for y in (ours, stacked))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("norms_in_float64")
def test_gradients_of_a_whole_iterated_model_agree_with_finite_differences():
    model = make_iiet(hidden_size=8, intermediate_size=8, num_layers=2, num_iterations=2).double()
    ids = torch.randint(3, 90, (1, 5), generator=torch.Generator().manual_seed(0))
    names, parameters = zip(*model.named_parameters(), strict=True)

    def logits(*values):
        weights = dict(zip(names, values, strict=True))
        return torch.func.functional_call(model, weights, (ids,), {"use_cache": False}).logits

    assert torch.autograd.gradcheck(logits, parameters, fast_mode=True)


def test_hidden_states_are_one_per_layer_whatever_the_plan(tokens):
    model = make_iiet(num_iterations=[1, 0, 2])
    assert len(model(tokens, output_hidden_states=True).hidden_states) == 4


def test_a_plan_can_be_changed_and_restored_and_one_that_does_not_fit_changes_nothing(tokens):
    model = make_iiet(num_iterations=3)
    full = model(tokens).logits
    model.set_num_iterations([1, 0, 2])
    assert model.config.num_iterations == [1, 0, 2]
    assert model.config.num_hidden_layers == 6
    assert not torch.equal(model(tokens).logits, full)
    model.set_num_iterations(3)
    for plan in ([1, 1], 4, [0, 0, 4], [0, -1, 0]):
        with pytest.raises(ValueError, match="num_iterations"):
            model.set_num_iterations(plan)
        assert model.config.num_iterations == [3, 3, 3]
    assert torch.equal(model(tokens).logits, full)


def test_multistep_weights_start_as_the_mean_of_what_the_layer_sees():
    corrector = MultistepCorrector(8, depth=4, layer_norm_eps=1e-5)
    assert corrector.update_weights.tolist() == pytest.approx([1 / 5] * 5)
    fresh = IIETForCausalLM(IIETConfig(**SHAPE))
    assert fresh.model.layers[2].corrector.output_weights.tolist() == pytest.approx([1 / 4] * 4)
