"""A student at its start, the parameters that learn, and PCformers as students."""

import math
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from iiad import InputError
from iiad.checkpoints import load_model, save_checkpoint
from iiad.data import load_tokenizer, train_tokenizer
from iiad.distillation.students import changed_layers, freeze_unused, learning_only, make_student
from iiad.training import RunRecord
from iiad.training.distillation_sections import StudentSection
from tests.helpers import make_iiet, make_llama, make_pcformer, refused


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def student_of(teacher_folder, **section):
    """A student at a plan without iterations in the second layer."""
    return make_student(teacher_folder, [2, 0], StudentSection(**section), "cpu")


def test_a_student_begins_with_the_teachers_weights_unless_told_otherwise(teacher_folder):
    assert same(load_model(teacher_folder).state_dict(), student_of(teacher_folder).state_dict())


def test_a_random_student_begins_with_weights_of_its_seed_alone(teacher_folder):
    torch.manual_seed(3)
    first = student_of(teacher_folder, init="random").state_dict()
    torch.manual_seed(3)
    again = student_of(teacher_folder, init="random").state_dict()
    teacher = load_model(teacher_folder).state_dict()
    assert same(first, again)
    assert not torch.equal(first["model.embed_tokens.weight"], teacher["model.embed_tokens.weight"])


def test_a_student_can_begin_with_another_models_weights(teacher_folder, distilled):
    other = distilled("other", recover=1)
    student = student_of(teacher_folder, init=str(other))
    assert same(weights_of(other), student.state_dict())
    assert student.config.num_iterations == [2, 0]


def test_start_norms_begin_as_the_last_norm_where_all_iterations_go(teacher_folder):
    teacher = load_model(teacher_folder).state_dict()
    student = student_of(teacher_folder, start_norm="update").state_dict()
    for part in ("weight", "bias"):
        first, second = (f"model.layers.{layer}.corrector.{{}}_norm.{part}" for layer in (0, 1))
        assert torch.equal(student[second.format("start")], teacher[second.format("update")])
        assert torch.equal(student[first.format("start")], teacher[first.format("start")])
    changed = [name for name in teacher if not torch.equal(teacher[name], student[name])]
    assert {name.rpartition(".")[0] for name in changed} == {"model.layers.1.corrector.start_norm"}


def test_a_norm_that_the_teacher_itself_ended_with_stays(teacher_folder, tmp_path):
    """A layer without iterations in the teacher, too: the norm after its iterations never learnt."""
    teacher = load_model(teacher_folder, num_iterations=[0, 2])
    save_checkpoint(teacher, tmp_path / "teacher", tokenizer=load_tokenizer(teacher_folder))
    section = StudentSection(start_norm="update")
    student = make_student(tmp_path / "teacher", [0, 0], section, "cpu")
    before, after = teacher.state_dict(), student.state_dict()
    changed = {name.rpartition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"model.layers.1.corrector.start_norm"}


def test_weights_of_another_shape_or_tokenizer_or_with_other_heads_are_refused(
    teacher_folder, distilled, tmp_path
):
    heads, tokenizer = load_model(teacher_folder), load_tokenizer(teacher_folder)
    heads.config.num_attention_heads = heads.config.num_key_value_heads = 4
    heads.config.head_dim = 4  # the same tensors, read otherwise
    words = train_tokenizer(["another text altogether, of other words " * 20], 300)
    for name, model, its_tokenizer, problem in (
        ("shape", make_iiet(), tokenizer, "vocab_size: expected the teacher's 300, got 97"),
        ("words", load_model(teacher_folder), words, "tokenizer: expected the teacher's"),
        ("heads", heads, tokenizer, "num_attention_heads: expected the teacher's 2, got 4"),
    ):
        save_checkpoint(model, tmp_path / name, tokenizer=its_tokenizer)
        with refused("student.init: ", problem):
            distilled(student={"init": str(tmp_path / name)}, recover=1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "fields", [{}, {"history": False, "relaxation": True}], ids=["history", "relaxation"]
)
def test_what_only_iterations_use_does_not_learn_where_there_are_none(fields):
    student = make_iiet(num_iterations=[0, 2, 1], max_num_iterations=2, **fields)
    freeze_unused(student)
    frozen = {name for name, parameter in student.named_parameters() if not parameter.requires_grad}
    corrector = "model.layers.0.corrector."
    if fields:
        assert frozen == {corrector + "relaxation"}
    else:
        parts = ("update_weights", "update_norm.weight", "update_norm.bias")
        assert frozen == {corrector + part for part in parts}
    student(torch.randint(3, 90, (2, 9)), labels=torch.randint(3, 90, (2, 9))).loss.backward()
    learning = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, parameter in student.named_parameters() if parameter.grad is not None}


def test_layers_by_themselves_learn_inside_of_the_block_alone():
    student = make_iiet(num_iterations=[2, 0, 2], max_num_iterations=2)
    freeze_unused(student)
    before = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    with learning_only(student, [1]):
        inside = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert inside == {name for name in before if name.startswith("model.layers.1.")}
    assert {name for name, parameter in student.named_parameters() if parameter.requires_grad} == before


