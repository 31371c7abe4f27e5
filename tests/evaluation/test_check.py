"""What `check_model` says of models without a fault, what it skips, and its artefact."""

import json
from functools import partial

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from iiad import InputError
from iiad.checkpoints import save_checkpoint
from iiad.evaluation import checks as runner
from iiad.evaluation import decoding_claims as decoding
from iiad.evaluation.check_artefact import Check
from iiad.evaluation.checks import CLAIMS
from iiad.evaluation.claims import (
    Gradients,
    count_unlikely_tokens,
    gradient_difference,
    logit_difference,
    worst,
)
from tests.helpers import make_iiet, make_llama, make_pcformer

from .conftest import BUDGET, KINDS, failed, note, outcomes, quick_check

ABOUT_TEACHERS = {"full plan = teacher", "teacher loaded = set to the plan", "model fits the teacher"}
ABOUT_PLANS = {"another plan and back = itself", "loaded with own plan = itself"}


@pytest.mark.usefixtures("without_remote_code")
@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_model_of_any_kind_passes_what_applies_to_it(kind, model_folder):
    found = outcomes(quick_check(model_folder(kind)))
    skipped = {*ABOUT_TEACHERS, "model runs the plan", "compiled = eager"}
    if kind == "llama":
        skipped |= {*ABOUT_PLANS, "recompute by evaluation = none"}
    assert {name for name, outcome in found.items() if outcome == "skipped"} == skipped
    assert {name for name, outcome in found.items() if outcome == "failed"} == set()


def test_a_student_passes_every_claim_beside_its_teacher_and_plan(pair):
    check = quick_check(pair / "student", teacher=pair / "teacher", plan=pair / "plan.json")
    assert check.passed
    assert [result.name for result in check.results] == [claim.name for claim in CLAIMS]
    assert {result.name for result in check.results if result.outcome != "passed"} == {"compiled = eager"}
    exact = [result.figure for result in check.results if result.bound == 0]
    assert exact == [0] * len(exact)
    assert (check.model.num_iterations, check.teacher.num_iterations) == (BUDGET, [3, 3, 3])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["history", "relaxed", "pcformer-rk2", "llama"])
def test_compiled_models_pass_too(kind, model_folder):
    check = quick_check(model_folder(kind), compile=True)
    assert (outcomes(check)["compiled = eager"], note(check, "compiled = eager")) == ("passed", "")
    assert not failed(check)


@pytest.mark.usefixtures("without_remote_code")
def test_a_student_that_does_not_run_the_plan_fails_that_claim_alone(pair):
    check = quick_check(pair / "teacher", teacher=pair / "teacher", plan=pair / "plan.json")
    assert failed(check) == {"model runs the plan"}
    assert next(result.figure for result in check.results if result.name == "model runs the plan") == 3


@pytest.mark.usefixtures("without_remote_code")
def test_a_model_of_another_vocabulary_and_depth_does_not_fit_the_teacher(pair, tmp_path):
    save_checkpoint(make_iiet(vocab_size=130, num_layers=2, num_iterations=1), tmp_path / "other")
    check = quick_check(tmp_path / "other", teacher=pair / "teacher", plan=pair / "plan.json")
    assert failed(check) == {"model runs the plan", "model fits the teacher"}
    assert next(result.figure for result in check.results if result.name == "model fits the teacher") == 3
    assert "found 2 layers; the plan is for 3" in note(check, "model runs the plan")


@pytest.mark.parametrize(
    ("make", "teacher", "num_fields"),
    [
        (make_pcformer, lambda: make_pcformer(predictor_order=4), 1),
        (make_pcformer, lambda: make_pcformer(coefficients="fixed"), 1),
        (
            lambda: make_iiet(attention_bias=True, rms_norm_eps=1e-3),
            make_iiet,
            3,
        ),  # the bias of o_proj follows
        (lambda: make_iiet(attention_output_bias=False), make_iiet, 0),  # as attention_bias says
        (lambda: make_iiet(num_iterations=1, max_num_iterations=1), make_iiet, 1),
        (lambda: make_iiet(num_iterations=1, max_num_iterations=3), make_iiet, 0),
        (lambda: make_iiet(cache_policy="shared", eos_token_id=[2, 3], attention_dropout=0.1), make_iiet, 0),
        (lambda: make_pcformer(predictor_stages=1), make_pcformer, 0),
        (lambda: make_iiet(rope_parameters={"rope_type": "default", "rope_theta": 5e5}), make_iiet, 1),
        (lambda: make_llama(hidden_act="gelu"), make_iiet, None),
    ],
)
def test_a_model_fits_its_teacher_but_for_what_is_a_students_own(make, teacher, num_fields, tmp_path, only):
    only("model fits the teacher")
    save_checkpoint(make(), tmp_path / "model")
    save_checkpoint(teacher(), tmp_path / "teacher")
    (result,) = quick_check(tmp_path / "model", teacher=tmp_path / "teacher").results
    assert (result.outcome == "passed") == (num_fields == 0)
    assert result.figure == num_fields or num_fields is None


