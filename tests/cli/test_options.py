"""Options that do not apply beside the others are refused by name: none is ignored in silence."""

import pytest

from tests.helpers import make_profile, make_table

CASES = [
    ("bench {teacher} --layers", ["--quantize int8", "--compile", "--evaluation e", "--plot p"], "with --layers"),
    ("capture {teacher} --data {text} --output out", ["--compression int8"], "without --hidden-layers"),
    ("convert {teacher} out", ["--iterations 3", "--iterations 0"], "for a model of ours"),
    ("generate {teacher}", ["--seed 0", "--seed 5"], "without a --temperature above 0"),
    ("generate {teacher}", ["--top-k 3", "--top-p 0.5", "--num-samples 2"], "expected a temperature above 0"),
    ("generate {teacher}", ["--draft-plan {plan}", "--draft-length 3"], "expected a draft with them"),
    ("generate {teacher} --draft auto", ["--draft-plan {plan}"], "expected the draft self"),
    ("plan profile.json --threshold 0 --output out",
     ["--seed 0", "--verification v", "--max-tokens 64", "--text-field text"], "without --verify"),
    ("plan profile.json --threshold 0 --output out", ["--phase decode", "--device cpu", "--dtype float32"],
     "expected a latency table"),
    ("plan profile.json --speedup 1.1 --latency latency.json --output out", ["--normalize model"],
     "expected a threshold to go with it"),
    ("plan profile.json --curve", ["--context 64", "--batch-size 1"], "with --curve alone"),
    ("plan profile.json --curve", ["--output out"], "with --curve alone"),
    ("distill {teacher} {plan} --data {text} --output-dir out --signals s",
     ["--set distillation.distill.max_steps=0"], "signals: expected null where stage distill does not run"),
]  # fmt: skip


@pytest.fixture
def here(folders, tmp_path, monkeypatch):
    """A profile and a table; the working folder."""
    monkeypatch.chdir(tmp_path)
    profile = make_profile()
    profile.save(tmp_path / "profile.json")
    make_table(profile.model).save(tmp_path / "latency.json")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "option", "words"),
    [(line, option, words) for line, options, words in CASES for option in options],
)
def test_an_option_that_does_not_apply_is_refused_by_name(line, option, words, here, folders, iiad):
    before = sorted(here.iterdir())
    code, out, err = iiad(*f"{line} {option}".format(**vars(folders)).split())
    *_, message = err.splitlines()
    assert (code, out) == (2, "")
    assert words in message
    assert option.split()[0].removeprefix("--").partition("-")[0] in message or "distillation" in option
    assert sorted(here.iterdir()) == before


def test_options_apply_where_their_condition_holds(here, folders, iiad):
    for line in (
        "plan profile.json --curve --latency latency.json --batch-size 2",
        "plan profile.json --threshold 0 --context 64 --batch-size 1 --output plan.json",
        f"capture {folders.teacher} --data {folders.text} --output out --hidden-layers 0 --compression int8 "
        "--block-size 16 --max-tokens 32 --no-check-teacher",
        f"generate {folders.teacher} --max-new-tokens 2 --temperature 1 --seed 5",
    ):
        assert iiad(*line.split())[0] == 0, line
