"""Elastic students: several nested plans learnt at once, each in its turn."""

import json
import shutil
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from iiad.checkpoints import identify_model, load_model, save_checkpoint
from iiad.checkpoints.summary import summarize_model
from iiad.distillation import LearnFromTeacher, LiveTeacher, distill
from iiad.distillation.elastic import LearnAndTeach, LearnPlans
from iiad.planning import Family, FamilyPlan
from iiad.reporting.folder_tables import describe_run
from iiad.reporting.page import render_page
from iiad.reporting.sources import gather
from iiad.training import RunRecord, loop
from iiad.training.distillation_sections import DistillationSection
from iiad.training.learner import LanguageModelling, Learner
from iiad.training.run_status import read_run
from iiad.training.scoring import TokenScore
from iiad.training.turns import NamedPlan, sandwich, single, summarize_scores
from tests.helpers import log_of, make_iiet, refused

PLANS = {"full": [2, 2], "cut-25": [2, 1], "cut-50": [1, 1], "cut-100": [0, 0]}
NESTED = [
    NamedPlan("a", [3, 3, 3]),
    NamedPlan("b", [2, 1, 1]),
    NamedPlan("c", [1, 1, 0]),
    NamedPlan("d", [0, 0, 0]),
]


USUAL = {"save_steps": 2, "eval_steps": 2, "save_total_limit": None, "ema_decay": 0.5}


def make_file(teacher_folder, plans, path):
    identity = identify_model(load_model(teacher_folder, kind=None), teacher_folder)
    whole = sum(identity.num_iterations)
    rows = [
        FamilyPlan(name=name, cut=1 - sum(plan) / whole, num_iterations=plan) for name, plan in plans.items()
    ]
    Family(teacher=identity, plans=rows).save(path)
    return path


@pytest.fixture(scope="module")
def plans_file(teacher_folder, tmp_path_factory):
    return make_file(teacher_folder, PLANS, tmp_path_factory.mktemp("family") / "plans.json")


@pytest.fixture(scope="module")
def elastic(teacher_folder, plans_file, lesson, tmp_path_factory):
    """The finished run of both stages."""
    folder = tmp_path_factory.mktemp("elastic") / "run"
    distill(teacher_folder, plans_file, lesson(distill=4, recover=2, training=USUAL), folder)
    return folder


def weights_of(folder):
    return load_model(folder, kind=None).state_dict()


def assert_equal(before, after):
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tolerances", [[None] * 4, [None, [0.1, 0.2, 0.3], [0.4, 0.3, 0.3], None]])
def test_the_gradient_of_a_sandwich_is_the_sum_of_the_plans_own(tolerances, norms_in_float64, tokens):
    fields = {"cache_policy": "shared"} if any(tolerances) else {}
    teacher, student, other = (make_iiet(num_iterations=3, **fields).double() for _ in range(3))
    nested = [plan._replace(tolerance=at) for plan, at in zip(NESTED, tolerances, strict=True)]
    section = DistillationSection(kl_weight=2.0, hidden_weight=0.3)
    live = LiveTeacher(teacher, [0, 1, 2, 3])
    inner = LearnFromTeacher(live, section, 3)
    batch = {"input_ids": tokens, "labels": tokens}
    turns = sandwich(nested, num_between=1)
    turns.draw(seed=0, step=3)
    learner = Learner(student, LearnPlans(inner, turns, loss_weights=[1, 0.5, 0.25, 2]))
    for turn in range(turns.num_turns):
        turns.enter(student, turn)
        loss, _ = learner(batch, learner.objective.signal(batch))
        loss.backward()
    turns.leave(student)
    assert (student.config.num_iterations, student.config.tolerance) == ([3, 3, 3], None)
    wanted = {}
    for number in turns.drawn:
        other.reconfigure(num_iterations=nested[number].num_iterations, tolerance=tolerances[number])
        other.zero_grad()
        loss, _ = Learner(other, inner)(batch, inner.signal(batch))
        loss.backward()
        for name, gradient in gradients(other).items():
            wanted[name] = wanted.get(name, 0) + [1, 0.5, 0.25, 2][number] * gradient
    assert len(set(turns.drawn)) == 3
    assert gradients(student).keys() == wanted.keys()
    for name, gradient in gradients(student).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-12, atol=1e-13, msg=name)


