"""Encoder-decoders compute their equations: against a naive version made of torch's own parts, in float64."""

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import PAIR_VARIANTS, make_seq2seq

SOURCE = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(1))
TARGET = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(2))
MASK = torch.ones_like(SOURCE)
MASK[0, 6:] = 0


def rotate(states, theta=10000.0):
    """RoPE of (B, heads, T, E), with angles in float32 as Llama has them."""
    length, width = states.shape[-2:]
    frequencies = 1 / theta ** (torch.arange(0, width, 2) / width)
    angles = torch.arange(length)[:, None] * frequencies
    first, second = states.chunk(2, -1)
    cosine, sine = angles.cos().to(states.dtype), angles.sin().to(states.dtype)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


def attention(w, name, config, queries, states, allowed, rotated):
    """queries (B, T, D) attend to states (B, S, D) where allowed (B, 1, T, S)."""
    q, k, v = (
        F.linear(x, w[f"{name}.{part}_proj.weight"]).unflatten(-1, (-1, config.head_dim)).transpose(1, 2)
        for part, x in (("q", queries), ("k", states), ("v", states))
    )
    if rotated:
        q, k = rotate(q), rotate(k)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, enable_gqa=True)
    return F.linear(mixed.transpose(1, 2).flatten(-2), w[f"{name}.o_proj.weight"])


def settle(points, found, tolerance):
    """The state found or, for tokens whose last step from z(i-1) to z(i), i > 0, was small, z(i) again."""
    if tolerance is None or len(points) < 3:
        return found
    step, before = points[-1] - points[-2], points[-2]
    stopped = step.norm(dim=-1, keepdim=True) <= tolerance * before.norm(dim=-1, keepdim=True)
    return torch.where(stopped, points[-1], found)


def naive_stack(w, stack, config, plan, coefficients, x, allowed, source=None, source_allowed=None):
    """The encoder or the decoder, term by term, with nothing shared or reused."""

    def norm(name, x):
        return F.rms_norm(x, (x.shape[-1],), w[f"{stack}.{name}.weight"], config.rms_norm_eps)

    def layer_norm(name, x):
        weight, bias = w[f"{stack}.{name}.weight"], w[f"{stack}.{name}.bias"]
        return F.layer_norm(x, (x.shape[-1],), weight, bias, config.layer_norm_eps)

    history = [x]
    for t, iterations in enumerate(plan):
        at, tolerance = (
            f"layers.{t}",
            config.tolerances[t + (0 if source is None else config.num_encoder_layers)],
        )

        def block(point, at=at, first=None):
            y = norm(f"{at}.input_layernorm", point)
            keys = y if first is None else norm(f"{at}.input_layernorm", first)
            middle = point + attention(w, f"{stack}.{at}.self_attn", config, y, keys, allowed, True)
            if source is not None:
                y = norm(f"{at}.cross_attention_layernorm", middle)
                cross = f"{stack}.{at}.cross_attn"
                middle = middle + attention(w, cross, config, y, source, source_allowed, False)
            y = norm(f"{at}.post_attention_layernorm", middle)
            gate, up = (F.linear(y, w[f"{stack}.{at}.mlp.{part}_proj.weight"]) for part in ("gate", "up"))
            return middle + F.linear(F.silu(gate) * up, w[f"{stack}.{at}.mlp.down_proj.weight"])

        first = x if config.cache_policy == "shared" else None
        if not config.history:
            points = [x, block(x, first=first)]
            for i in range(iterations):
                a = w[f"{stack}.{at}.corrector.relaxation"][i] if config.relaxation else 1
                z = points[-1]
                found = (1 - a) * z + a * (x + block(z, first=first) - z)
                points.append(settle(points, found, tolerance))
            z = points[-1] + sum(b * (points[-1 - k] - points[-2 - k]) for k, b in enumerate(coefficients[t]))
            history.append(z)
            x = z
            continue
        if config.model_type == "pcformer_seq2seq":
            order, k = config.predictor_order, []
            for j, offset in enumerate([0, 1] if order == 2 else [0, 0.5, 0.5, 1]):
                point = x + offset * k[-1] if k else x
                k.append(layer_norm(f"predictor.norms.{j}", block(point, first=first)))
            if config.coefficients == "ema":
                a = w[f"{stack}.predictor.alpha"]
                g = [a * (1 - a) ** (order - 1 - j) for j in range(order)]
            else:
                g = [1 / 2, 1 / 2] if order == 2 else [1 / 6, 1 / 3, 1 / 3, 1 / 6]
            z = x + sum(gj * kj for gj, kj in zip(g, k, strict=True))
        else:
            z = block(x, first=first)
        points = [x, layer_norm(f"{at}.corrector.start_norm", z)]
        update, output = (w[f"{stack}.{at}.corrector.{part}_weights"] for part in ("update", "output"))
        for _ in range(iterations):
            mean = sum(update[k] * h for k, h in enumerate(history)) + update[-1] * points[-1]
            found = layer_norm(f"{at}.corrector.update_norm", block(mean, first=first))
            points.append(settle(points, found, tolerance))
        z = points[-1] + sum(b * (points[-1 - k] - points[-2 - k]) for k, b in enumerate(coefficients[t]))
        x = sum(output[k] * h for k, h in enumerate(history)) + output[-1] * z
        history.append(z)
    return norm("norm", x)


