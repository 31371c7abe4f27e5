"""Encoder-decoders are distilled on pairs: every stage, over the targets alone, whatever the padding."""

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from iiad.data import PairBlocks, load_tokenizer, pack, resolve_inputs
from iiad.distillation import capture_signals, distill
from iiad.distillation.objectives import LearnFromTeacher, LearnLayers
from iiad.distillation.teacher_signals import LiveTeacher
from iiad.errors import Unfinished
from iiad.training import DistillRecipe, RunRecord
from iiad.training.distillation_sections import DistillationSection
from iiad.training.learner import Learner
from tests.helpers import PAIR_BUDGET, log_of, make_seq2seq, refused

OFF = {"max_steps": 0}


@pytest.fixture
def lesson(pair_folders, cache_dir):
    """Make a recipe: its stages' steps, and whatever else of section distillation, by name."""

    def make(layerwise=0, distill=0, recover=0, training=None, **section):
        steps = {"layerwise": layerwise, "distill": distill, "recover": recover}
        stages = {
            name: {"max_steps": number, "warmup_steps": 0, "learning_rate": 0.01} if number else OFF
            for name, number in steps.items()
        }
        pairs = [str(pair_folders.pairs)]
        data = {"train": pairs, "validation": pairs, "max_batch_tokens": 24, "cache_dir": str(cache_dir)}
        return DistillRecipe.model_validate(
            {
                "data": data,
                "distillation": {"check_teacher": False, **stages, **section},
                "training": {"logging_steps": 1, "save_steps": 100, **(training or {})},
            }
        )

    return make


@pytest.fixture
def batch(pair_folders, cache_dir):
    tokenizer = load_tokenizer(pair_folders.teacher)
    corpus = pack(resolve_inputs([str(pair_folders.pairs)], "train"), tokenizer, cache_dir=cache_dir)
    return PairBlocks(corpus, 64).batch(range(4))


def other_padding(batch):
    """The same batch with another token at padding."""
    batch = {name: value.clone() for name, value in batch.items()}
    batch["input_ids"][batch["attention_mask"] == 0] = 7
    batch["decoder_input_ids"][:, 1:][batch["labels"][:, :-1] < 0] = 7
    return batch


def make_pair(kind, plan):
    """A teacher and a student of its weights under a plan."""
    shape = {"vocab_size": 320, "max_num_iterations": 3}
    variants = {"history": {}, "plain": {"history": False}}
    models = [
        make_seq2seq(**shape, **variants[kind], num_iterations=2, num_encoder_iterations=2) for _ in range(2)
    ]
    models[1].set_num_iterations(plan)
    return models


def test_every_stage_runs_and_the_student_follows_the_plan_of_both_halves(pair_folders, lesson, tmp_path):
    recipe = lesson(2, 3, 2, hidden_weight=0.5, training={"eval_steps": 1})
    distill(pair_folders.teacher, pair_folders.plan, recipe, tmp_path / "student")
    student = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "student")
    assert student.config.iterations == PAIR_BUDGET
    parts = log_of(tmp_path / "student", "layerwise", "encoder_2")[0]
    assert {"encoder_1", "encoder_3", "decoder_1", "decoder_2"} <= parts.keys()
    assert {"ce", "kl", "hidden"} <= log_of(tmp_path / "student", "distill")[0].keys()
    results = RunRecord.load(tmp_path / "student" / "run.json").results
    assert results["overhead_cut"] == pytest.approx(11 / 15)
    assert {"validation_nll", "teacher_validation_nll", "retained"} <= results.keys()
    assert results["teacher_nll"] == pytest.approx(results["teacher_validation_nll"])


def test_a_resumed_distillation_ends_as_the_unbroken_one(pair_folders, lesson, tmp_path):
    given = (pair_folders.teacher, pair_folders.plan, lesson(0, 3, 1))
    distill(*given, tmp_path / "whole")
    with pytest.raises(Unfinished):
        distill(*given, tmp_path / "run", max_minutes=1e-6)
    distill(*given, tmp_path / "run", resume=True)
    models = [
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "run")
    ]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