def test_a_step_of_the_loop_adds_up_the_plans_whatever_the_micro_batches(
    teacher_folder, lesson, monkeypatch, tmp_path
):
    calm, found = load_model(teacher_folder), []
    calm.config.attention_dropout = 0.0
    save_checkpoint(calm, tmp_path / "teacher", files_from=teacher_folder)

    def remember(model, max_norm):
        found.append({name: gradient.clone() for name, gradient in gradients(model).items()})
        return torch.ones(())

    monkeypatch.setattr(loop, "clip_gradient", remember)

    def step(name, plans, size=4):
        training = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size}
        family = make_file(tmp_path / "teacher", plans, tmp_path / f"{name}.json")
        distill(tmp_path / "teacher", family, lesson(distill=1, training=training), tmp_path / name)
        return found[-1]

    three = {name: PLANS[name] for name in ("full", "cut-50", "cut-100")}
    alone = [step(name, {name: plan}) for name, plan in three.items()]
    for together in (step("whole", three), step("split", three, size=2)):
        assert together.keys() == set().union(*alone)
        for name, gradient in together.items():
            wanted = sum(each[name] for each in alone if name in each)
            torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6, msg=name)


def test_a_family_of_one_plan_is_plain_distillation_bit_for_bit(teacher_folder, plan_file, lesson, tmp_path):
    family = make_file(teacher_folder, {"cut-50": [2, 0]}, tmp_path / "plans.json")
    for name, budget in (("plain", plan_file), ("family", family)):
        distill(teacher_folder, budget, lesson(distill=3, recover=2, hidden_weight=0.1), tmp_path / name)
    assert_equal(weights_of(tmp_path / "plain"), weights_of(tmp_path / "family"))
    plain, elastic = (log_of(tmp_path / name) for name in ("plain", "family"))
    for before, after in zip(plain, elastic, strict=True):
        assert {**before, "seconds": 0, "tokens_per_second": 0, "memory_bytes": 0} == {
            **after,
            "seconds": 0,
            "tokens_per_second": 0,
            "memory_bytes": 0,
        }


def test_the_student_lists_its_plans_with_their_figures_and_runs_the_largest(elastic, plans_file):
    config = AutoModelForCausalLM.from_pretrained(elastic).config
    assert config.num_iterations == [2, 2]
    assert {each["name"]: each["num_iterations"] for each in config.plans} == PLANS
    assert all(0 < each["nll"] < 7 and 0 <= each["accuracy"] <= 1 for each in config.plans)
    results = RunRecord.load(elastic / "run.json").results
    assert [each["name"] for each in results["plans"]] == list(PLANS)
    assert results["plans"][0]["validation_nll"] == results["validation_nll"] == config.plans[0]["nll"]
    assert results["single_students_evaluations_per_token"] == 6 + 5 + 4 + 2
    assert 6 + 4 + 2 < results["trained_evaluations_per_token"] < 6 + 5 + 2
    card = (elastic / "README.md").read_text()
    assert f"| cut-50 | [1, 1] | {config.plans[2]['nll']:.4f} | " in card
    assert "from_pretrained(folder, num_iterations=[0, 0])" in card
    shown = describe_run(read_run(elastic))
    assert "elastic      trained for the plans full, cut-25, cut-50, cut-100" in shown
    checkpoint = json.loads((elastic / "stage-1-distill" / "checkpoint-2" / "config.json").read_text())
    assert [each["num_iterations"] for each in checkpoint["plans"]] == list(PLANS.values())
    assert checkpoint["num_iterations"] == [2, 2]


def test_the_page_of_an_elastic_student_has_its_plans_which_are_checked(elastic, plans_file, tmp_path):
    text = render_page(gather([elastic, plans_file]))
    config = AutoModelForCausalLM.from_pretrained(elastic).config
    assert "one student for every budget" in text
    assert all(f"{each['nll']:.4f}" in text for each in config.plans)
    assert "family: nested plans" in text

    shutil.copytree(elastic, tmp_path / "broken")
    fields = json.loads((elastic / "config.json").read_text())
    fields["plans"][1]["num_iterations"] = "2, 1"
    (tmp_path / "broken" / "config.json").write_text(json.dumps(fields))
    with refused("config.json: plans.1.num_iterations: expected "):
        summarize_model(tmp_path / "broken")