def naive_logits(w, config, source, mask, target):
    """(B, S), (B, S), (B, T) -> (B, T, V)."""
    length = target.shape[1]
    seen = mask[:, None, None].bool()
    encoder, decoder = (w[f"model.{half}.embed_tokens.weight"] for half in ("encoder", "decoder"))
    plan, split = config.iterations, config.num_encoder_layers
    b = [[], [0.3, 0.1], [-0.2, 0.3], [0.1], []] if config.extrapolation else [[]] * len(plan)
    everywhere = seen.expand(-1, 1, source.shape[1], -1)
    encoded = naive_stack(w, "model.encoder", config, plan[:split], b[:split], encoder[source], everywhere)
    causal = torch.ones(length, length, dtype=torch.bool).tril().expand(len(target), 1, -1, -1)
    across = seen.expand(-1, 1, length, -1)
    states = naive_stack(
        w, "model.decoder", config, plan[split:], b[split:], decoder[target], causal, encoded, across
    )
    return F.linear(states, w["lm_head.weight"])


@pytest.mark.usefixtures("norms_in_float64")
@pytest.mark.parametrize("name", PAIR_VARIANTS)
def test_forward_and_gradients_follow_the_equations_in_float64(name):
    model = PAIR_VARIANTS[name]().double()
    weights = dict(model.named_parameters(remove_duplicate=False))
    naive = naive_logits(weights, model.config, SOURCE, MASK, TARGET)
    logits = model(SOURCE, MASK, TARGET).logits
    torch.testing.assert_close(logits, naive, rtol=0, atol=1e-12)
    direction = torch.randn(logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    parameters = list(model.parameters())
    found, wanted = (
        torch.autograd.grad(y, parameters, direction, allow_unused=True) for y in (logits, naive)
    )
    assert sum(gradient is not None for gradient in found) > 0.8 * len(parameters)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


def test_plain_without_iterations_is_a_pre_norm_transformer():
    plain = {"num_iterations": 0, "num_encoder_iterations": 0, "history": False}
    model = make_seq2seq(**plain)
    assert not [name for name, _ in model.named_parameters() if "corrector" in name or "predictor" in name]
    weights = dict(model.named_parameters(remove_duplicate=False))
    naive = naive_logits(weights, model.config, SOURCE, MASK, TARGET)
    torch.testing.assert_close(model(SOURCE, MASK, TARGET).logits, naive, rtol=0, atol=1e-5)


def test_labels_are_aligned_with_the_decoder_and_shifted_to_make_its_inputs():
    model = make_seq2seq(pad_token_id=None, decoder_start_token_id=5)
    labels = TARGET.clone()
    labels[0, 4:] = -100
    inputs = model.prepare_decoder_input_ids_from_labels(labels)
    assert inputs[1].tolist() == [5, *TARGET[1, :-1].tolist()]
    assert inputs[0].tolist() == [5, *TARGET[0, :4].tolist(), 5, 5]
    out = model(SOURCE, MASK, labels=labels)
    logits = model(SOURCE, MASK, inputs).logits
    wanted = F.cross_entropy(logits[labels != -100], labels[labels != -100])
    torch.testing.assert_close(out.loss, wanted)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_tables_are_shared_and_tied_as_the_configuration_says(shared, tied):
    model = make_seq2seq(shared_embeddings=shared, tie_word_embeddings=tied)
    encoder, decoder = model.model.encoder.embed_tokens.weight, model.model.decoder.embed_tokens.weight
    assert (encoder is decoder) == shared
    assert (model.lm_head.weight is decoder) == tied


def test_a_plan_is_a_flat_list_the_encoder_first():
    model = make_seq2seq(num_iterations=3, num_encoder_iterations=3)
    full = model(SOURCE, MASK, TARGET).logits
    model.set_num_iterations([0, 1, 2, 3, 0])
    assert model.config.num_encoder_iterations == [0, 1, 2]
    assert model.config.num_iterations == [3, 0]
    assert model.config.iterations == [0, 1, 2, 3, 0]
    assert [layer.num_iterations for layer in model.base_model.layers] == [0, 1, 2, 3, 0]
    assert (model.config.num_evaluations, model.config.num_hidden_layers) == (11, 5)
    model.set_num_iterations(3)
    for plan in ([3, 3], [3] * 6, [0, 0, 4, 0, 0], [0, 0, 0, 0, 4], [0, -1, 0, 0, 0]):
        with pytest.raises(ValueError, match="_iterations"):
            model.set_num_iterations(plan)
        assert model.config.iterations == [3] * 5
    assert torch.equal(model(SOURCE, MASK, TARGET).logits, full)


def test_hidden_states_are_one_per_layer_and_attentions_one_per_evaluation():
    model = PAIR_VARIANTS["history"]()
    model.set_attn_implementation("eager")
    out = model(SOURCE, MASK, TARGET, output_hidden_states=True, output_attentions=True)
    assert (len(out.encoder_hidden_states), len(out.decoder_hidden_states)) == (4, 3)
    assert (len(out.encoder_attentions), len(out.decoder_attentions)) == (6, 4)
    assert out.cross_attentions[0].shape == (2, 4, 7, 9)
