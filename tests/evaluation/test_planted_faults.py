"""Faults planted in the models, each seen by the claims that are about it and by no other."""

import copy
import functools
import json

import pytest
import torch
from torch.nn import functional as F
from transformers import DynamicCache, StaticCache

from iiad.evaluation.claims import Claim
from iiad.evaluation.loading_claims import remote_logits
from iiad.models import IIETForCausalLM, IIETModel
from iiad.models.layers import IterativeLayer
from iiad.models.seq2seq_stacks import CrossIterativeLayer, IIETSeq2SeqDecoder, IIETSeq2SeqEncoder
from tests.helpers import given_cache

from .conftest import failed, note, outcomes, quick_check

CACHED = {
    "cached = uncached: logits",
    "left-padded = single: logits",
    "chunked prefill = whole",
    "beam search: cached = uncached",
}
TOKENS = {"cached = uncached: greedy tokens", "left-padded = single: greedy tokens"}
SAVED = {"saved = reloaded: logits", "saved = reloaded: weights, config"}
UNUSED = {"saved = reloaded: weights, config"}
STATIC, RECOMPUTE = "static cache = dynamic cache", "recompute by evaluation = none"


@pytest.fixture
def check(model_folder):
    """Check the IIET with history of plan [0, 2]."""
    folder = model_folder("history")  # saved before a test plants its fault
    return lambda **options: quick_check(folder, **options)


def plant(monkeypatch, owner, name, fault):
    """Let fault(original, *arguments) stand for a method."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def planted(*args, **kwargs):
        return fault(original, *args, **kwargs)

    monkeypatch.setattr(owner, name, planted)


class LastSlotRead:
    """A cache as the released code has it: past keys and values are those of the layer's last evaluation."""

    def __init__(self, cache, last):
        self.cache, self.last = cache, last

    def update(self, key, value, slot, **_):
        past = self.cache.layers[self.last]
        num_past = int(past.get_seq_length())
        own = [states.clone() for states in self.cache.update(key, value, slot)]
        if num_past and slot != self.last:
            for states, others in zip(own, (past.keys, past.values), strict=True):
                states[:, :, :num_past] = others[:, :, :num_past]
        return own


def read_last_slot(solve, layer, *states, past_key_values, **kwargs):
    if past_key_values is not None:
        past_key_values = LastSlotRead(past_key_values, layer.slots[-1].layer_idx)
    return solve(layer, *states, past_key_values=past_key_values, **kwargs)


def write_to_one_slot(assign, model):
    assign(model)
    for layer in model.layers:
        for slot in layer.slots:
            slot.layer_idx = layer.slots[0].layer_idx


def roll_cached_logits(forward, model, input_ids=None, **kwargs):
    out = forward(model, input_ids, **kwargs)
    if given_cache(kwargs) is not None and input_ids.shape[1] == 1:
        out.logits = out.logits.roll(1, -1)
    return out


def change_positions(change):
    """A fault of `prepare` by change(mask, positions, cache)."""

    def fault(prepare, model, input_ids, mask=None, positions=None, cache=None, *others):
        seen = 0 if cache is None else cache.get_seq_length()
        if positions is None:
            positions = torch.arange(input_ids.shape[1])[None] + seen
        return prepare(model, input_ids, *change(mask, positions, cache), cache, *others)

    return fault


@change_positions
def forget_padding(mask, positions, cache):
    return None, positions


@change_positions
def late_in_a_static_cache(mask, positions, cache):
    return mask, positions + (isinstance(cache, StaticCache) and positions.shape[1] == 1)


@change_positions
def restart_in_chunks(mask, positions, cache):
    chunk = cache is not None and positions.shape[1] > 1
    return mask, positions - positions[:, :1] if chunk else positions


def keep_beams(reorder, cache, beams):
    """Do not follow the beams."""


def recompute_otherwise(change, solve, layer, *states, recompute_evaluations=False, **kwargs):
    output, iterates = solve(layer, *states, recompute_evaluations=recompute_evaluations, **kwargs)
    return change(output) if recompute_evaluations else output, iterates


def mean_over_all(_, model, logits, labels, **kwargs):
    """A loss that divides by the tokens without a label as well."""
    total = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    return total / labels[:, 1:].numel()


