"""`iiad profile`, from a model folder and a text file to profile.json."""

import os
import signal
import subprocess
import sys
import time

import pytest
import typer
from typer.testing import CliRunner

from cli.profile import profile as command
from iiad.artefacts import ModelIdentity
from iiad.checkpoints import save_checkpoint
from iiad.errors import InputError
from iiad.influence import METRICS, Profile, measure_influence
from iiad.influence import measurement as room
from iiad.influence.partial_profile import partial_path
from tests.helpers import make_iiet

TEXT = "".join(f"def number_{n}():\n    return {n}\n\n" for n in range(400))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher with its tokenizer, and a text."""
    from iiad.data import train_tokenizer

    folder = tmp_path_factory.mktemp("teacher")
    tokenizer = train_tokenizer([TEXT], vocab_size=300)
    model = make_iiet(vocab_size=300, num_iterations=[2, 0, 1], max_position_embeddings=32)
    save_checkpoint(model, folder / "model", tokenizer=tokenizer)
    flat = make_iiet(vocab_size=300, num_iterations=0)
    save_checkpoint(flat, folder / "flat", tokenizer=tokenizer)
    (folder / "text.txt").write_text(TEXT)
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """Run the command on the folder's text; returns the result, with errors raised."""
    monkeypatch.setenv("IIAD_CACHE", str(tmp_path / "cache"))
    app = typer.Typer()
    app.command()(command)

    def invoke(*arguments, model="model", output="profile.json"):
        given = [str(folder / model), "--data", str(folder / "text.txt"), "--output", str(tmp_path / output)]
        result = CliRunner().invoke(app, [*given, "--device", "cpu", *arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


def test_the_command_writes_a_profile_and_prints_its_tables(run, tmp_path):
    result = run("--max-tokens", "640", "--batch-size", "8", "--seed", "3")
    assert result.exit_code == 0
    for metric in METRICS:
        assert f"influence by {metric}" in result.stdout
    made = Profile.load(tmp_path / "profile.json")
    assert list(made.scores) == list(METRICS)
    assert isinstance(made.model, ModelIdentity)
    assert made.model.num_iterations == [2, 0, 1]
    assert made.settings.block_size == 32  # the model's context, below 512
    assert (len(made.batches), made.num_tokens, made.data[0].num_tokens) == (3, 640, 640)
    assert not (tmp_path / "profile.json.partial").exists()
    assert made.settings.dtype == "float32"
    assert run("--max-tokens", "640", "--seed", "3", "--overwrite").exit_code == 0
    assert Profile.load(tmp_path / "profile.json") == made
    run("--max-tokens", "640", "--seed", "4", output="other.json")
    assert Profile.load(tmp_path / "other.json").scores != made.scores


def test_the_options_reach_the_profile(run, tmp_path):
    run(
        "--metric",
        "cosine",
        "--block-size",
        "16",
        "--max-tokens",
        "64",
        "--batch-size",
        "2",
        "--dtype",
        "bfloat16",
    )
    made = Profile.load(tmp_path / "profile.json")
    assert list(made.scores) == ["cosine"]
    assert (made.settings.block_size, made.settings.batch_size, made.settings.dtype) == (16, 2, "bfloat16")


@pytest.mark.parametrize(
    ("arguments", "model", "message"),
    [
        (
            ["--metric", "magic"],
            "model",
            "metric: found 'magic'; accepted: kl, loss, taylor, cosine, relative_l2",
        ),
        (["--dtype", "int8"], "model", "dtype: expected float32 or bfloat16, got 'int8'"),
        (["--block-size", "33"], "model", "block_size: found 33; accepted: 2 to 32"),
        (["--max-tokens", "31"], "model", "max_tokens: found 31; accepted: at least one block of 32"),
        (["--data", "no-such-file.txt"], "model", "no-such-file.txt"),
        ([], "flat", "found type 'iiet' and no iterations"),
        ([], "missing", "missing"),
    ],
)
def test_what_cannot_be_profiled_is_one_line_and_leaves_no_file(arguments, model, message, run, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        run(*arguments, model=model)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "profile.json").exists()


def test_an_existing_output_is_refused_before_anything_is_loaded(run, tmp_path):
    (tmp_path / "profile.json").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        run(model="missing")
    assert (tmp_path / "profile.json").read_text() == "mine"


def test_help_shows_an_example(run):
    result = run("--help")
    assert "iiad profile teacher --data stdlib --output profile.json" in result.stdout


def test_several_data_sets_are_kept_apart(folder, tmp_path):
    (tmp_path / "other.txt").write_text("".join(f"class Number{n}: pass\n" for n in range(300)))
    sets = [[str(folder / "text.txt")], [str(tmp_path / "other.txt")]]
    options = {"max_tokens": 128, "batch_size": 2, "metrics": ["cosine"], "cache_dir": tmp_path / "cache"}
    made = measure_influence(folder / "model", sets, **options)
    assert [part.names for part in made.data] == sets
    assert [batch.data for batch in made.batches] == [0, 0, 1, 1]
    alone = measure_influence(folder / "model", sets[1], **options)
    assert [batch.scores for batch in made.batches[2:]] == [batch.scores for batch in alone.batches]
    both = measure_influence(folder / "model", [sets[0] + sets[1]], **options)
    assert len(both.data) == 1


class InterruptionError(Exception):
    pass


@pytest.fixture
def measure(folder, tmp_path):
    """Measure into a file, with batches of which some may fail."""

    def run(**options):
        given = {
            "max_tokens": 320,
            "batch_size": 2,
            "cache_dir": tmp_path / "cache",
            "output": tmp_path / "p.json",
        }
        return measure_influence(folder / "model", [str(folder / "text.txt")], **{**given, **options})

    return run


def interrupt_after(count, monkeypatch):
    measured, whole = [], room.profile_batch

    def limited(*arguments, **options):
        if len(measured) == count:
            raise InterruptionError
        measured.append(1)
        return whole(*arguments, **options)

    monkeypatch.setattr(room, "profile_batch", limited)
    return measured


def test_an_interrupted_profile_goes_on_from_its_finished_batches_and_equals_the_unbroken_one(
    measure, tmp_path, monkeypatch
):
    unbroken = measure(output=None)
    with monkeypatch.context() as broken:
        interrupt_after(3, broken)
        with pytest.raises(InterruptionError):
            measure()
    assert not (tmp_path / "p.json").exists()
    partial = partial_path(tmp_path / "p.json")
    partial.write_text(partial.read_text() + '{"data": 0, "num_tok')  # killed while it wrote a line
    measured = interrupt_after(5, monkeypatch)
    assert measure(resume=True) == unbroken == Profile.load(tmp_path / "p.json")
    assert len(measured) == len(unbroken.batches) - 3 == 2
    assert not partial.exists()


def test_without_resume_an_interrupted_profile_is_begun_anew(measure, monkeypatch):
    with monkeypatch.context() as broken:
        interrupt_after(3, broken)
        with pytest.raises(InterruptionError):
            measure()
    measured = interrupt_after(5, monkeypatch)
    measure()
    assert len(measured) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "holds batches of other data and settings"),
        ({"seed": 1, "max_tokens": 64}, "holds batches of other data and settings"),
        ({"metrics": ["kl"]}, "holds batches of other metrics"),
        ({"batch_size": 3}, "holds batches of other settings"),
    ],
)
def test_batches_of_another_measurement_are_not_gone_on_from(change, message, measure, tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        interrupt_after(2, broken)
        with pytest.raises(InterruptionError):
            measure()
    before = partial_path(tmp_path / "p.json").read_bytes()
    if change == {"seed": 1}:
        message = "holds batches of other settings"
    if "max_tokens" in change:
        message = "holds batches of other data and settings"
    with pytest.raises(InputError, match=message) as caught:
        measure(resume=True, **change)
    assert "\n" not in str(caught.value)
    assert partial_path(tmp_path / "p.json").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"{", b"\x00\xff\n"])