@pytest.mark.usefixtures("without_remote_code")
def test_a_teacher_without_a_plan_is_tried_with_the_models_own(pair):
    check = quick_check(pair / "student", teacher=pair / "teacher")
    assert not failed(check)
    assert outcomes(check)["full plan = teacher"] == "passed"
    assert note(check, "model runs the plan") == "no plan given"


@pytest.mark.usefixtures("without_remote_code")
def test_in_bfloat16_the_bound_is_wider_and_saving_still_exact(model_folder):
    check = quick_check(model_folder("history"), dtype="bfloat16")
    assert not failed(check)
    assert {result.bound for result in check.results} == {0, runner.ROUNDING_BOUNDS["bfloat16"]}
    assert outcomes(check)["saved = reloaded: logits"] == "passed"


@pytest.mark.usefixtures("without_remote_code")
def test_a_model_with_learned_positions_is_checked_by_its_own_abilities(tmp_path):
    sizes = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    torch.manual_seed(0)
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    save_checkpoint(GPT2LMHeadModel(GPT2Config(**sizes, **ids)), tmp_path / "gpt2")
    check = quick_check(tmp_path / "gpt2")
    assert not failed(check)
    assert outcomes(check)["left-padded = single: logits"] == "passed"
    assert outcomes(check)["recompute by layer = none"] == "passed"


@pytest.mark.usefixtures("without_remote_code")
def test_an_ability_that_a_model_lacks_is_skipped_with_the_reason(model_folder, monkeypatch):
    folder = model_folder("llama")
    model_class = type(KINDS["llama"]())
    monkeypatch.setattr(model_class, "_can_compile_fullgraph", False)
    monkeypatch.setattr(model_class, "supports_gradient_checkpointing", False)
    check = quick_check(folder, compile=True)
    assert not failed(check)
    for name, words in (
        ("static cache = dynamic cache", "supports no static cache"),
        ("compiled = eager", "supports no static cache"),
        ("recompute by layer = none", "supports no gradient checkpointing"),
    ):
        assert words in note(check, name)


@pytest.mark.usefixtures("without_remote_code")
def test_a_model_without_a_cache_is_checked_for_the_rest(model_folder, monkeypatch):
    model_class = type(KINDS["llama"]())
    forward = model_class.forward

    def uncached(self, input_ids=None, attention_mask=None, position_ids=None, labels=None, use_cache=None):
        return forward(self, input_ids, attention_mask, position_ids, labels=labels, use_cache=False)

    monkeypatch.setattr(model_class, "forward", uncached)
    check = quick_check(model_folder("llama"))
    assert not failed(check)
    assert "takes no past_key_values" in note(check, "cached = uncached: logits")
    assert outcomes(check)["accumulated = whole batch"] == "passed"


def test_where_nothing_can_be_compiled_that_claim_is_skipped(model_folder, monkeypatch, only):
    only("compiled = eager", "cached = uncached: logits")

    def refuse(*args, **kwargs):
        raise RuntimeError("\nno C++ compiler\nsecond line")

    monkeypatch.setattr(torch, "compile", refuse)
    check = quick_check(model_folder("history"), compile=True)
    assert outcomes(check)["compiled = eager"] == "skipped"
    assert "nothing can be compiled on cpu here: no C++ compiler" in note(check, "compiled = eager")
    assert not failed(check)


def test_the_compiled_claim_compares_what_is_compiled_with_what_is_not(model_folder, monkeypatch, only):
    only("compiled = eager")
    monkeypatch.setattr(decoding, "require_compiler", lambda device: None)
    monkeypatch.setattr(torch, "compile", lambda forward, **options: forward)
    assert outcomes(quick_check(model_folder("history"), compile=True))["compiled = eager"] == "passed"

    def other(forward, fullgraph, dynamic):
        assert fullgraph

        def run(**inputs):
            out = forward(**inputs)
            out.logits = out.logits * 1.001
            return out

        return run

    monkeypatch.setattr(torch, "compile", other)
    assert failed(quick_check(model_folder("history"), compile=True)) == {"compiled = eager"}


