"""Configurations take what a model can be built of, and refuse the rest by field, bound and value."""

import copy
import json
import math
import re

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from iiad.models import (
    IIETConfig,
    IIETForCausalLM,
    IIETForConditionalGeneration,
    IIETSeq2SeqConfig,
    PCformerConfig,
    PCformerForCausalLM,
    PCformerSeq2SeqConfig,
)
from tests.helpers import PAIR_SHAPE, SHAPE, make_iiet

NUMBERS = [-1, 0, 1, 2, 3, 0.5, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e308, 10**9, 10**400]
VALUES = [
    *NUMBERS,
    None,
    True,
    False,
    "",
    "1",
    "x" * 5000,
    "nan",
    [],
    [1],
    [1, "x"],
    [[1]],
    {},
    {"a": 1},
    object(),
]
ROPES = [{name: value} for name in ("rope_theta", "rope_type", "partial_rotary_factor") for value in VALUES]
KINDS = {
    "iiet": (IIETConfig, IIETForCausalLM),
    "pcformer": (PCformerConfig, PCformerForCausalLM),
    "iiet_seq2seq": (IIETSeq2SeqConfig, IIETForConditionalGeneration),
}
REFUSAL = re.compile(r"(?!.*(Strict|Error|Traceback|<class))\w+(\[\d+\])?: expected .{,200}, got .{,200}")


def outcome(make, *args, **fields):
    """The configuration's fields as JSON, or the message of its refusal, in one line."""
    try:
        return json.dumps(make(*args, **copy.deepcopy(fields)).to_dict(), sort_keys=True)
    except ValueError as error:
        return str(error) if type(error) is ValueError else repr(error)


@pytest.mark.parametrize("kind", KINDS)
def test_any_value_of_any_field_is_refused_by_name_or_makes_a_model_that_loads(kind):
    config_class, model_class = KINDS[kind]
    fields = SHAPE | {"num_layers": 1, "num_iterations": 1}
    saved = config_class(**fields).to_dict()
    num_refused = 0
    theirs = {} if kind == "iiet" else IIETConfig.accepted_values
    names = [name for name, accepted in config_class.accepted_values.items() if theirs.get(name) != accepted]
    for name in names:
        for value in VALUES + (ROPES if name == "rope_parameters" else []):
            found = outcome(config_class, **fields | {name: value})
            if not found.startswith("{"):
                assert REFUSAL.fullmatch(found)
                num_refused += 1
                continue
            loaded = config_class.from_dict(json.loads(found))
            assert json.dumps(loaded.to_dict(), sort_keys=True) == found
            ids = {"input_ids": torch.zeros(1, 2, dtype=torch.long)}
            if loaded.is_encoder_decoder:
                ids["decoder_input_ids"] = ids["input_ids"]
            model_class(loaded)(**ids)
            if name != "cache_policy":  # which no keyword may change
                wanted = outcome(config_class, **saved | {name: value})
                assert outcome(config_class.from_dict, saved, **{name: value}) == wanted
    assert num_refused > 0.5 * len(names) * len(VALUES)


@pytest.mark.parametrize("name", ["bos_token_id", "eos_token_id", "pad_token_id", "head_dim"])
def test_none_is_accepted_where_transformers_accepts_it(name):
    config = IIETConfig(**SHAPE | {name: None})
    assert IIETConfig.from_dict(json.loads(json.dumps(config.to_dict()))).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    "config_class", [IIETConfig, PCformerConfig, IIETSeq2SeqConfig, PCformerSeq2SeqConfig]
)
def test_every_field_of_ours_says_what_it_accepts(config_class):
    own = {*config_class.__annotations__, *IIETConfig.__annotations__} - {"accepted_values"}
    assert own <= {*config_class.accepted_values}