def test_a_journal_that_was_killed_before_its_first_line_is_begun_anew(content, measure, tmp_path):
    partial_path(tmp_path / "p.json").write_bytes(content)
    assert measure(resume=True) == measure(output=None)


@pytest.mark.parametrize("content", [b"null\n", b"[1]\n{}", b'{"kind": "profile"}\n'])
def test_a_file_that_is_no_journal_is_refused_and_left_alone(content, measure, tmp_path):
    partial = partial_path(tmp_path / "p.json")
    partial.write_bytes(content)
    with pytest.raises(InputError, match="holds batches of other"):
        measure(resume=True)
    assert partial.read_bytes() == content


def test_unfinished_batches_are_not_overwritten_by_a_new_run(run, tmp_path):
    (tmp_path / "profile.json.partial").write_text("precious")
    with pytest.raises(InputError, match="go on from them with --resume, or begin anew with --overwrite"):
        run()
    assert (tmp_path / "profile.json.partial").read_text() == "precious"


def test_a_killed_profile_goes_on_and_equals_the_unbroken_one(folder, tmp_path):
    arguments = ["profile", str(folder / "model"), "--data", str(folder / "text.txt"), "--device", "cpu"]
    arguments += ["--block-size", "16", "--batch-size", "1", "--max-tokens", "1600", "--output", "p.json"]
    environment = {**os.environ, "IIAD_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command_line = [sys.executable, "-c", "from iiad_cli.main import run; run()", *arguments]
    running = subprocess.Popen(command_line, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    partial = tmp_path / "p.json.partial"
    deadline = time.monotonic() + 120
    while not (partial.exists() and partial.read_text().count("\n") > 3) and time.monotonic() < deadline:
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert partial.exists()
    kept = partial.read_text().count("\n") - 1
    assert 3 <= kept < 100
    finished = partial.read_text().split("\n")[1 : kept + 1]
    done = subprocess.run(
        [*command_line, "--resume"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "batches were finished before" in done.stderr
    resumed = Profile.load(tmp_path / "p.json")
    assert [batch.model_dump_json() for batch in resumed.batches[:kept]] == finished
    assert len(resumed.batches) == 100
    assert not partial.exists()
