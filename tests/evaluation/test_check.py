"""`iiad check`: sound models pass, what does not apply is skipped; the artefact, its table and the exit codes."""

from functools import partial

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from iiad.checkpoints import save_checkpoint
from iiad.evaluation import checks
from iiad.evaluation.check_artefact import Check, CheckResult
from iiad.evaluation.checks import CLAIMS
from iiad.evaluation.claims import Subject, logit_difference, worst
from iiad.evaluation.decoding_claims import count_unlikely_tokens
from iiad.evaluation.loading_claims import fits_teacher
from iiad.evaluation.training_claims import Gradients, gradient_difference
from iiad.models import IIETForCausalLM
from iiad.reporting.check_tables import check_table
from tests.helpers import make_iiet, make_llama, make_model, make_pcformer, printed

from .conftest import IN_PROCESS, KINDS, PLAN, failed, note, outcomes, quick_check

ABOUT_TEACHERS = {"full plan = teacher", "teacher loaded = set to the plan", "model fits the teacher"}
ABOUT_PLANS = {"another plan and back = itself", "loaded with own plan = itself"}


@pytest.fixture
def iiad(iiad, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    return iiad


@pytest.mark.parametrize(
    ("claims", "counts"),
    [
        (IN_PROCESS, "20 claims: 18 passed, 0 failed, 2 skipped"),
        pytest.param(CLAIMS, "23 claims: 19 passed, 0 failed, 4 skipped", marks=pytest.mark.slow),
    ],
)
def test_a_student_passes_every_claim_and_its_table_is_shown_again_from_the_file(
    claims, counts, iiad, pair, tmp_path, monkeypatch
):
    monkeypatch.setattr(checks, "check_model", partial(checks.check_model, claims=claims))
    output = tmp_path / "check.json"
    arguments = (
        *("check", pair / "student", "--teacher", pair / "teacher", "--plan", pair / "plan.json"),
        *("--no-compile", "--prompt-tokens", 8, "--new-tokens", 5, "--seed", 2, "--output", output),
    )
    output.write_text("mine")
    code, _, err = iiad(*arguments)
    assert (code, output.read_text()) == (2, "mine")
    assert "exists already" in err
    code, out, _ = iiad(*arguments, "--overwrite")
    assert code == 0
    assert counts in out
    assert "skipped: compiled = eager: not asked for (--no-compile)" in out
    row = next(line for line in out.splitlines() if line.startswith("cached = uncached: logits"))
    assert row.split()[4] == "passed"
    assert row.split()[6:] == ["1.0e-04", "of", "logits'", "std"]
    check = Check.load(output)
    assert [result.name for result in check.results] == [claim.name for claim in claims]
    exact = [result.figure for result in check.results if result.bound == 0 and result.outcome != "skipped"]
    assert set(exact) == {0}
    assert (check.model.num_iterations, check.teacher.num_iterations) == (PLAN, [2, 2])
    assert (check.settings.seed, check.settings.rounding_bound) == (2, 1e-4)
    assert iiad("show", output)[:2] == (0, out)
    lines = printed(check_table(check), width=80, encoding="ascii").splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("left-padded = single: greedy tokens  passed") for line in lines)


def test_a_fault_is_exit_code_1_with_the_table_and_the_file(iiad, pair, tmp_path, monkeypatch):
    name, output = "another plan and back = itself", tmp_path / "check.json"

    def refuse(self, *plan):
        raise RuntimeError("no other plan\ntoday")

    monkeypatch.setattr(IIETForCausalLM, "set_num_iterations", refuse)
    few = [claim for claim in IN_PROCESS if claim.name in (name, "cached = uncached: logits")]
    monkeypatch.setattr(checks, "check_model", partial(checks.check_model, claims=few))
    code, out, err = iiad("check", pair / "teacher", "--output", output)
    assert (code, err.count("Traceback")) == (1, 0)
    row = next(line for line in out.splitlines() if line.startswith(name))
    assert row.split()[6:9] == ["FAILED", "-", "0"]
    assert f"failed: {name}: RuntimeError: no other plan today" in out
    assert "1 passed, 1 failed" in out
    assert not Check.load(output).passed


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.slow] * (kind in ("plain", "relaxed"))) for kind in KINDS],
)
def test_a_sound_model_of_any_kind_passes_what_applies_to_it(kind, model_folder):
    found = outcomes(quick_check(model_folder(kind)))
    skipped = {*ABOUT_TEACHERS, "model runs the plan", "compiled = eager"}
    if kind != "adaptive":
        skipped.add("cached = uncached: tokens that stop")
    if kind == "llama":
        skipped |= {*ABOUT_PLANS, "recompute by evaluation = none"}
    assert {name for name, outcome in found.items() if outcome == "skipped"} == skipped
    assert "failed" not in found.values()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["history", "relaxed", "pcformer-rk2", "llama", "seq2seq"])
