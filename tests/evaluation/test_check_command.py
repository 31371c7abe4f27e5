"""`iiad check` and `iiad show check.json`: the table and the exit codes."""

import pytest

from iiad.evaluation.check_artefact import Check
from iiad.models import IIETForCausalLM
from iiad.reporting.check_tables import check_table
from tests.helpers import printed

QUICK = ["--no-compile", "--prompt-tokens", "8", "--new-tokens", "5"]


@pytest.fixture
def iiad(iiad, monkeypatch, without_remote_code):
    """The same, in this room's surroundings."""
    monkeypatch.setenv("COLUMNS", "80")
    return iiad


def test_a_sound_model_is_exit_code_0_and_the_table_is_shown_again_from_the_file(iiad, pair, tmp_path):
    output = tmp_path / "check.json"
    code, out, _ = iiad(
        "check", pair / "student", "--teacher", pair / "teacher", "--plan", pair / "plan.json", *QUICK,
        "--seed", 2, "--output", output,
    )  # fmt: skip
    assert code == 0
    assert "19 claims: 18 passed, 0 failed, 1 skipped" in out
    assert "skipped: compiled = eager: not asked for (--no-compile)" in out
    row = next(line for line in out.splitlines() if line.startswith("cached = uncached: logits"))
    assert row.split()[4] == "passed"
    assert row.split()[6:] == ["1.0e-04", "of", "logits'", "std"]
    assert Check.load(output).settings.seed == 2
    code, shown, _ = iiad("show", output)
    assert (code, shown) == (0, out)
    before = output.read_bytes()
    code, _, err = iiad("check", pair / "student", *QUICK, "--output", output)
    assert (code, output.read_bytes()) == (2, before)
    assert "exists already" in err
    code, _, _ = iiad("check", pair / "student", *QUICK, "--output", output, "--overwrite")
    assert (code, Check.load(output).teacher) == (0, None)


def test_a_fault_is_exit_code_1_with_the_table_and_the_file(iiad, pair, tmp_path, monkeypatch):
    def refuse(self, plan):
        raise RuntimeError("no other plan\ntoday")

    monkeypatch.setattr(IIETForCausalLM, "set_num_iterations", refuse)
    code, out, err = iiad("check", pair / "teacher", *QUICK, "--output", tmp_path / "check.json")
    assert code == 1
    row = next(line for line in out.splitlines() if line.startswith("another plan and back = itself"))
    assert row.split()[6:9] == ["FAILED", "-", "0"]
    assert "failed: another plan and back = itself: RuntimeError: no other plan today" in out
    assert "1 failed" in out
    assert "Traceback" not in err
    assert not Check.load(tmp_path / "check.json").passed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "missing: no such model folder"),
        (["{teacher}", "--teacher", "missing"], "missing: no such model folder"),
        (["{teacher}", "--plan", "{plan}"], "plan: found one without a teacher; accepted: both"),
        (["{student}", "--teacher", "{teacher}", "--plan", "missing.json"], "missing.json: no such file"),
        (["{teacher}", "--teacher", "{student}", "--plan", "{plan}"], "plan: was made for teacher"),
        (["{student}", "--teacher", "{llama}"], "a llama; accepted: a model with iterations"),
        (["{teacher}", "--prompt-tokens", "3"], "prompt_tokens: found 3; accepted: at least 4"),
        (["{teacher}", "--new-tokens", "1"], "new_tokens: found 1; accepted: at least 2"),
        (["{teacher}", "--new-tokens", "500"], "found 24 + 500; accepted: at most 128 together"),
        (["{teacher}", "--seed", "-1"], "seed: found -1; accepted: at least 0"),
        (["{teacher}", "--device", "tpu9"], "device: found 'tpu9'"),
        (["{teacher}", "--dtype", "float16"], "dtype: found 'float16'; accepted: float32, bfloat16"),
        (["{teacher}", "--output", "."], ".: is a folder; name a file"),
        ([], "Missing argument"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments, message, iiad, pair, model_folder, monkeypatch, tmp_path
):
    llama = model_folder("llama") if "{llama}" in arguments else ""
    monkeypatch.chdir(tmp_path)
    places = {
        "teacher": pair / "teacher",
        "student": pair / "student",
        "plan": pair / "plan.json",
        "llama": llama,
    }
    code, out, err = iiad("check", *(argument.format(**places) for argument in arguments))
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_table_is_narrow_and_ascii(pair, iiad, tmp_path):
    iiad("check", pair / "teacher", *QUICK, "--output", tmp_path / "check.json")
    text = printed(check_table(Check.load(tmp_path / "check.json")), width=80, encoding="ascii")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("left-padded = single: greedy tokens  passed") for line in lines)
