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

from .conftest import failed, note, outcomes, quick_check

CACHED = {
    "cached = uncached: logits",
    "left-padded = single: logits",
    "chunked prefill = whole",
    "beam search: cached = uncached",
}
# A fault that changes logits need not change the greedy tokens of a few steps.
TOKENS = {"cached = uncached: greedy tokens", "left-padded = single: greedy tokens"}
SAVED = {"saved = reloaded: logits", "saved = reloaded: weights, config"}
UNUSED = {"saved = reloaded: weights, config"}


@pytest.fixture
def check(model_folder):
    """Check the IIET with history of plan [0, 2]."""
    folder = model_folder("history")  # saved before a test plants its fault
    return lambda **options: quick_check(folder, **options)


class LastSlotRead:
    """A cache as the released code has it: past keys and values are those of the layer's last evaluation."""

    def __init__(self, cache, last):
        self.cache, self.last = cache, last

    def update(self, key, value, slot):
        past = self.cache.layers[self.last]
        num_past = int(past.get_seq_length())
        own = [states.clone() for states in self.cache.update(key, value, slot)]
        if num_past and slot != self.last:
            for states, others in zip(own, (past.keys, past.values), strict=True):
                states[:, :, :num_past] = others[:, :, :num_past]
        return own


def test_a_cache_as_the_released_code_has_it_fails_whatever_decodes_with_it(check, monkeypatch):
    solve = IterativeLayer.solve

    def broken(self, *states, past_key_values, **kwargs):
        if past_key_values is not None:
            past_key_values = LastSlotRead(past_key_values, self.slots[-1].layer_idx)
        return solve(self, *states, past_key_values=past_key_values, **kwargs)

    monkeypatch.setattr(IterativeLayer, "solve", broken)
    found = check(new_tokens=16)
    assert failed(found) - TOKENS == CACHED
    figures = {result.name: result.figure for result in found.results}
    assert figures["cached = uncached: logits"] > 0.1


def test_evaluations_that_write_to_one_slot_fail_whatever_decodes_with_it(check, monkeypatch):
    assign = IIETModel.assign_slots

    def same(self):
        assign(self)
        for layer in self.layers:
            for slot in layer.slots:
                slot.layer_idx = layer.slots[0].layer_idx

    monkeypatch.setattr(IIETModel, "assign_slots", same)
    found = check()
    assert failed(found) >= CACHED
    assert outcomes(found)["saved = reloaded: logits"] == "passed"


def test_other_tokens_with_a_cache_than_without_fail(check, monkeypatch):
    forward = IIETForCausalLM.forward

    def rolled(self, input_ids=None, **kwargs):
        out = forward(self, input_ids, **kwargs)
        if kwargs.get("past_key_values") is not None and input_ids.shape[1] == 1:
            out.logits = out.logits.roll(1, -1)
        return out

    monkeypatch.setattr(IIETForCausalLM, "forward", functools.wraps(forward)(rolled))
    found = check()
    assert failed(found) == {*CACHED, *TOKENS}
    figures = {result.name: result.figure for result in found.results}
    assert figures["cached = uncached: greedy tokens"] == 2 * 4  # all but the first of each sequence


def forget_padding(mask, positions, cache):
    return None, positions


def late_in_a_static_cache(mask, positions, cache):
    decoding = isinstance(cache, StaticCache) and positions.shape[1] == 1
    return mask, positions + 1 if decoding else positions


def restarted_in_chunks(mask, positions, cache):
    chunk = cache is not None and positions.shape[1] > 1
    return mask, positions - positions[:, :1] if chunk else positions


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (forget_padding, "left-padded = single: logits"),
        (late_in_a_static_cache, "static cache = dynamic cache"),
        (restarted_in_chunks, "chunked prefill = whole"),
    ],
)
def test_a_wrong_mask_or_position_fails_the_claim_that_is_about_it(change, seen, check, monkeypatch):
    prepare = IIETModel.prepare

    def changed(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, *others):
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1])[None] + seen
        attention_mask, position_ids = change(attention_mask, position_ids, past_key_values)
        return prepare(self, input_ids, attention_mask, position_ids, past_key_values, *others)

    monkeypatch.setattr(IIETModel, "prepare", changed)
    assert failed(check()) - TOKENS == {seen}