def test_compiled_models_pass_too(kind, model_folder):
    check = quick_check(model_folder(kind), claims=CLAIMS, compile=True)
    assert (outcomes(check)["compiled = eager"], note(check, "compiled = eager")) == ("passed", "")
    assert not failed(check)


def test_a_model_of_another_plan_vocabulary_or_depth_fails_those_claims_alone(pair, tmp_path):
    given = {"teacher": pair / "teacher", "plan": pair / "plan.json"}
    check = quick_check(pair / "teacher", **given)
    assert failed(check) == {"model runs the plan"}
    assert figure(check, "model runs the plan") == 1
    save_checkpoint(make_iiet(vocab_size=130, num_layers=1, num_iterations=1), tmp_path / "other")
    check = quick_check(tmp_path / "other", **given, only=[*ABOUT_TEACHERS, "model runs the plan"])
    assert failed(check) == {"model runs the plan", "model fits the teacher"}
    assert figure(check, "model fits the teacher") == 3
    assert "plan: expected 2 layers, got 1" in note(check, "model runs the plan")


def figure(check, name):
    return next(result.figure for result in check.results if result.name == name)


@pytest.mark.parametrize(
    ("model", "teacher", "num_fields"),
    [
        (make_pcformer, partial(make_pcformer, predictor_order=4), 1),
        (make_pcformer, partial(make_pcformer, coefficients="fixed"), 1),
        (partial(make_iiet, attention_bias=True, rms_norm_eps=1e-3), make_iiet, 3),  # o_proj's bias follows
        (partial(make_iiet, attention_output_bias=False), make_iiet, 0),  # as attention_bias says
        (partial(make_iiet, num_iterations=1, max_num_iterations=1), make_iiet, 1),
        (partial(make_iiet, num_iterations=1, max_num_iterations=3), make_iiet, 0),
        (partial(make_iiet, cache_policy="shared", eos_token_id=[2], attention_dropout=0.1), make_iiet, 0),
        (partial(make_pcformer, predictor_stages=1), make_pcformer, 0),
        (partial(make_iiet, rope_parameters={"rope_type": "default", "rope_theta": 5e5}), make_iiet, 1),
        (partial(make_llama, hidden_act="gelu"), make_iiet, None),
    ],
)
def test_a_model_fits_its_teacher_but_for_what_is_a_students_own(model, teacher, num_fields):
    subject = Subject(model(), None, None, None, Subject(teacher(), None, None, None))
    found = fits_teacher(subject)
    assert found == num_fields if num_fields is not None else found > 0


def test_a_teacher_without_a_plan_is_tried_with_the_models_own(pair):
    names = {*ABOUT_TEACHERS, "model runs the plan"}
    check = quick_check(pair / "student", teacher=pair / "teacher", only=names)
    assert outcomes(check) == {**dict.fromkeys(names, "passed"), "model runs the plan": "skipped"}
    assert note(check, "model runs the plan") == "no plan given"


def test_in_bfloat16_the_bound_is_wider_and_saving_still_exact(model_folder):
    names = ["cached = uncached: logits", "accumulated = whole batch", "saved = reloaded: logits"]
    check = quick_check(model_folder("history"), dtype="bfloat16", only=names)
    assert outcomes(check) == dict.fromkeys(names, "passed")
    assert [result.bound for result in check.results] == [checks.ROUNDING_BOUNDS["bfloat16"]] * 2 + [0]


def test_a_model_with_learned_positions_is_checked_by_its_own_abilities(tmp_path):
    sizes = {"vocab_size": 97, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64}
    gpt2 = make_model(GPT2LMHeadModel, GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))
    save_checkpoint(gpt2, tmp_path / "gpt2")
    check = quick_check(tmp_path / "gpt2")
    assert not failed(check)
    assert outcomes(check)["left-padded = single: logits"] == "passed"
    assert outcomes(check)["recompute by layer = none"] == "passed"