def test_changed_layers_are_those_with_fewer_evaluations_or_with_other_keys_and_values():
    teacher, student = make_iiet(num_iterations=[2, 1, 2]).config, make_iiet(num_iterations=[2, 0, 1]).config
    assert changed_layers(teacher, student) == [1, 2]
    assert changed_layers(teacher, teacher) == []
    full, cut = make_pcformer(), make_pcformer()
    cut.set_predictor_stages(1)
    assert changed_layers(full.config, cut.config) == [0, 1, 2]
    exact, shared = (make_iiet(num_iterations=[2, 0, 1], cache_policy=p).config for p in ("exact", "shared"))
    assert changed_layers(exact, shared) == [0, 2]


@pytest.fixture(scope="module", params=[2])
def pcformer_folder(request, teacher_folder, tmp_path_factory):
    """An untrained PCformer of that order."""
    tokenizer = load_tokenizer(teacher_folder)
    folder = tmp_path_factory.mktemp("pcformer") / "teacher"
    model = make_pcformer(
        predictor_order=request.param, vocab_size=len(tokenizer), num_layers=2, max_position_embeddings=64
    )
    save_checkpoint(model, folder, tokenizer=tokenizer)
    return folder


@pytest.mark.parametrize("pcformer_folder", [4], indirect=True)
def test_a_pcformer_keeps_as_many_stages_as_the_recipe_says(pcformer_folder, distilled):
    teacher = load_model(pcformer_folder)
    order = teacher.config.predictor_order
    folder = distilled(
        teacher=pcformer_folder,
        plan=None,
        student={"predictor_stages": 1},
        layerwise=1,
        distill=1,
        recover=1,
        kl_weight=2.0,
    )
    student = AutoModelForCausalLM.from_pretrained(folder)
    assert student.config.num_hidden_layers == teacher.config.num_hidden_layers - 2 * (order - 1)
    ids = torch.randint(3, 90, (1, 9))
    generated = student.generate(ids, max_new_tokens=3, do_sample=False)
    uncached = student.generate(ids, max_new_tokens=3, do_sample=False, use_cache=False)
    assert torch.equal(generated, uncached)
    before, after = weights_of(pcformer_folder), weights_of(folder)
    for name in before:
        unused = name.startswith("model.predictor.norms.") and ".norms.0." not in name
        assert torch.equal(before[name], after[name]) == unused, name
    record = RunRecord.load(folder / "run.json")
    assert "plan" not in record.inputs
    assert record.results["compute_cut"] == pytest.approx(1 - 2 / (1 + order))
    assert "overhead_cut" not in record.results


@pytest.mark.parametrize("with_plan", [True, False])
def test_a_student_is_distilled_under_a_shared_cache(with_plan, teacher_folder, plan_file, distilled):
    folder = distilled(
        plan=plan_file if with_plan else None,
        student={"cache_policy": "shared"},
        layerwise=1,
        distill=1,
        recover=1,
    )
    student = AutoModelForCausalLM.from_pretrained(folder)
    assert student.config.cache_policy == "shared"
    assert student.config.num_hidden_layers == student.config.num_layers
    assert student.config.num_iterations == ([2, 0] if with_plan else [2, 2])
    assert not same(weights_of(teacher_folder), weights_of(folder))
    ids = torch.randint(3, 90, (2, 9))
    generated = student.generate(ids, max_new_tokens=5, do_sample=False)
    assert torch.equal(generated, student.generate(ids, max_new_tokens=5, do_sample=False, use_cache=False))
    results = RunRecord.load(folder / "run.json").results
    assert results["compute_cut"] == pytest.approx(1 / 3 * with_plan)
    assert results["cache_cut"] == pytest.approx(1 - 2 / 6)


def test_students_that_a_teacher_cannot_have_are_refused(
    pcformer_folder, teacher_folder, plan_file, distilled, tmp_path
):
    llama, tokenizer = tmp_path / "llama", load_tokenizer(teacher_folder)
    save_checkpoint(make_llama(vocab_size=len(tokenizer)), llama, tokenizer=tokenizer)
    for teacher, plan, student, problem in (
        (teacher_folder, None, {}, "plan: expected plan.json, student.cache_policy or"),
        (
            teacher_folder,
            None,
            {"cache_policy": "exact"},
            "student.cache_policy: expected one other than the",
        ),
        (llama, None, {"cache_policy": "shared"}, "teacher: expected an IIET or a PCformer, got a llama"),
        (
            teacher_folder,
            plan_file,
            {"predictor_stages": 1},
            "expected none for a teacher of type iiet, got 1",
        ),
        (pcformer_folder, None, {"predictor_stages": 3}, "expected at most the teacher's 2, got 3"),
    ):
        with refused(problem):
            distilled(teacher=teacher, plan=plan, student=student, distill=1)
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_knows_nothing_is_refused_with_what_it_should_beat(
    pcformer_folder, distilled, tmp_path
):
    with pytest.raises(InputError) as error:
        distilled(
            teacher=pcformer_folder,
            plan=None,
            student={"predictor_stages": 1},
            distill=1,
            check_teacher=True,
        )
    message = str(error.value)
    teacher, unigram, uniform = map(float, re.findall(r"\d+\.\d{4}", message))
    assert uniform == pytest.approx(math.log(load_model(pcformer_folder).config.vocab_size), abs=1e-4)
    assert unigram < uniform
    assert teacher > unigram
    assert "expected a lower loss than by counts" in message
    assert "distillation.check_teacher=false" in message
    assert not (tmp_path / "run").exists()
