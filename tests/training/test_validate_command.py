"""`iiad validate`: all problems or what the recipe comes to, quickly, with nothing loaded."""

import subprocess
import sys

import pytest
import yaml

from iiad.training import recipe_summary


@pytest.fixture
def validate(iiad, monkeypatch, tmp_path):
    """Run `iiad validate` in an empty folder, on fields or a recipe's name: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(recipe, *settings):
        if isinstance(recipe, dict):
            (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
            recipe = "r.yaml"
        return iiad("validate", recipe, *settings)

    return run


def test_each_problem_has_a_line_of_its_own(validate):
    settings = ["model.num_layers=0", "training.decay_steps=9", "training.lerning_rate=1"]
    code, out, err = validate("55m", *(word for setting in settings for word in ("--set", setting)))
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "55m: 3 problems",
        "  training.lerning_rate: no such field (did you mean learning_rate?)",
        "  model.num_layers: expected greater than or equal to 1, got 0",
        "  training.decay_steps: expected none with lr_scheduler_type cosine; "
        "only warmup_stable_decay uses it, got 9",
    ]
    assert "55m: 1 problem\n" in validate("55m", "--set", "model.num_layers=0")[2]


def test_a_valid_recipe_says_what_it_comes_to(validate, monkeypatch):
    monkeypatch.setattr(recipe_summary, "measure_cpu", lambda: 1e12)
    code, out, err = validate("55m")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "55m: a valid recipe for `iiad train`",
        "  model        iiet, 55 million parameters",
        "  evaluations  48 per token; 12 in the first 75% of the steps",
        "  tokens       16 billion: 30,517 steps of 524,288 tokens (8 x 32 blocks of 2,048), in each process",
        "  estimated    1.0e+19 floating-point operations; 27.8 GB and logits, in one process",
        "  time         roughly 235 days on this CPU; train says it better in its first seconds",
        "note: data.train: no file corpus/*.jsonl here",
        "note: data.validation: no file validation.jsonl here",
    ]
    code, out, _ = validate("demo-distill")
    assert code == 0
    assert "stages       distill 50 steps, recover 50 steps" in out
    assert "204,800: 100 steps of 2,048 tokens" in out
    assert "note" not in out
    assert "time         depends on the teacher and its plan; distill says it in its first seconds" in out
    _, out, _ = validate("demo", "--set", "model.solver=transformer")
    assert "evaluations  4 per token\n" in out
    assert "not used     model.num_iterations" in out


@pytest.mark.parametrize(
    ("fields", "kind", "problems"),
    [
        ({"tokenizer": {"vocab_size": 300}}, "train", 2),
        ({"student": {}}, "distill", 1),
        ({"data": {"train": "stdlib"}}, "distill", 0),
        ({"data": {"train": "x"}, "training": {"max_steps": 3, "warmup_steps": 2}}, "train", 1),
        ({"data": {"train": "x"}, "tokeniser": {"vocab_size": 300}, "training": {"max_steps": 300}}, "train", 1),
        ({"data": {"train": "x"}, "distilation": {"kl_weight": 1}}, "distill", 1),
        ({"data": {"train": "x"}, "distillation": {"kl_weight": 1}, "model": {}}, "distill", 1),
        ({}, "distill", 1),
    ],
)  # fmt: skip
def test_the_kind_is_told_from_the_sections_and_said_where_it_is_a_guess(fields, kind, problems, validate):
    code, out, err = validate(fields)
    assert code == (2 if problems else 0)
    assert len([line for line in err.splitlines() if line.startswith("  ")]) == problems
    own = {"train": {"model", "tokenizer"}, "distill": {"student", "distillation"}}
    clear = [name for name, sections in own.items() if sections & set(fields)] == [kind]
    assert clear or f"checked for {kind} (--kind)" in err
    assert problems or f"a valid recipe for `iiad {kind}`" in out


def test_the_kind_can_be_given(validate):
    code, _, err = validate({"data": {"train": "stdlib"}}, "--kind", "train")
    assert (code, err.splitlines()[0]) == (2, "r.yaml: 1 problem")
    assert validate("demo", "--kind", "x") == (2, "", "iiad: --kind: expected one of train, distill, got x\n")


def test_inputs_that_are_not_here_are_notes(validate, tmp_path):
    def notes(fields, *settings):
        code, out, _ = validate(fields, *settings)
        assert code == 0
        return out, [line for line in out.splitlines() if line.startswith("note")]

    (tmp_path / "here.txt").touch()
    (tmp_path / "tokenizer").mkdir()
    data = {"train": ["stdlib", "here.txt", "h*.txt", "gone.txt", "gone/*.txt"], "validation": "tokenizer"}
    texts = ["note: data.train: no file gone.txt here", "note: data.train: no file gone/*.txt here"]
    fields = {"data": data, "tokenizer": {"path": "tokenizer"}, "training": {"max_steps": 200}}
    out, found = notes(fields)
    assert found == texts
    assert "and 512 a token of the vocabulary" in out
    at_hub = "note: tokenizer.path: no folder owner/name here; will be looked up at huggingface.co"
    assert notes(fields, "--set", "tokenizer.path=owner/name")[1] == [*texts, at_hub]
    out, found = notes({"data": data, "student": {"init": "gone"}, "distillation": {"signals": "./gone"}})
    missing = ["note: distillation.signals: no folder ./gone here", "note: student.init: no folder gone here"]
    assert found == [*texts, *missing]
    assert "512 tokens, or of the model's context if shorter" in out


def test_a_file_that_is_no_recipe_is_one_line(validate):
    code, out, err = validate("missing.yaml")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "got missing.yaml" in err


def test_neither_validate_nor_the_data_package_imports_what_takes_time():
    script = """if True:
        import sys
        sys.argv = ["iiad", "validate", "55m"]
        from iiad_cli.main import run
        try:
            run()
        except SystemExit as exit_:
            assert not exit_.code
        heavy = "torch transformers scipy pyarrow tokenizers huggingface_hub accelerate".split()
        print([name for name in heavy if name in sys.modules], len(sys.modules) < 700)
        import iiad.data
        print([name for name in heavy if name in sys.modules])
    """
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert result.stdout.splitlines()[-2:] == ["[] True", "[]"]