def test_an_ability_that_a_model_lacks_is_skipped_with_the_reason(model_folder, monkeypatch):
    reasons = {
        "static cache = dynamic cache": "supports no static cache",
        "compiled = eager": "supports no static cache",
        "recompute by layer = none": "supports no gradient checkpointing",
    }
    monkeypatch.setattr(LlamaForCausalLM, "_can_compile_fullgraph", False)
    monkeypatch.setattr(LlamaForCausalLM, "supports_gradient_checkpointing", False)
    check = quick_check(model_folder("llama"), compile=True, only=reasons)
    assert set(outcomes(check).values()) == {"skipped"}
    assert all(words in note(check, name) for name, words in reasons.items())


def test_a_model_without_a_cache_is_checked_for_the_rest(model_folder, monkeypatch):
    forward = LlamaForCausalLM.forward

    def uncached(self, input_ids=None, attention_mask=None, position_ids=None, labels=None, use_cache=None):
        return forward(self, input_ids, attention_mask, position_ids, labels=labels, use_cache=False)

    monkeypatch.setattr(LlamaForCausalLM, "forward", uncached)
    check = quick_check(model_folder("llama"))
    assert not failed(check)
    assert "takes no cache" in note(check, "cached = uncached: logits")
    assert outcomes(check)["accumulated = whole batch"] == "passed"


COMPILED = {"only": ["compiled = eager"], "compile": True, "new_tokens": 2}


def refuse_to_compile(*args, **kwargs):
    raise RuntimeError("\nno C++ compiler\nsecond line")


def compile_wrongly(forward, fullgraph=False, **options):
    def run(**inputs):
        out = forward(**inputs)
        out.logits = out.logits * 1.001
        return out

    return run if fullgraph else forward  # a model, or the compiler's own trial


@pytest.mark.parametrize(
    ("compiler", "outcome", "words"),
    [(refuse_to_compile, "skipped", "got an error on cpu: no C++ compiler"), (compile_wrongly, "failed", "")],
)
def test_compiled_is_compared_with_eager_where_there_is_a_compiler(
    compiler, outcome, words, model_folder, monkeypatch
):
    monkeypatch.setattr(torch, "compile", compiler)
    check = quick_check(model_folder("history"), **COMPILED)
    assert outcomes(check) == {"compiled = eager": outcome}
    assert words in note(check, "compiled = eager")


@pytest.mark.parametrize(
    "make",
    [
        partial(make_iiet, num_layers=1, num_iterations=1),
        *(
            pytest.param(KINDS[kind], marks=pytest.mark.slow)
            for kind in ("shared", "pcformer-rk2", "seq2seq")
        ),
    ],
)
def test_a_sound_model_traced_as_one_graph_is_the_eager_one(make, tmp_path, monkeypatch):
    save_checkpoint(make(), tmp_path / "model")
    # What inductor makes of the graph is torch's business; that there is one, and that it is right, is ours.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    counters = torch._dynamo.utils.counters
    counters.clear()
    assert outcomes(quick_check(tmp_path / "model", **COMPILED))["compiled = eager"] == "passed"
    assert counters["stats"]["unique_graphs"] == 2  # the compiler's own trial, and the step


def test_the_same_seed_gives_the_same_check_and_the_file_holds_it_all(model_folder, tmp_path):
    few = ("cached = uncached: logits", "accumulated = whole batch", "compiled = eager")
    check, again, other = (quick_check(model_folder("history"), seed=seed, only=few) for seed in (3, 3, 4))
    assert check == again != other
    check.save(tmp_path / "check.json")
    assert Check.load(tmp_path / "check.json") == check


@pytest.mark.parametrize(
    ("outcome", "figure"),
    [("passed", 1.0), ("failed", 0.1), ("skipped", 0.1), ("passed", None), ("failed", None)],
)
def test_an_outcome_that_contradicts_its_figure_is_refused(outcome, figure):
    with pytest.raises(ValueError, match="outcome: expected passed or failed as the figure says"):
        CheckResult(name="a = b", bound=0.5, unit="tokens", outcome=outcome, figure=figure)


def test_nothing_checked_is_nothing_passed(model_folder):
    assert not quick_check(model_folder("llama"), only=ABOUT_TEACHERS).passed


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
    assert str(worst([float("nan"), 2.0])) == str(worst([2.0, float("nan")])) == "nan"
    assert logit_difference(torch.ones(2), torch.zeros(2), 2.0) == 0.5
    with pytest.raises(ValueError, match=r"expected shape \(1, 2\), got \(2,\)"):
        logit_difference(torch.ones(2), torch.zeros(1, 2), 1.0)