def test_a_cache_that_does_not_follow_its_beams_fails_beam_search(check, monkeypatch):
    monkeypatch.setattr(DynamicCache, "reorder_cache", lambda self, beams: None)
    assert failed(check(new_tokens=16)) == {"beam search: cached = uncached"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda output: output * 1.001, ""),
        (torch.Tensor.detach, "has a gradient in one of the two only"),
    ],
)
def test_a_recompute_that_computes_something_else_or_loses_gradients_fails(change, words, check, monkeypatch):
    solve = IterativeLayer.solve

    def changed(self, *states, recompute_evaluations=False, **kwargs):
        output, iterates = solve(self, *states, recompute_evaluations=recompute_evaluations, **kwargs)
        return change(output) if recompute_evaluations else output, iterates

    monkeypatch.setattr(IterativeLayer, "solve", changed)
    found = check()
    assert failed(found) == {"recompute by evaluation = none"}
    assert words in note(found, "recompute by evaluation = none")


def mean_over_all(logits, labels, **_):
    """A loss that divides by the tokens without a label as well."""
    total = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    return total / labels[:, 1:].numel()


def mean_over_own(logits, labels, **_):
    """A loss that does not heed the number of tokens in the whole batch."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


@pytest.mark.parametrize("loss", [mean_over_all, mean_over_own])
def test_a_loss_that_depends_on_accumulation_fails(loss, check, monkeypatch):
    monkeypatch.setattr(IIETForCausalLM, "loss_function", staticmethod(loss))
    assert failed(check()) == {"accumulated = whole batch"}


def save_changed(monkeypatch, change):
    """Let a change of the model go into what is saved, and be undone in the model."""
    save = IIETForCausalLM.save_pretrained

    def changed(self, folder, *args, **kwargs):
        before, config = {name: tensor.clone() for name, tensor in self.state_dict().items()}, self.config
        self.config = copy.deepcopy(config)
        with torch.no_grad():
            change(self)
        save(self, folder, *args, **kwargs)
        self.config = config
        self.load_state_dict(before)

    monkeypatch.setattr(IIETForCausalLM, "save_pretrained", changed)


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
    save_changed(monkeypatch, change)
    few = ("cached = uncached: logits", "another plan and back = itself", *SAVED)
    assert failed(check(only=few)) == seen


def test_a_model_that_cannot_be_saved_fails_and_the_others_go_on(check, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(IIETForCausalLM, "save_pretrained", full)
    found = check()
    assert failed(found) == SAVED
    assert note(found, "saved = reloaded: logits") == "OSError: [Errno 28] No space left on device"
    assert outcomes(found)["loaded with own plan = itself"] == "passed"


def save_and_then(monkeypatch, change):
    save = IIETForCausalLM.save_pretrained

    def saved(self, folder, *args, **kwargs):
        save(self, folder, *args, **kwargs)
        change(folder)

    monkeypatch.setattr(IIETForCausalLM, "save_pretrained", saved)


@pytest.mark.slow
def test_saved_code_that_needs_iiad_fails_where_iiad_is_not(check, monkeypatch):
    def add_import(folder):
        with (folder / "solvers.py").open("a") as file:
            file.write("\nfrom iiad.errors import InputError\n")

    save_and_then(monkeypatch, add_import)
    found = check(only=["saved = reloaded: logits", "remote code = native"])
    assert failed(found) == {"remote code = native"}
    assert "iiad" in note(found, "remote code = native")


def test_what_stops_the_process_without_iiad_is_told(check, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os\nassert os.environ['HF_HUB_OFFLINE'] == '1'\nraise ImportError('no such thing')"
    )
    claim = Claim("remote", "logits", False, functools.partial(remote_logits, script=script))
    found = note(check(claims=[claim]), "remote")
    assert found == "RuntimeError: without iiad: ImportError: no such thing"


def test_an_auto_map_without_every_auto_class_fails(check, monkeypatch):
    def forget(folder):
        config = json.loads((folder / "config.json").read_text())
        del config["auto_map"]["AutoModel"]
        (folder / "config.json").write_text(json.dumps(config))

    save_and_then(monkeypatch, forget)
    found = check(only=["remote code = native"])
    assert note(found, "remote code = native").endswith("config.json: expected AutoModel, got none")


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
    monkeypatch.setattr(IIETForCausalLM, "set_num_iterations", lambda self, plan: None)
    found = quick_check(pair / "student", teacher=pair / "teacher", plan=pair / "plan.json")
    assert failed(found) == {"full plan = teacher", "teacher loaded = set to the plan"}


def test_logits_that_are_no_numbers_fail_and_can_be_written_down(check, monkeypatch, tmp_path):
    forward = IIETModel.forward

    def overflowing(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        out.last_hidden_state = out.last_hidden_state * float("inf")
        return out

    monkeypatch.setattr(IIETModel, "forward", overflowing)
    found = check()
    assert not found.passed
    assert "NaN or infinity" in note(found, "cached = uncached: logits")
    assert "passed" not in set(outcomes(found).values()) - {
        outcomes(found)["saved = reloaded: weights, config"]
    }
    found.save(tmp_path / "check.json")
