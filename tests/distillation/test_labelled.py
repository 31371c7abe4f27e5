"""Labelled rows through every stage: train, profile, plan, capture, distil, evaluate count what is asked for."""

import pytest
import torch

from iiad.data import make_blocks, pack, parse_task, resolve_inputs, task_tokenizer
from iiad.distillation import LiveTeacher, capture_signals, distill
from iiad.distillation.objectives import LearnFromTeacher, LearnLayers
from iiad.evaluation import evaluate_models
from iiad.influence import measure_influence
from iiad.planning import Plan
from iiad.training import DistillRecipe, TrainRecipe, train
from iiad.training.distillation_sections import DistillationSection
from iiad.training.learner import LanguageModelling, Learner
from tests.helpers import log_of, make_iiet, refused

SPEC = "expressions:operations=3,modulus=5"


@pytest.fixture(scope="module")
def batch():
    """Rows of several lengths, of which the last token is asked for."""
    task = parse_task(SPEC)
    corpus = pack(resolve_inputs([SPEC]), task_tokenizer(task.words), num_rows=5)
    blocks = make_blocks(corpus, 64)
    assert len(set(corpus.lengths)) > 1
    return blocks.batch(range(5))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run of a few steps on generated rows, with the task's own tokenizer."""
    folder = tmp_path_factory.mktemp("labelled") / "teacher"
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_layers": 2, "num_attention_heads": 2}
    fields = {
        "model": {**shape, "max_position_embeddings": 64, "num_iterations": 2},
        "data": {"train": SPEC, "validation": f"{SPEC},rows=30"},
        "training": {
            "max_steps": 6,
            "warmup_steps": 0,
            "learning_rate": 0.01,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 2,
            "logging_steps": 1,
            "iterations_start": 0.0,
        },
    }
    train(TrainRecipe.model_validate(fields), folder)
    return folder


def asked_of(values, batch):
    """Rows of the positions that are asked for, found in another way: where the next label is not negative."""
    found = [
        values[b, t]
        for b in range(len(values))
        for t in range(values.shape[1] - 1)
        if batch["labels"][b, t + 1] >= 0
    ]
    return torch.stack(found)


def test_the_losses_of_a_batch_are_means_over_what_it_asks_for(batch):
    teacher, student = (make_iiet(vocab_size=16, num_iterations=2).double() for _ in range(2))
    student.set_num_iterations([0, 1, 0])
    section = DistillationSection(hidden_weight=1.0, divergence="forward")
    learner = Learner(student, LearnFromTeacher(LiveTeacher(teacher, range(4)), section, 3))
    _, parts = learner(batch, learner.objective.signal(batch))
    with torch.no_grad():
        one, other = (model(batch["input_ids"], output_hidden_states=True) for model in (teacher, student))
    log_p, log_q = (asked_of(model.logits, batch).log_softmax(-1) for model in (one, other))
    wanted = asked_of(batch["labels"].roll(-1, 1), batch)
    assert parts["ce"] == pytest.approx(float(-log_q.gather(1, wanted[:, None]).mean()), rel=1e-6)
    assert parts["kl"] == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum(-1).mean()), rel=1e-6)
    pairs = zip(one.hidden_states, other.hidden_states, strict=True)
    squares = [(asked_of(x, batch) - asked_of(y, batch)).square().mean() for x, y in pairs]
    assert parts["hidden"] == pytest.approx(float(torch.stack(squares).mean()), rel=1e-5)
    learner = Learner(student.requires_grad_(False), LanguageModelling())
    assert float(learner(batch)[0]) == pytest.approx(float(parts["ce"]), rel=1e-9)
    stock = student(input_ids=batch["input_ids"], labels=batch["labels"]).loss  # transformers' own
    assert float(stock) == pytest.approx(float(parts["ce"]), rel=1e-6)


@pytest.mark.parametrize("objective", ["distill", "layerwise"])
def test_nothing_learns_from_padding(objective, batch):
    def losses(fill):
        model = make_iiet(vocab_size=16, num_iterations=2)
        live = LiveTeacher(make_iiet(vocab_size=16, num_iterations=2), range(4))
        model.set_num_iterations([1, 0, 2])
        made = LearnLayers(live, [0, 1]) if objective == "layerwise" else None
        section = DistillationSection(hidden_weight=1.0)
        learner = Learner(model, made or LearnFromTeacher(live, section, 3))
        ids, lengths = batch["input_ids"].clone(), (batch["labels"] >= 0).int().argmax(1)
        for row, length in zip(ids, lengths, strict=True):
            row[length + 1 :] = fill
        changed = {**batch, "input_ids": ids}
        return [float(part) for part in learner(changed, learner.objective.signal(changed))[1].values()]

    assert losses(0) == pytest.approx(losses(9), rel=1e-6)