def test_losses_are_logged_by_role_and_validation_by_plan(elastic):
    for stage, parts in (("distill", {"ce", "kl"}), ("recover", {"ce"})):
        for entry in log_of(elastic, stage):
            roles = ("largest", "between", "smallest")
            assert entry["loss"] == pytest.approx(sum(entry[f"loss_{role}"] for role in roles), rel=1e-5)
            assert all(f"{part}_{role}" in entry for part in parts for role in roles)
    for entry in log_of(elastic, name="eval_loss"):
        losses = [entry[f"eval_loss_{name}"] for name in PLANS]
        assert entry["eval_loss"] == pytest.approx(sum(losses) / 4)
        assert entry["retained"] == min(entry[f"retained_{name}"] for name in PLANS)


@pytest.mark.parametrize(
    "section",
    [{}, {"rule": "single"}, pytest.param({"teacher": "self"}, marks=pytest.mark.slow)],
    ids=["sandwich", "single", "self"],
)
def test_a_killed_run_goes_on_bit_for_bit(section, teacher_folder, plans_file, lesson, elastic, tmp_path):
    recipe = lesson(distill=4, recover=2, training=USUAL, elastic=section)
    whole, killed = elastic, tmp_path / "killed"
    if section:
        whole = tmp_path / "whole"
        distill(teacher_folder, plans_file, recipe, whole)
    stage = "stage-1-distill"
    shutil.copytree(whole, killed, ignore=shutil.ignore_patterns("checkpoint-4", "stage-2-*", "config.json"))
    shutil.copytree(whole / stage / "checkpoint-2", killed / stage / "checkpoint-2", dirs_exist_ok=True)
    record = RunRecord.load(killed / "run.json")
    record.model_copy(update={"finished": False, "results": {}}).save(killed / "run.json")
    distill(teacher_folder, plans_file, recipe, killed, resume=True)
    assert_equal(weights_of(whole), weights_of(killed))
    before, after = (log_of(folder, name=None) for folder in (whole, killed))
    assert [entry.get("loss") for entry in before] == [entry.get("loss") for entry in after]


def test_draws_follow_from_seed_and_step_by_their_weights_and_no_plan_runs_twice():
    plans = [NamedPlan(str(n), [9 - n]) for n in range(6)]
    turns = sandwich(plans, num_between=2, weights=[1, 0, 2, 7])
    assert turns.num_turns == 4
    drawn = []
    for step in range(2000):
        turns.draw(5, step)
        drawn.append(turns.drawn)
    assert all(each[0] == 0 and each[-1] == 5 and sorted(set(each)) == each for each in drawn)
    assert not any(2 in each for each in drawn)
    turns.draw(5, 17)
    assert turns.drawn == drawn[17]
    one = sandwich(plans, weights=[1, 0, 2, 7])
    counts = Counter()
    for step in range(3000):
        one.draw(0, step)
        counts[one.drawn[1]] += 1
    assert [counts[number] / 3000 for number in (1, 3, 4)] == pytest.approx([0.1, 0.2, 0.7], abs=0.03)


@pytest.mark.parametrize(
    ("num_plans", "num_between", "count"), [(1, 3, 1), (2, 3, 2), (3, 3, 3), (5, 0, 2), (5, 2, 4)]
)
def test_a_step_has_as_many_turns_as_there_are_plans_to_run(num_plans, num_between, count):
    turns = sandwich([NamedPlan(str(n), [9 - n]) for n in range(num_plans)], num_between)
    turns.draw(0, 1)
    assert len(set(turns.drawn)) == len(turns.drawn) == turns.num_turns == count
    assert {0, num_plans - 1} <= set(turns.drawn)


def test_a_single_plan_of_all_is_drawn_for_each_step_by_its_weight():
    plans = [NamedPlan(str(n), [9 - n]) for n in range(4)]
    turns, again, counts = single(plans, [4, 0, 1, 5]), single(plans, [4, 0, 1, 5]), Counter()
    assert turns.num_turns == 1
    for step in range(3000):
        turns.draw(3, step)
        (number,) = turns.drawn
        counts[number] += 1
    assert [counts[number] / 3000 for number in range(4)] == pytest.approx([0.4, 0, 0.1, 0.5], abs=0.03)
    turns.draw(3, 17)
    again.draw(3, 17)
    assert turns.drawn == again.drawn