@pytest.mark.parametrize(
    "kind", ["history", *(pytest.param(k, marks=pytest.mark.slow) for k in ("shared", "pcformer-rk2"))]
)
def test_a_sound_model_traced_as_one_graph_is_the_eager_one(kind, model_folder, monkeypatch, only):
    only("compiled = eager")
    monkeypatch.setattr(decoding, "require_compiler", lambda device: None)
    # What inductor makes of the graph is torch's business; that there is one, and that it is right, is ours.
    traced = partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", traced)
    counters = torch._dynamo.utils.counters
    counters.clear()
    assert (
        outcomes(quick_check(model_folder(kind), compile=True, new_tokens=2))["compiled = eager"] == "passed"
    )
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.usefixtures("without_remote_code")
def test_the_same_seed_gives_the_same_check_and_the_file_holds_it_all(model_folder, tmp_path):
    check = quick_check(model_folder("history"), seed=3)
    check.save(tmp_path / "check.json")
    again = Check.load(tmp_path / "check.json")
    assert again == check
    assert quick_check(model_folder("history"), seed=3) == check
    assert (again.settings.seed, again.settings.rounding_bound) == (3, 1e-4)


def test_where_memory_runs_out_nothing_is_said_of_the_model(tmp_path, only):
    only("cached = uncached: logits")
    save_checkpoint(make_iiet(max_position_embeddings=1 << 60), tmp_path / "model")
    with pytest.raises(InputError) as caught:
        quick_check(tmp_path / "model", prompt_tokens=1 << 50)
    line = str(caught.value)
    assert line.startswith("model on cpu: out of memory, asked for ")
    assert f"; batch 4 x {(1 << 50) + 5} tokens, 12 evaluations, " in line
    assert line.endswith("what helps: fewer prompt or new tokens, bfloat16 or another device")


@pytest.mark.parametrize(
    "change",
    [
        {"outcome": "passed", "figure": 1.0, "bound": 0.5},
        {"outcome": "failed", "figure": 0.1, "bound": 0.5},
        {"outcome": "skipped", "figure": 0.1, "bound": 0.5},
        {"outcome": "passed", "figure": None},
        {"outcome": "failed", "figure": None, "note": None},
    ],
)
def test_a_file_whose_outcome_contradicts_its_figure_is_refused(change, model_folder, tmp_path, only):
    only("cached = uncached: logits")
    fields = quick_check(model_folder("llama")).model_dump()
    fields["results"][0].update(change)
    (tmp_path / "check.json").write_text(json.dumps(fields))
    with pytest.raises(InputError, match="outcome is"):
        Check.load(tmp_path / "check.json")


def test_nothing_checked_is_nothing_passed(model_folder, only):
    only(*ABOUT_TEACHERS)
    assert not quick_check(model_folder("llama")).passed


def test_tokens_within_the_margin_of_the_likeliest_are_ties_and_nan_is_none():
    logits = torch.tensor([[[1.0, 0.9, 0.0], [1.0, 0.9, 0.0], [float("nan")] * 3]])
    assert count_unlikely_tokens(torch.tensor([[1, 2, 0]]), logits, 0.2) == 2
    assert count_unlikely_tokens(torch.tensor([[1, 2, 0]]), logits, 0.01) == 3
    assert count_unlikely_tokens(torch.tensor([[0, 0]]), logits[:, :2], 0.0) == 0


def test_a_small_parameters_gradient_counts_as_a_large_ones_and_the_loss_too():
    wanted = Gradients(2.0, {"large": torch.full((4,), 50.0), "small": torch.tensor([1.0])})
    other = Gradients(2.0, {**wanted.by_parameter, "small": torch.tensor([1.5])})
    assert gradient_difference(wanted, wanted) == 0
    assert gradient_difference(other, wanted) == pytest.approx(0.25, rel=0.01)
    assert gradient_difference(Gradients(2.2, wanted.by_parameter), wanted) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="small has a gradient in one"):
        gradient_difference(Gradients(2.0, {"large": torch.ones(4)}), wanted)


def test_figures_keep_nan_and_compare_shapes():
    assert worst([1.0, 3.0, 2.0]) == 3
    assert worst([1.0, float("nan"), 2.0]) != worst([0.0])
    assert str(worst([float("nan"), 2.0])) == str(worst([2.0, float("nan")])) == "nan"
    assert logit_difference(torch.ones(2), torch.zeros(2), 2.0) == 0.5
    with pytest.raises(ValueError, match=r"found shape \(2,\) instead of \(1, 2\)"):
        logit_difference(torch.ones(2), torch.zeros(1, 2), 1.0)