@pytest.fixture(scope="module")
def plan(teacher, tmp_path_factory):
    """A plan of the profiled teacher; each row counts by the one token that it asks for."""
    profile = measure_influence(teacher, [SPEC], max_tokens=200)
    assert profile.num_tokens == sum(batch.num_tokens for batch in profile.batches) == 22
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    Plan.explicit([2, 0], profile.model).save(path)
    return path


def test_stored_signals_of_rows_teach_what_the_live_teacher_does(teacher, plan, tmp_path):
    signals = tmp_path / "signals"
    record = capture_signals(teacher, [f"{SPEC},rows=64"], signals, top_k=11, check_teacher=False)
    assert all(shard.kept_mass == pytest.approx(1) for shard in record.shards)

    def run(name, **section):
        stages = {"distill": {"max_steps": 3, "warmup_steps": 0}, "recover": {"max_steps": 0}}
        fields = {
            "data": {"train": f"{SPEC},rows=64", "validation": f"{SPEC},rows=30"},
            "distillation": {**stages, "check_teacher": False, **section},
            "training": {"per_device_train_batch_size": 8, "logging_steps": 1},
        }
        distill(teacher, plan, DistillRecipe.model_validate(fields), tmp_path / name)
        return [{name: entry[name] for name in ("ce", "kl")} for entry in log_of(tmp_path / name, "distill")]

    live, stored = run("live"), run("stored", signals=str(signals))
    assert len(live) == 3
    for one, other in zip(live, stored, strict=True):
        assert other == pytest.approx(one, rel=2e-3, abs=1e-4)
    evaluation = evaluate_models([teacher, tmp_path / "live"], [f"{SPEC},rows=50"], plan=plan)
    assert [row.tokens for row in evaluation.results] == [50, 50, 50]
    for row in evaluation.results:
        assert list(row.accuracy_by_group) == ["operations 1", "operations 2", "operations 3"]
        assert row.bits_per_byte is None


def test_a_rows_step_does_not_depend_on_how_it_is_divided(teacher, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "\n".join(
            f'{{"input_ids": {[3] * n}, "labels": {[-100] * (n - k) + [4] * k}}}'
            for n, k in [(4, 1), (9, 8), (3, 2), (7, 1)]
        )
    )

    def losses(batch_size):
        fields = {
            "model": {"path": str(teacher)},
            "tokenizer": {"path": str(teacher)},
            "data": {"train": str(rows), "cache_dir": str(tmp_path / "cache")},
            "training": {
                "max_steps": 3,
                "warmup_steps": 0,
                "per_device_train_batch_size": batch_size,
                "gradient_accumulation_steps": 4 // batch_size,
                "logging_steps": 1,
            },
        }
        train(TrainRecipe.model_validate(fields), tmp_path / str(batch_size))
        return [entry["loss"] for entry in log_of(tmp_path / str(batch_size))]

    assert losses(1) == pytest.approx(losses(4), rel=1e-5)


def test_a_tokenizer_is_needed_for_text_and_must_not_be_trained_for_tasks(tmp_path):
    fields = {
        "data": {"train": SPEC},
        "tokenizer": {"vocab_size": 300},
        "training": {"max_steps": 1, "warmup_steps": 0},
    }
    with refused("tokenizer.vocab_size: expected none with generated tasks"):
        train(TrainRecipe.model_validate(fields), tmp_path / "run")
    with pytest.raises(ValueError, match="a size, or a path"):
        TrainRecipe.model_validate(
            {"data": {"train": "a.txt"}, "training": {"max_steps": 1, "warmup_steps": 0}}
        )
    with pytest.raises(ValueError, match="expected s3, s5, or z2 to z60"):
        TrainRecipe.model_validate(
            {"data": {"train": "states:group=q"}, "training": {"max_steps": 1, "warmup_steps": 0}}
        )


def test_a_row_longer_than_the_context_is_refused(teacher):
    with refused("block_size: expected at least the", "got 64"):
        measure_influence(teacher, ["expressions:operations=60,modulus=5"])
