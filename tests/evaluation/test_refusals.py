"""Values and models that evaluations refuse: one line, and before a model is loaded where that can be."""

import sys
from types import SimpleNamespace

import pytest

from iiad import InputError, checkpoints
from iiad.checkpoints import loading
from iiad.data import load_tokenizer
from iiad.evaluation import bench_models, check_model, evaluate_models, measure_latency
from tests.helpers import make_iiet


def evaluate(model, text, **options):
    return evaluate_models([model], [str(text)], **options)


def bench(model, text, **options):
    return bench_models([model], **{"prompt_tokens": 8, "new_tokens": 3, "repeats": 1, **options})


def latency(model, text, **options):
    return measure_latency(model, **{"prompt_tokens": 9, "new_tokens": 2, "repeats": 1, **options})


def check(model, text, **options):
    return check_model(model, **options)


OF_ALL = [
    ({"device": "abacus"}, "device: expected cpu, or cuda where there is one, got 'abacus'"),
    ({"dtype": "int8"}, "dtype: expected float32 or bfloat16, got 'int8'"),
    ({"plan": "nowhere.json"}, "nowhere.json: no such file"),
]
COUNTS = [
    ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
    ({"prompt_tokens": 0}, "prompt_tokens: expected at least 1, got 0"),
    ({"new_tokens": 0}, "new_tokens: expected at least 1, got 0"),
    ({"repeats": 0}, "repeats: expected at least 1, got 0"),
    ({"seed": -1}, "seed: expected from 0 to 2147483647, got -1"),
]
KINDS = [
    ({"quantize": ["int2"]}, "quantize: expected int8 or int4, got 'int2'"),
    ({"quantize": ["int8", "int8"]}, "quantize: expected each kind once, got int8 twice"),
]
POSITIONS = "prompt_tokens + new_tokens: expected at most 128, the max_position_embeddings of "
CASES = {
    evaluate: [
        *OF_ALL,
        *KINDS,
        ({"block_size": 129}, "block_size: expected at most 128"),
        ({"block_size": 0}, "block_size: expected at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"max_tokens": 1}, "max_tokens: expected at least 2, got 1"),
    ],
    bench: [
        *OF_ALL,
        *COUNTS,
        *KINDS,
        ({"batch_size": []}, "batch_size: expected at least one number, got none"),
        ({"batch_size": [4, -1]}, "batch_size: expected at least 1, got -1"),
        ({"prompt_tokens": [9, 124], "new_tokens": 5}, POSITIONS),
        ({"prompt_tokens": 100, "new_tokens": 29}, ", got 100 + 29"),
    ],
    latency: [
        *OF_ALL,
        *COUNTS,
        ({"prompt_tokens": 128}, "prompt_tokens: expected at most 127, which leaves one"),
        (
            {"model": "llama"},
            "expected an iiet or pcformer with an iteration in at least one layer, got type",
        ),
    ],
    check: [
        *OF_ALL[:2],
        ({"plan": "nowhere.json", "teacher": "teacher"}, "nowhere.json: no such file"),
        ({"plan": "nowhere.json"}, "nowhere.json: no such file"),
        ({"prompt_tokens": 3}, "prompt_tokens: expected at least 4, got 3"),
        ({"new_tokens": 1}, "new_tokens: expected at least 2, got 1"),
        ({"new_tokens": 500}, POSITIONS),
        ({"seed": -1}, "seed: expected from 0 to 2147483647, got -1"),
    ],
}


@pytest.mark.parametrize(
    ("run", "options", "words"), [(run, *case) for run, cases in CASES.items() for case in cases]
)
def test_bad_values_are_refused_before_a_model_is_loaded(folders, monkeypatch, run, options, words):
    monkeypatch.setattr(loading, "load_model", None)
    named = {
        name: getattr(folders, value) for name, value in options.items() if value in ("llama", "teacher")
    }
    options = {"model": folders.teacher, "device": "cpu", **options, **named}
    with pytest.raises(InputError) as caught:
        run(text=folders.text, **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("run", [evaluate, bench, latency])
def test_a_plan_for_another_teacher_is_refused(folders, run):
    with pytest.raises(InputError, match="plan: expected one for teacher"):
        run(folders.student, folders.text, plan=folders.plan, device="cpu")


def test_no_model_and_no_such_model_are_refused(folders, tmp_path):
    with pytest.raises(InputError, match="models: expected at least one folder or hub name, got none"):
        evaluate_models([], [str(folders.text)])
    with pytest.raises(InputError, match="no such model folder"):
        evaluate(tmp_path / "nothing", folders.text)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("evaluate {teacher}", "data: expected a text or tasks, got neither"),
        ("check missing", "missing: no such model folder"),
        ("check {student} --teacher missing", "missing: no such model folder"),
        ("check {teacher} --teacher {student} --plan {plan}", "plan: expected one for teacher"),
        ("check {student} --teacher {llama}", "teacher: expected a model with iterations, got"),
        ("check {teacher} --seed -1", "seed: expected from 0 to 2147483647, got -1"),
        ("check {teacher} --output .", ".: expected a file, got a folder"),
        ("check", "Missing argument"),
        ("bench {llama} --prompt-tokens 8192", POSITIONS),
        ("bench {llama} --batch-size 0", "batch_size: expected from 1 to 1,048,576, got 0"),
        (
            "bench {llama} --layers --batch-size 1 --batch-size 2",
            "batch_size: expected one with --layers, got 2",
        ),
        ("bench {llama} {llama} --layers", "models: expected one with --layers, got 2"),
        ("evaluate {llama} --data {text} --quantize int3", "quantize: expected int8 or int4, got 'int3'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folders, iiad, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, out, errors = iiad(*arguments.format(**vars(folders)).split())
    assert (code, out, errors.count("\n")) == (2, "", 1)
    assert words in errors
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(folders, tmp_path):
    small, tokenizer = make_iiet(num_iterations=0, vocab_size=100), load_tokenizer(folders.teacher)
    checkpoints.save_checkpoint(small, tmp_path / "small", tokenizer=tokenizer)
    with pytest.raises(
        InputError, match=r"small: expected tokens below its vocabulary of 100, got \d+ in batch"
    ):
        evaluate(tmp_path / "small", folders.text, device="cpu")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--tasks piqa", "tasks: expected lm-eval (pip install 'iiad[eval]'), got"),
        (
            "--tasks {text}",
            "tasks: expected --trust-remote-code with a folder or file, whose Python and templates",
        ),
        ("--tasks t --task-data piqa", "task-data: expected NAME=FILE, got piqa"),
        ("--tasks t --task-data a=missing", "task-data: expected a file for a, got missing"),
        ("--tasks t --task-data a={text} a={plan}", "task-data: expected each name once, got a twice"),
        ("--tasks t --limit 0", "limit: expected above 0, got 0.0"),
        ("--tasks t --limit nan", "limit: expected from 0 to 1,099,511,627,776, got nan"),
        ("--tasks t --num-fewshot -1", "num_fewshot: expected from 0 to 1,024, got -1"),
        ("--tasks t --block-size 8", "--block-size: expected none without --data, got 8"),
        ("--tasks t --max-tokens 9", "--max-tokens: expected none without --data, got 9"),
        ("--data {text} --num-fewshot 1", "--num-fewshot: expected none without --tasks, got 1"),
        ("--data {text} --limit 3", "--limit: expected none without --tasks, got 3.0"),
        ("--data {text} --task-data a=b", "--task-data: expected none without --tasks, got"),
    ],
)
def test_tasks_that_cannot_be_run_are_refused_before_the_harness_loads(
    folders, iiad, monkeypatch, options, words
):
    module = None if "iiad[eval]" in words else SimpleNamespace(__version__="0.4.13")
    monkeypatch.setitem(sys.modules, "lm_eval", module)
    code, out, err = iiad("evaluate", folders.teacher, *options.format(**vars(folders)).split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err