def test_a_step_of_a_single_plan_is_plain_distillation_under_that_plan(
    teacher_folder, plans_file, lesson, tmp_path
):
    turns = single([NamedPlan(*each) for each in PLANS.items()])

    def plan_of(seed):
        turns.draw(seed + 1, 0)  # stage distill has the second of the run's seeds
        return list(PLANS)[turns.drawn[0]]

    for name in ("cut-25", "cut-100"):
        training = {"seed": next(seed for seed in range(100) if plan_of(seed) == name)}
        drawn, alone = (tmp_path / f"{name}-{which}" for which in ("drawn", "alone"))
        one = make_file(teacher_folder, {name: PLANS[name]}, tmp_path / f"{name}.json")
        recipe = lesson(distill=1, training=training, elastic={"rule": "single"})
        distill(teacher_folder, plans_file, recipe, drawn)
        distill(teacher_folder, one, lesson(distill=1, training=training), alone)
        assert_equal(weights_of(drawn), weights_of(alone))
        results = RunRecord.load(drawn / "run.json").results
        assert [each["name"] for each in results["plans"]] == list(PLANS)
        assert results["trained_evaluations_per_token"] == pytest.approx((6 + 5 + 4 + 2) / 4, abs=0.2)


def test_the_largest_plan_learns_from_the_text_whenever_it_is_drawn(tokens):
    student, turns = make_iiet(num_iterations=3), single(NESTED)
    batch = {"input_ids": tokens, "labels": tokens}
    inner = LearnFromTeacher(LiveTeacher(make_iiet(num_iterations=3)), DistillationSection(), 3)
    learner, drawn = Learner(student, LearnPlans(inner, turns, LanguageModelling())), set()
    for step in range(12):
        turns.draw(0, step)
        turns.enter(student, 0)
        signal = learner.objective.signal(batch)
        loss, _ = learner(batch, signal)
        own = LanguageModelling() if turns.drawn == [0] else inner
        assert loss.item() == Learner(student, own)(batch, signal)[0].item()
        drawn |= set(turns.drawn)
    assert drawn == {0, 1, 2, 3}


def test_a_student_that_teaches_itself_hands_its_largest_plans_output_on_detached(tokens):
    student, copy = make_iiet(num_iterations=3), make_iiet(num_iterations=3)
    batch, turns = {"input_ids": tokens, "labels": tokens}, sandwich(NESTED)
    section = DistillationSection(hidden_weight=0.5)
    inner = LearnFromTeacher(None, section, 3)
    learner = Learner(student, LearnPlans(inner, turns, LearnAndTeach([0, 1, 2, 3])))
    turns.enter(student, 0)
    loss, parts = learner(batch, learner.objective.signal(batch))
    plain, _ = Learner(student, LanguageModelling())(batch)
    assert loss.item() == plain.item() == parts["loss_largest"].item()
    turns.enter(student, 2)
    loss, parts = learner(batch, None)
    loss.backward()
    teacher = LearnFromTeacher(LiveTeacher(copy, [0, 1, 2, 3]), section, 3)
    other = make_iiet(num_iterations=3)
    other.set_num_iterations([0, 0, 0])
    wanted, _ = Learner(other, teacher)(batch, teacher.signal(batch))
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    for name, gradient in gradients(other).items():
        torch.testing.assert_close(gradients(student)[name], gradient, msg=name)


def test_the_largest_plan_may_learn_from_the_text_alone(teacher_folder, plans_file, lesson, tmp_path):
    recipe = lesson(distill=2, elastic={"largest": "text", "num_between": 2, "loss_weights": [1, 1, 2, 0.5]})
    distill(teacher_folder, plans_file, recipe, tmp_path / "run")
    for entry in log_of(tmp_path / "run"):
        assert entry["loss_largest"] == entry["ce_largest"]
        assert "kl_largest" not in entry
        assert {"kl_between", "kl_smallest"} <= entry.keys()


