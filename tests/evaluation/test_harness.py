"""Tasks of lm-evaluation-harness: the figures of its own command on the saved folder, and its faults as one line."""

import json
import math
from contextlib import contextmanager

import pytest

from iiad.checkpoints import identify_model, load_model, save_checkpoint
from iiad.data import load_tokenizer
from iiad.evaluation import Evaluation, Tasks, evaluate_models, harness
from iiad.planning import Plan
from iiad.progress import console
from tests.helpers import BUDGET, make_iiet

lm_eval = pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's and its dependencies'

CHOICE = """
task: choice
dataset_path: json
dataset_kwargs: {{data_files: {{train: {rows}, validation: {rows}}}}}
output_type: multiple_choice
training_split: train
validation_split: validation
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{[good, bad]}}}}"
doc_to_target: 0
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
PROSE = """
task: prose
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {rows}}}}}
output_type: loglikelihood_rolling
validation_split: validation
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}]
"""
ANSWER = """
task: answer
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {rows}}}}}
output_type: generate_until
validation_split: validation
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{good}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 8}}
metric_list: [{{metric: exact_match}}]
"""
GROUP = """
group: both
task: [choice, answer]
aggregate_metric_list: [{{metric: acc, weight_by_size: true}}]
"""
NAMES = {"choice": CHOICE, "prose": PROSE, "answer": ANSWER, "both": GROUP}


@pytest.fixture(autouse=True, scope="module")
def datasets_apart(tmp_path_factory):
    """A cache of the tests' own for the documents of tasks."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three tasks, one of each kind of request, two of them in a group."""
    folder = tmp_path_factory.mktemp("tasks")
    words = "layer plan cache token block teacher student".split()
    rows = [
        {
            "question": f"The {a} of the {b}",
            "good": f"{b} keeps",
            "bad": f"{a} drops it",
            "text": f"{a} {b}. " * 9,
        }
        for a in words[:4]
        for b in words[3:]
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in NAMES.items():
        (folder / f"{name}.yaml").write_text(text.format(rows=folder / "rows.jsonl"))
    return folder


@pytest.fixture(scope="module")
def model(folders, tmp_path_factory):
    """A teacher with the context that the tasks take."""
    folder = tmp_path_factory.mktemp("model") / "teacher"
    tokenizer = load_tokenizer(folders.teacher)
    save_checkpoint(make_iiet(num_iterations=3, vocab_size=len(tokenizer)), folder, tokenizer=tokenizer)
    return folder


def by_stock(model, folder, **options):
    """The harness's own run of a saved folder, as `lm_eval run --model hf` makes it."""
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    arguments = {"pretrained": str(model), "trust_remote_code": True, "dtype": "float32"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "add_env_info", lambda results: None)  # seven seconds
        return evaluator.simple_evaluate(
            model="hf",
            model_args=arguments,
            tasks=["both", "prose"],
            device="cpu",
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            **options,
        )["results"]


@pytest.mark.parametrize("options", [{}, {"num_fewshot": 2, "limit": 5}])
def test_scores_are_those_of_the_harness_on_the_saved_folder(model, folder, options):
    tasks = Tasks([str(folder)], **options)
    wanted = by_stock(model, folder, batch_size=3, **options)
    row = evaluate_models([model], tasks=tasks, batch_size=3, device="cpu").results[0]
    assert row.tasks.keys() == wanted.keys() == {"choice", "answer", "prose", "both"}
    figures = 0
    for name, result in row.tasks.items():
        for metric, found in result.metrics.items():
            assert found.value == wanted[name][f"{metric},none"]
            error = wanted[name][f"{metric}_stderr,none"]
            assert found.standard_error == (None if error == "N/A" else error)
            figures += 1
    assert figures == 5
    assert row.tasks["choice"].num_documents == options.get("limit", 16)
    assert row.tasks["choice"].num_fewshot == options.get("num_fewshot", 0)
    assert (row.perplexity, row.accuracy, row.retained) == (None, None, None)


def test_rows_of_a_plan_and_of_quantized_weights_run_the_tasks_too(model, folder, tmp_path):
    teacher = load_model(model)
    Plan.explicit(BUDGET, identify_model(teacher, "teacher")).save(tmp_path / "plan.json")
    teacher.set_num_iterations(BUDGET)
    save_checkpoint(teacher, tmp_path / "truncated", tokenizer=load_tokenizer(model))
    full, planned, quantized, truncated = evaluate_models(
        [model, tmp_path / "truncated"],
        tasks=Tasks([str(folder / "choice.yaml")]),
        plan=tmp_path / "plan.json",
        quantize=["int8"],
        device="cpu",
    ).results
    assert planned.tasks == truncated.tasks
    assert quantized.quantization == "int8"
    assert list(quantized.tasks) == ["choice"]
    assert (planned.overhead_cut, full.overhead_cut) == (pytest.approx(2 / 3), 0)


def test_the_command_runs_tasks_beside_a_text_and_shows_both(model, folder, folders, tmp_path, iiad):
    output = tmp_path / "evaluation.json"
    arguments = (
        "evaluate",
        model,
        "--data",
        folders.text,
        "--max-tokens",
        40,
        "--tasks",
        folder,
        "--limit",
        4,
        "--trust-remote-code",
    )
    code, out, err = iiad(*arguments, "--device", "cpu", "--output", output, "--quiet")
    assert (code, err) == (0, "")
    evaluation = Evaluation.load(output)
    assert evaluation.settings.harness == lm_eval.__version__
    assert evaluation.settings.limit == 4
    scores = evaluation.results[0].tasks
    metric = scores["choice"].metrics["acc"]
    for word in ("perplexity", "choice acc", f"{metric.value:.4f} ± {metric.standard_error:.4f}"):
        assert word in out


BAD = {
    "no such task": ("choise", "expected a folder with tasks (*.yaml), got"),
    "no YAML": ("task: [", "while parsing"),
    "no data": (CHOICE.replace("{rows}", "nowhere.jsonl"), "Unable to find"),
    "no JSON": (CHOICE.replace("{rows}", "{broken}"), "error occurred while generating the dataset: "),
    "another split": (CHOICE.replace("validation_split: validation", "validation_split: test"), "'test'"),
    "a field that is not there": (CHOICE.replace("question", "questions"), "'questions' is undefined"),
    "an unknown metric": (CHOICE.replace("acc_norm", "accuracy_norm"), "accuracy_norm"),
    "the hub": (
        CHOICE.replace("path: json", "path: nobody/nothing").replace("dataset_kwargs", "#"),
        "on the Hub",
    ),
    "no room to answer": (
        ANSWER.replace("max_gen_toks: 8", "max_gen_toks: 999"),
        "fit a context of 128 tokens",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_task_that_cannot_run_is_one_line(case, model, folder, tmp_path, iiad):
    text, words = BAD[case]
    (tmp_path / "broken.jsonl").write_text('{"question": 1')
    places = {"rows": folder / "rows.jsonl", "broken": tmp_path / "broken.jsonl"}
    (tmp_path / "task.yaml").write_text(text.format(**places))
    name = tmp_path if case == "no such task" else tmp_path / "task.yaml"
    output = tmp_path / "out.json"
    code, out, err = iiad(
        "evaluate",
        model,
        "--tasks",
        name,
        "--trust-remote-code",
        "--device",
        "cpu",
        "--quiet",
        "--output",
        output,
    )
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err
    assert "tasks: " in err
    assert not output.exists()


def write_shipped(name, folder):
    """Files of a task that ships: of two of its rows."""
    if name == "blimp":
        rows = [{"sentence_good": "The plan keeps.", "sentence_bad": "The plan keep."}] * 2
    else:
        rows = [{"goal": "keep a plan", "sol1": "save it", "sol2": "drop it"}] * 2
        (folder / "rows-labels.lst").write_text("0\n1\n")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


@pytest.mark.parametrize("name", ["piqa", "blimp"])
def test_tasks_that_ship_read_the_file_that_is_given(name, model, tmp_path, iiad):
    rows = write_shipped(name, tmp_path)
    arguments = ("evaluate", model, "--tasks", name, "--device", "cpu", "--json", "--quiet", "--task-data")
    code, out, _ = iiad(*arguments, f"{name}={rows}")
    assert code == 0
    assert json.loads(out)["results"][0]["tasks"][name]["num_documents"] == 2
    if name == "piqa":
        (tmp_path / "rows-labels.lst").write_text("0\n")
        code, _, err = iiad(*arguments, f"{name}={rows}")
        assert code == 2
        assert "expected 2 labels, one for each row" in err


def test_progress_advances_by_batches_so_that_the_time_left_is_measured_by_them(model, folder, monkeypatch):
    shown = {}

    @contextmanager
    def record(description, total, unit, share):
        amounts = shown[description.split(": ")[1]] = [total]
        yield amounts.append

    monkeypatch.setattr(harness, "progress", record)
    evaluate_models([model], tasks=Tasks([str(folder)]), batch_size=8, device="cpu")
    assert shown.keys() == {"loglikelihood", "loglikelihood_rolling", "generate_until"}
    for total, *amounts in shown.values():
        assert sum(amounts) == total
        assert max(amounts) <= 8
        assert len(amounts) == math.ceil(total / 8)


def test_requests_that_are_cut_are_reported_and_the_harness_says_nothing(
    model, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(console, "quiet", False)
    rows = [{"question": "The plan. " * 60, "good": "keeps", "bad": "drops"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]))
    (tmp_path / "task.yaml").write_text(CHOICE.format(rows=tmp_path / "rows.jsonl"))
    evaluate_models([model], tasks=Tasks([str(tmp_path)]), device="cpu")
    assert capsys.readouterr() == (
        "",
        "teacher: requests of more than its context of 128 tokens lost their beginning\n",
    )