@pytest.mark.parametrize("kind", ["history", "plain"])
def test_losses_are_those_of_the_targets_by_the_models_own_logits(kind, batch):
    teacher, student = make_pair(kind, [1, 0, 2, 0, 1])
    section = DistillationSection(hidden_weight=1.0, hidden_loss="mse")
    learner = Learner(student, LearnFromTeacher(LiveTeacher(teacher, range(3)), section, 2))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}
    with torch.no_grad():
        outputs = [model(**inputs, output_hidden_states=True) for model in (teacher, student)]
    asked = batch["labels"] >= 0
    p, q = (output.logits[asked].log_softmax(-1) for output in outputs)
    states = [torch.stack(output.decoder_hidden_states)[:, asked] for output in outputs]
    wanted = {
        "kl": (p.exp() * (p - q)).sum(-1).mean(),
        "ce": -q.gather(1, batch["labels"][asked][:, None]).mean(),
        "hidden": (states[0] - states[1]).square().mean(),
    }
    for given in (batch, other_padding(batch)):
        _, parts = learner(given, learner.objective.signal(given))
        for name, value in wanted.items():
            assert parts[name] == pytest.approx(float(value), rel=2e-4), name
    same = Learner(teacher, LearnFromTeacher(LiveTeacher(make_pair(kind, 2)[0], range(3)), section, 2))
    _, parts = same(batch, same.objective.signal(batch))
    assert parts["kl"] == pytest.approx(0, abs=1e-6)
    assert parts["hidden"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("kind", ["history", "plain"])
def test_layers_learn_the_teachers_outputs_for_its_own_inputs_in_both_halves(kind, batch):
    teacher, student = make_pair(kind, [1, 2, 0, 2, 1])
    objective = LearnLayers(LiveTeacher(teacher), [0, 2, 4])
    learner = Learner(student, objective)
    loss, parts = learner(batch, objective.signal(batch))
    assert list(parts) == ["encoder_1", "encoder_3", "decoder_2"]
    assert all(part > 0 for part in parts.values())
    _, padded = learner(other_padding(batch), objective.signal(other_padding(batch)))
    assert {name: float(part) for name, part in padded.items()} == pytest.approx(
        {name: float(part) for name, part in parts.items()}, rel=1e-4
    )
    loss.backward()
    learnt = {
        layer.place for layer in student.base_model.layers if layer.self_attn.q_proj.weight.grad is not None
    }
    assert learnt == {0, 2, 4}
    student.set_num_iterations(2)
    _, parts = learner(batch, objective.signal(batch))
    assert max(parts.values()) < 1e-9


def test_a_student_learns_from_its_own_targets_of_the_sources(pair_folders, lesson, tmp_path):
    stage = {"max_steps": 4, "warmup_steps": 0}
    distill(pair_folders.teacher, pair_folders.plan, lesson(onpolicy=stage), tmp_path / "run")
    entries = log_of(tmp_path / "run", "onpolicy")
    assert [entry["ce"] > 0 for entry in entries] == [True, False, True, False]
    assert all(entry["kl"] > 0 for entry in entries)
    with refused("onpolicy.prompt_length: expected none for pairs, which have prompts of their own, got 4"):
        recipe = lesson(onpolicy={**stage, "prompt_length": 4})
        distill(pair_folders.teacher, pair_folders.plan, recipe, tmp_path / "other")


def test_hidden_states_are_those_of_the_decoder(pair_folders, lesson, tmp_path):
    section = {"hidden_weight": 1.0, "hidden_layers": [3]}
    with refused("hidden_layers: expected at most 2, the teacher's"):
        distill(pair_folders.teacher, pair_folders.plan, lesson(0, 1, **section), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("top_k", [320, None])
def test_stored_signals_teach_what_the_live_teacher_does(top_k, pair_folders, lesson, cache_dir, tmp_path):
    inputs, given = (
        [str(pair_folders.pairs)],
        {"cache_dir": cache_dir, "check_teacher": False, "device": "cpu"},
    )
    record = capture_signals(
        pair_folders.teacher,
        inputs,
        tmp_path / "signals",
        top_k=top_k,
        hidden_layers=[0, 2],
        batch_size=3,
        **given,
    )
    assert record.num_blocks == 4
    section = {"hidden_weight": 1.0, "hidden_layers": [0, 2]}
    for name, signals in (("live", None), ("stored", str(tmp_path / "signals"))):
        recipe = lesson(0, 3, signals=signals, **section)
        distill(pair_folders.teacher, pair_folders.plan, recipe, tmp_path / name)
    live, stored = (log_of(tmp_path / name, "distill") for name in ("live", "stored"))
    assert [line["ce"] for line in stored] == pytest.approx([line["ce"] for line in live], rel=1e-2)
    assert [line["kl"] for line in stored] == pytest.approx([line["kl"] for line in live], rel=1e-2)
    assert [line["hidden"] for line in stored] == pytest.approx([line["hidden"] for line in live], rel=1e-2)
    with refused("max_tokens: expected none for pairs"):
        capture_signals(pair_folders.teacher, inputs, tmp_path / "other", max_tokens=200, **given)
    with refused("hidden_layers: expected 0 (the embeddings) to 2 (after the final norm), got 3"):
        capture_signals(pair_folders.teacher, inputs, tmp_path / "third", hidden_layers=[3], **given)