def test_stored_signals_teach_all_plans(teacher, signals, little_text, lesson, tmp_path):
    family = make_file(
        teacher, {"full": [2, 1], "cut-33": [1, 1], "cut-100": [0, 0]}, tmp_path / "plans.json"
    )
    data = {"block_size": 16, "train": [str(little_text)]}
    recipe = lesson(distill=2, data=data, signals=str(signals), temperature=2.0, hidden_weight=0.1)
    distill(teacher, family, recipe, tmp_path / "run")
    assert {"kl_largest", "hidden_between", "kl_smallest"} <= log_of(tmp_path / "run")[0].keys()


COMPILED = {"torch_compile": True, "torch_compile_backend": "eager"}


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_checkpointing": "layer"},
        pytest.param({"gradient_checkpointing": "evaluation"}, marks=pytest.mark.slow),
        pytest.param(COMPILED, marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch warns against
def test_compiled_or_recomputed_turns_are_the_same(
    settings, teacher_folder, plans_file, lesson, elastic, tmp_path
):
    recipe = lesson(distill=4, training={**USUAL, **settings})
    distill(teacher_folder, plans_file, recipe, tmp_path / "run")
    losses = [[entry["loss"] for entry in log_of(run, "distill")] for run in (elastic, tmp_path / "run")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_cuts_need_no_profile(teacher_folder, lesson, tmp_path):
    recipe = lesson(distill=1, elastic={"cuts": [0, 0.3, 1]})
    distill(teacher_folder, None, recipe, tmp_path / "run")
    plans = AutoModelForCausalLM.from_pretrained(tmp_path / "run").config.plans
    assert [each["num_iterations"] for each in plans] == [[2, 2], [1, 1], [0, 0]]


def test_an_encoder_decoder_learns_plans_of_both_halves(pair_folders, cache_dir, lesson, tmp_path):
    names = {"full": [3] * 5, "cut-60": [2, 1, 1, 1, 1], "cut-100": [0] * 5}
    family = make_file(pair_folders.teacher, names, tmp_path / "plans.json")
    pairs = [str(pair_folders.pairs)]
    data = {"train": pairs, "validation": pairs, "max_batch_tokens": 24, "block_size": None}
    training = {"per_device_train_batch_size": 8, "eval_steps": 1}
    recipe = lesson(distill=2, recover=1, data=data, training=training)
    distill(pair_folders.teacher, family, recipe, tmp_path / "run")
    config = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run").config
    assert config.iterations == [3] * 5
    assert {each["name"]: each["num_iterations"] for each in config.plans} == names
    assert "eval_loss_cut-60" in log_of(tmp_path / "run", name="eval_loss")[0]


def test_the_smaller_plans_come_nearer_to_the_teacher():
    teacher, student = make_iiet(num_iterations=3), make_iiet(num_iterations=3)
    section, turns = DistillationSection(ce_weight=0.0), sandwich(NESTED)
    objective = LearnFromTeacher(LiveTeacher(teacher), section, 3)
    learner = Learner(student, LearnPlans(objective, turns))
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.002)
    ids = torch.randint(3, 90, (25, 4, 16), generator=torch.Generator().manual_seed(0))

    def losses():
        batch, found = {"input_ids": ids[0], "labels": ids[0]}, []
        for plan in NESTED:
            student.set_num_iterations(plan.num_iterations)
            found.append(Learner(student, objective)(batch, objective.signal(batch))[0].item())
        student.set_num_iterations(NESTED[0].num_iterations)
        return found

    before = losses()
    for step, tokens in enumerate(ids[1:]):
        batch = {"input_ids": tokens, "labels": tokens}
        turns.draw(0, step)
        for turn in range(turns.num_turns):
            turns.enter(student, turn)
            learner(batch, objective.signal(batch))[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    after = losses()
    assert before[0] == 0
    assert all(new < 0.8 * old for new, old in zip(after[2:], before[2:], strict=True)), (before, after)


def test_retention_is_that_of_the_plan_that_retains_least():
    scores = {"full": TokenScore(10, 1.0, 0.5), "cut-50": TokenScore(10, 2.0, 0.25)}
    figures = summarize_scores(scores, TokenScore(10, 1.0, 0.5))
    assert (figures["retained"], figures["retained_full"], figures["retained_cut-50"]) == (0.5, 1, 0.5)
    assert (figures["eval_loss"], figures["eval_accuracy"]) == (1.5, 0.375)
    assert summarize_scores({"full": scores["full"]}, None) == {"eval_loss": 1.0, "eval_accuracy": 0.5}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"elastic": {"cuts": [0, 1]}}, "distillation.elastic.cuts: expected none with a plan file"),
        ({"elastic": {"weights": [1.0]}}, "weights: expected 2 numbers, one a plan between the largest"),
        ({"elastic": {"rule": "single", "weights": [1.0]}}, "weights: expected 4 numbers, one a plan, got 1"),
        ({"elastic": {"loss_weights": [1.0]}}, "loss_weights: expected 4 numbers, one a plan, got 1"),
        ({"layerwise": 1}, "distillation.layerwise.max_steps: expected 0 with nested plans"),
    ],
)
def test_what_does_not_go_with_a_family_is_refused(
    section, message, teacher_folder, plans_file, lesson, tmp_path
):
    with refused(message):
        distill(teacher_folder, plans_file, lesson(distill=1, **section), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_fields_of_families_need_one(teacher_folder, plan_file, lesson, tmp_path):
    with refused("distillation.elastic: expected nested plans with it"):
        distill(teacher_folder, plan_file, lesson(distill=1, elastic={"num_between": 2}), tmp_path / "run")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"elastic": {"cuts": [0.5, 0.5]}}, "different shares from 0 to 1"),
        ({"elastic": {"cuts": [float("nan")]}}, "cuts"),
        ({"elastic": {"cuts": []}}, "cuts"),
        ({"elastic": {"num_between": -1}}, "num_between"),
        ({"elastic": {"loss_weights": [0.0]}}, "a number above 0"),
        ({"elastic": {"rule": "single", "weights": [0.0, 0.0]}}, "(?s)weights.*a number above 0"),
        ({"elastic": {"rule": "single", "weights": [1, 0], "loss_weights": [0, 1]}}, "whose loss has one"),
        ({"elastic": {"rule": "single", "num_between": 2}}, "(?s)num_between.*1 with elastic.rule single"),
        ({"elastic": {"rule": "single", "teacher": "self"}}, "teacher with elastic.rule single"),
        ({"elastic": {"rule": "both"}}, "'sandwich' or 'single'"),
        ({"elastic": {"teacher": "self"}, "signals": "x"}, "null with elastic.teacher self"),
        ({"elastic": {"teacher": "self"}, "kl_weight": 0.0}, "teacher, where stage distill has neither"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(section, message, lesson):
    with pytest.raises(ValueError, match=message):
        lesson(distill=1, **section)


def test_the_command_line_makes_an_elastic_student(
    iiad, teacher_folder, plans_file, plan_file, little_text, tmp_path
):
    usual = ["distill", teacher_folder, "--data", little_text, "--output-dir", tmp_path / "run"]
    for arguments, message in (
        (["--plans", plans_file], "--plans: expected none without --elastic"),
        (["--cuts", "0,1"], "--cuts: expected none without --elastic"),
        (["--elastic", "--plans", plans_file, "--cuts", "0,1"], "--cuts: expected none with plans.json"),
        (
            ["--elastic", "--plans", plan_file],
            "plans: expected nested plans, as of `iiad plan --family`, got one",
        ),
        (["--elastic", "--cuts", "0,0"], "cuts: expected each once, got 0 twice"),
    ):
        code, _, error = iiad(*usual, *arguments)
        assert code == 2
        assert message in error
    assert not (tmp_path / "run").exists()
    sets = ["distillation.distill.max_steps=1", "distillation.recover.max_steps=0", "data.block_size=32"]
    sets += ["distillation.check_teacher=false", f"data.validation=[{little_text}]"]
    words = [word for each in sets for word in ("--set", each)]
    code, out, error = iiad(*usual, "--elastic", *words)
    assert code == 0, error
    assert "  full: validation " in out
    assert "  cut-100: validation " in out
    assert "elastic: 4 plans of 6, 4, 3, 2 evaluations a token" in " ".join(error.split())