def test_a_file_cannot_change_what_is_accepted():
    with pytest.raises(ValueError, match="vocab_size: expected a whole number from 1 to 16777216, got -1"):
        IIETConfig.from_dict({**IIETConfig(**SHAPE).to_dict(), "accepted_values": {}, "vocab_size": -1})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_iterations": [1, 2]}, "num_iterations: expected an int or a list of num_layers"),
        ({"num_iterations": -1}, "num_iterations: expected a whole number from 0 to 1000 or a list"),
        ({"num_iterations": 2, "max_num_iterations": 1}, r"num_iterations\[0\]: expected from 0 to 1"),
        ({"num_attention_heads": 5}, "hidden_size: expected a multiple"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: expected a divisor"),
        ({"num_layers": 0}, "num_layers: expected a whole number from 1 to 4096, got 0"),
        ({"pad_token_id": 97}, r"pad_token_id: expected below vocab_size \(97\), got 97"),
        ({"relaxation": True}, "relaxation: expected false with history"),
        ({"attention_dropout": 1.0}, r"attention_dropout: expected a number in \[0, 1\)"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps: expected a number above 0"),
        ({"num_hidden_layers": 4}, "num_hidden_layers: expected num_layers instead"),
        (
            {"extrapolation": [[[1.0]], []]},
            "extrapolation: expected none or, for each of 3 layers, at most 2",
        ),
        (
            {"extrapolation": [[], [[], [], [1.0]], []]},
            r"at most 2 lists \(max_num_iterations - 1\), the first",
        ),
        ({"extrapolation": [[[1, 1, 1]], [], []]}, "the first of at most two numbers, the second of at most"),
        (
            {"extrapolation": [[[math.nan]], [], []]},
            "extrapolation: expected for each layer a list of lists of",
        ),
        (
            {"extrapolation": [[[math.inf]], [], []]},
            "extrapolation: expected for each layer a list of lists of",
        ),
        (
            {"extrapolation": [[1.0], [], []]},
            "extrapolation: expected for each layer a list of lists of numbers",
        ),
        ({"num_iteration": 2}, "did you mean num_iterations"),
        ({"historry": False}, "did you mean history"),
    ],
)
def test_a_wrong_configuration_names_field_bound_and_value(fields, message):
    with pytest.raises(ValueError, match=message):
        IIETConfig(**{**SHAPE, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"num_encoder_iterations": [1, 2]},
            "num_encoder_iterations: expected an int or a list of num_encoder",
        ),
        ({"num_iterations": [1, 2, 3]}, r"num_iterations: expected an int or a list of num_layers \(2\)"),
        (
            {"num_encoder_iterations": 2, "max_num_iterations": 1},
            r"num_encoder_iterations\[0\]: expected from",
        ),
        ({"num_encoder_layers": 0}, "num_encoder_layers: expected a whole number from 1 to 4096, got 0"),
        ({"decoder_start_token_id": 97}, r"decoder_start_token_id: expected a token below vocab_size \(97\)"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder: expected true, got False"),
        (
            dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
            "decoder_start_token_id: expected a",
        ),
        ({"num_encoder_layer": 2}, "did you mean num_encoder_layers"),
    ],
)
def test_a_wrong_encoder_decoder_names_field_bound_and_value(fields, message):
    with pytest.raises(ValueError, match=message):
        IIETSeq2SeqConfig(**{**PAIR_SHAPE, **fields})


@pytest.mark.parametrize(
    "fields",
    [{"sliding_window": 4}, {"attention_chunk_size": 4}, {"layer_types": ["sliding_attention"] * 12}],
)
def test_a_cache_that_would_forget_positions_is_refused_by_the_field_that_asks_for_it(fields):
    (name,) = fields
    with pytest.raises(ValueError, match=f"{name}: expected none: a layer attends to all positions, got"):
        IIETConfig(**SHAPE, **fields)
    config = IIETConfig(**SHAPE)
    setattr(config, name, fields[name])
    with pytest.raises(ValueError, match=f"{name}: expected none"):
        IIETForCausalLM(config)


def test_an_attribute_named_nearly_like_a_field_can_be_saved_and_loaded(tmp_path):
    config = IIETConfig(**SHAPE)
    config.layer_norm_epsilon = 1e-3
    config.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"layer_norm_epsilon: .*did you mean layer_norm_eps\?"):
        loaded = IIETConfig.from_pretrained(tmp_path)
    assert (loaded.layer_norm_eps, loaded.layer_norm_epsilon) == (1e-5, 1e-3)


@pytest.mark.parametrize("auto", [AutoConfig, AutoModelForCausalLM])
def test_keywords_of_from_pretrained_mean_what_those_of_the_constructor_do(auto, tmp_path):
    make_iiet(num_iterations=2).save_pretrained(tmp_path)

    def load(**fields):
        loaded = auto.from_pretrained(tmp_path, **fields)
        return getattr(loaded, "config", loaded)

    config = load(num_iterations=1, layer_norm_eps=1e-3)
    assert (config.num_iterations, config.max_num_iterations, config.layer_norm_eps) == ([1] * 3, 2, 1e-3)
    for fields, message in (
        ({"num_hidden_layers": 7}, "num_hidden_layers: expected num_layers instead"),
        ({"num_iterations": 3}, "num_iterations\\[0\\]: expected from 0 to 2"),
        ({"num_iteration": 1}, "did you mean num_iterations"),
    ):
        with pytest.raises(ValueError, match=message):
            load(**fields)