def mean_over_own(_, model, logits, labels, **kwargs):
    """A loss that does not heed the number of tokens in the whole batch."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


recompute_more = functools.partial(recompute_otherwise, lambda output: output * 1.001)
recompute_detached = functools.partial(recompute_otherwise, torch.Tensor.detach)
FAULTS = {
    "read last slot": (IterativeLayer, "solve", read_last_slot, CACHED),
    "write to one slot": (IIETModel, "assign_slots", write_to_one_slot, CACHED | {STATIC}),
    "other tokens": (IIETForCausalLM, "forward", roll_cached_logits, CACHED | TOKENS),
    "forget padding": (IIETModel, "prepare", forget_padding, {"left-padded = single: logits"}),
    "late in a static cache": (IIETModel, "prepare", late_in_a_static_cache, {STATIC}),
    "restart in chunks": (IIETModel, "prepare", restart_in_chunks, {"chunked prefill = whole"}),
    "keep beams": (DynamicCache, "reorder_cache", keep_beams, {"beam search: cached = uncached"}),
    "recompute more": (IterativeLayer, "solve", recompute_more, {RECOMPUTE}),
    "recompute detached": (IterativeLayer, "solve", recompute_detached, {RECOMPUTE}),
    "mean over all": (IIETForCausalLM, "loss_function", mean_over_all, {"accumulated = whole batch"}),
    "mean over own": (IIETForCausalLM, "loss_function", mean_over_own, {"accumulated = whole batch"}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_fails_the_claims_that_are_about_it_and_no_others(name, check, monkeypatch):
    owner, method, fault, seen = FAULTS[name]
    plant(monkeypatch, owner, method, fault)
    found = check(new_tokens=16 if name in ("keep beams", "read last slot") else 5)
    # A fault that changes logits need not change the greedy tokens of a few steps.
    assert failed(found) - TOKENS == seen - TOKENS
    if name == "recompute detached":
        assert "has a gradient in one of the two only" in note(found, RECOMPUTE)
    figures = {result.name: result.figure for result in found.results}
    if name == "read last slot":
        assert figures["cached = uncached: logits"] > 0.1
    if name == "other tokens":
        assert figures["cached = uncached: greedy tokens"] == 2 * 4  # all but the first of each sequence


def save_changed(save, model, folder, *args, change, **kwargs):
    """Let a change of the model go into what is saved, and be undone in the model."""
    before, config = {name: tensor.clone() for name, tensor in model.state_dict().items()}, model.config
    model.config = copy.deepcopy(config)
    with torch.no_grad():
        change(model)
    save(model, folder, *args, **kwargs)
    model.config = config
    model.load_state_dict(before)


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (lambda model: model.model.norm.weight.mul_(1 + 1e-6), SAVED),
        # Plan [0, 2]: the first layer does not use this norm.
        (lambda model: model.model.layers[0].corrector.update_norm.bias.add_(1), UNUSED),
        (lambda model: setattr(model.config, "num_iterations", [0, 1]), SAVED),
        (lambda model: setattr(model.config, "attention_dropout", 0.5), UNUSED),
    ],
    ids=["rounded", "unused tensor", "plan", "unused field"],
)
def test_a_saved_model_that_changes_fails(change, seen, check, monkeypatch):
    plant(monkeypatch, IIETForCausalLM, "save_pretrained", functools.partial(save_changed, change=change))
    few = ("cached = uncached: logits", "another plan and back = itself", *SAVED)
    assert failed(check(only=few)) == seen


def test_a_model_that_cannot_be_saved_fails_and_the_others_go_on(check, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(IIETForCausalLM, "save_pretrained", full)
    found = check(only=[*SAVED, "loaded with own plan = itself"])
    assert failed(found) == SAVED
    assert note(found, "saved = reloaded: logits") == "OSError: [Errno 28] No space left on device"
    assert outcomes(found)["loaded with own plan = itself"] == "passed"


def import_iiad(save, model, folder, *args, **kwargs):
    save(model, folder, *args, **kwargs)
    with (folder / "solvers.py").open("a") as file:
        file.write("\nfrom iiad.errors import InputError\n")


def forget_auto_model(save, model, folder, *args, **kwargs):
    save(model, folder, *args, **kwargs)
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]["AutoModel"]
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        pytest.param(import_iiad, "iiad", marks=pytest.mark.slow),
        (forget_auto_model, "config.json: expected AutoModel, got none"),
    ],
)
def test_a_saved_folder_without_its_code_or_auto_classes_fails(fault, words, check, monkeypatch):
    plant(monkeypatch, IIETForCausalLM, "save_pretrained", fault)
    found = check(only=["saved = reloaded: logits", "remote code = native"])
    assert failed(found) == {"remote code = native"}
    assert words in note(found, "remote code = native")


def one_cross_slot_for_all(init, layer, *args):
    init(layer, *args)
    layer.cross_slot.layer_idx = 0


def forget_the_sources_padding(attended, decoder, embeds, states, mask):
    return attended(decoder, embeds, states, None)


def encode_padding(prepare, encoder, input_ids, mask=None, **kwargs):
    return prepare(encoder, input_ids, None, **kwargs)


@pytest.mark.parametrize(
    ("owner", "name", "fault", "expected"),
    [
        (CrossIterativeLayer, "__init__", one_cross_slot_for_all, CACHED),
        (IIETSeq2SeqDecoder, "attended_source", forget_the_sources_padding, {"left-padded = single: logits"}),
        (IIETSeq2SeqEncoder, "prepare", encode_padding, {"left-padded = single: logits"}),
    ],
    ids=["one cross slot", "source's padding attended to", "source's padding encoded"],
)
def test_a_fault_of_an_encoder_decoder_fails_the_claims_about_it(
    owner, name, fault, expected, model_folder, monkeypatch
):
    folder = model_folder("seq2seq")
    plant(monkeypatch, owner, name, fault)
    assert failed(quick_check(folder)) - TOKENS == expected


def test_what_stops_the_process_without_iiad_is_told(check, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os\nassert os.environ['HF_HUB_OFFLINE'] == '1'\nraise ImportError('no such thing')"
    )
    claim = Claim("remote", "logits", False, functools.partial(remote_logits, script=script))
    found = note(check(claims=[claim]), "remote")
    assert found == "RuntimeError: without iiad: ImportError: no such thing"


def test_a_plan_that_cannot_be_taken_back_fails(pair, monkeypatch):
    def only_fewer(self):
        wanted = self.config.iterations[self.layer]
        self.least = min(getattr(self, "least", wanted), wanted)
        return self.least

    def assign_and_read(self):
        assign(self)
        assert all(layer.num_iterations >= 0 for layer in self.layers)

    assign = IIETModel.assign_slots
    monkeypatch.setattr(IIETModel, "assign_slots", assign_and_read)
    monkeypatch.setattr(IterativeLayer, "num_iterations", property(only_fewer))
    found = quick_check(pair / "student", teacher=pair / "teacher", plan=pair / "plan.json")
    assert {"another plan and back = itself", "full plan = teacher"} <= failed(found)
    assert "teacher loaded = set to the plan" not in failed(found)


def test_a_plan_that_is_not_heeded_when_loading_fails(pair, monkeypatch):
    monkeypatch.setattr(IIETForCausalLM, "set_num_iterations", lambda self, *plan: None)
    found = quick_check(pair / "student", teacher=pair / "teacher", plan=pair / "plan.json")
    assert failed(found) == {"full plan = teacher", "teacher loaded = set to the plan"}


def test_logits_that_are_no_numbers_fail_and_can_be_written_down(check, monkeypatch, tmp_path):
    def overflow(forward, *args, **kwargs):
        out = forward(*args, **kwargs)
        if out.last_hidden_state.shape[1] > 2:  # so many tokens are tried when a model is loaded
            out.last_hidden_state = out.last_hidden_state * float("inf")
        return out

    plant(monkeypatch, IIETModel, "forward", overflow)
    found = check()
    assert "NaN or infinity" in note(found, "cached = uncached: logits")
    assert {name for name, outcome in outcomes(found).items() if outcome == "passed"} <= UNUSED
    found.save(tmp_path / "check.json")
