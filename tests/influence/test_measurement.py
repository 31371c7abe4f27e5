"""`iiad profile`, from a model folder and a text file to profile.json."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from iiad.checkpoints import save_checkpoint
from iiad.data import train_tokenizer
from iiad.influence import METRICS, Profile, measure_influence
from iiad.influence import measurement as room
from iiad.influence.measurement import partial_path
from tests.helpers import held_by_another, make_iiet, refused

TEXT = "".join(f"def number_{n}():\n    return {n}\n\n" for n in range(400))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher with its tokenizer, and a text."""
    folder = tmp_path_factory.mktemp("teacher")
    tokenizer = train_tokenizer([TEXT], vocab_size=300)
    model = make_iiet(vocab_size=300, num_iterations=[2, 0, 1], max_position_embeddings=32)
    save_checkpoint(model, folder / "model", tokenizer=tokenizer)
    flat = make_iiet(vocab_size=300, num_iterations=0)
    save_checkpoint(flat, folder / "flat", tokenizer=tokenizer)
    (folder / "text.txt").write_text(TEXT)
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch, iiad):
    """Run the command on the folder's text: exit code, stdout, stderr."""
    monkeypatch.setenv("IIAD_CACHE", str(folder / "cache"))

    def invoke(*arguments, model="model", output="profile.json"):
        given = ["profile", folder / model, "--data", folder / "text.txt", "--output", tmp_path / output]
        return iiad(*given, "--device", "cpu", *arguments)

    return invoke


def test_the_command_writes_a_profile_and_prints_its_tables(run, tmp_path):
    options = ["--max-tokens", 320, "--batch-size", 4, "--seed", 3]
    code, shown, _ = run(*options, "--details")
    assert code == 0
    assert shown.startswith("Verdict: ")
    assert all(f"influence by {metric}" in shown for metric in METRICS)
    assert "iiad profile teacher --data stdlib --output profile.json" in run("--help")[1]
    made = Profile.load(tmp_path / "profile.json")
    assert list(made.scores) == list(METRICS)
    assert made.model.num_iterations == [2, 0, 1]
    assert made.settings.block_size == 32  # the model's context, below 512
    assert made.settings.dtype == "float32"
    assert (len(made.batches), made.num_tokens, made.data[0].num_tokens) == (3, 320, 320)
    assert not partial_path(tmp_path / "profile.json").exists()
    assert run(*options, "--metric", "cosine", "--overwrite")[0] == 0
    assert Profile.load(tmp_path / "profile.json").scores == {"cosine": made.scores["cosine"]}


def test_the_options_reach_the_profile(run, tmp_path):
    options = "--metric cosine --block-size 16 --max-tokens 64 --batch-size 2 --dtype bfloat16 --memory-gib 1"
    assert run(*options.split())[0] == 0
    made = Profile.load(tmp_path / "profile.json")
    assert list(made.scores) == ["cosine"]
    assert (made.settings.block_size, made.settings.batch_size, made.settings.dtype) == (16, 2, "bfloat16")
    run(*options.split(), "--seed", "4", output="other.json")
    assert Profile.load(tmp_path / "other.json").scores != made.scores


@pytest.mark.parametrize(
    ("arguments", "model", "message"),
    [
        (
            ["--metric", "magic"],
            "model",
            "metric: expected kl, loss, taylor, cosine, relative_l2, got 'magic'",
        ),
        (["--dtype", "int8"], "model", "dtype: "),
        (["--block-size", "33"], "model", "block_size: expected 2 to 32, the model's context, got 33"),
        (["--max-tokens", "31"], "model", "max_tokens: expected at least one block of 32, got 31"),
        (["--memory-gib", "-1"], "model", "memory_gib: expected from 0 to 1,048,576, got -1.0"),
        (["--data", "no-such-file.txt"], "model", "no-such-file.txt"),
        ([], "flat", "got type 'iiet' and no iterations"),
        ([], "missing", "missing"),
    ],
)
def test_what_cannot_be_profiled_is_one_line_and_leaves_no_file(arguments, model, message, run, tmp_path):
    code, _, errors = run(*arguments, model=model)
    [line] = [line for line in errors.splitlines() if line.startswith("iiad: ")]
    assert code == 2
    assert message in line
    assert not (tmp_path / "profile.json").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("profile.json", "exists already"),
        ("profile.json.partial", "continue it with --resume, or start again with"),
    ],
)
def test_files_of_an_earlier_run_are_refused_before_a_model_is_loaded(name, message, run, tmp_path):
    hollow = tmp_path / "hollow"
    hollow.mkdir()
    empty = "\2" + 7 * "\0" + "{}"  # safetensors without a tensor
    for file, text in {
        name: "precious",
        "hollow/config.json": "{}",
        "hollow/model.safetensors": empty,
    }.items():
        (tmp_path / file).write_text(text)
    code, _, errors = run(model=hollow)
    assert code == 2
    assert message in errors
    assert (tmp_path / name).read_text() == "precious"


@pytest.fixture
def measure(folder, tmp_path):
    """Measure into a file."""
    given = {"max_tokens": 320, "batch_size": 2, "metrics": ["cosine"], "cache_dir": folder / "cache"}

    def run(data=None, **options):
        options = {**given, "output": tmp_path / "p.json", **options}
        return measure_influence(folder / "model", data or [str(folder / "text.txt")], **options)

    return run


def test_two_processes_do_not_share_the_batches_of_one_profile(measure, tmp_path):
    with held_by_another("lock_file", tmp_path / "p.json") as process, refused(f"process {process.pid} on"):
        measure(max_tokens=64)
    assert not list(tmp_path.glob("p.json*"))
    assert measure(max_tokens=64).data[0].num_tokens == 64


def test_several_data_sets_are_kept_apart(folder, tmp_path, measure):
    (tmp_path / "other.txt").write_text("".join(f"class Number{n}: pass\n" for n in range(300)))
    sets = [[str(folder / "text.txt")], [str(tmp_path / "other.txt")]]
    options = {"max_tokens": 128, "output": None}
    made = measure(sets, **options)
    assert [part.names for part in made.data] == sets
    assert [batch.data for batch in made.batches] == [0, 0, 1, 1]
    alone = measure(sets[1], **options)
    assert [batch.scores for batch in made.batches[2:]] == [batch.scores for batch in alone.batches]
    assert len(measure([sets[0] + sets[1]], **options).data) == 1


class InterruptionError(Exception):
    pass


@pytest.fixture
def interrupt_after(monkeypatch):
    """Let measurements fail after some batches; returns the list of the batches that were measured."""
    whole = room.profile_batch

    def set_up(count):
        measured = []

        def limited(*arguments, **options):
            if len(measured) == count:
                raise InterruptionError
            measured.append(1)
            return whole(*arguments, **options)

        monkeypatch.setattr(room, "profile_batch", limited)
        return measured

    return set_up


def test_an_interrupted_profile_goes_on_from_its_finished_batches_and_equals_the_unbroken_one(
    measure, tmp_path, interrupt_after
):
    metrics = ["taylor", "cosine"]
    unbroken = measure(output=None, metrics=metrics)
    interrupt_after(3)
    with pytest.raises(InterruptionError):
        measure(metrics=metrics)
    assert not (tmp_path / "p.json").exists()
    partial = partial_path(tmp_path / "p.json")
    partial.write_text(partial.read_text() + '{"data": 0, "num_tok')  # killed while it wrote a line
    measured = interrupt_after(5)
    assert measure(metrics=metrics, resume=True) == unbroken == Profile.load(tmp_path / "p.json")
    assert len(measured) == len(unbroken.batches) - 3 == 2
    assert not partial.exists()


def test_a_profile_that_could_not_be_read_again_is_refused_before_it_is_measured(
    measure, tmp_path, monkeypatch
):
    monkeypatch.setattr(room, "MOST_JSON_BYTES", 1000)
    with refused("batch_size: expected larger batches, or a lower max_tokens: a profile of about"):
        measure()
    assert not partial_path(tmp_path / "p.json").exists()


def test_a_forged_line_among_the_finished_batches_is_refused(measure, tmp_path, interrupt_after):
    metrics, partial = ["taylor", "cosine"], partial_path(tmp_path / "p.json")
    interrupt_after(3)
    with pytest.raises(InterruptionError):
        measure(metrics=metrics)
    heading, first, *others = partial.read_text().splitlines()
    short = {"cosine": [[1.0]], "taylor": [[1.0]]}
    cases = [
        ({"num_tokens": True}, "num_tokens: expected a valid integer, got True"),
        ({"loss": "3.0"}, "loss: expected a valid number, got '3.0'"),
        ({"data": 1}, "data: expected 0 to 0, got 1"),
        ({"scores": {}}, "scores: expected metrics of cosine, taylor, got "),
        ({"scores": short}, "scores.cosine: expected [2, 0, 1] numbers"),
        ({"stages": {"cosine": [[], [], []]}}, "stages: expected metrics of , got cosine"),
        ({"fixed_point": []}, "fixed_point.residuals: expected [2, 0, 1] numbers"),
    ]
    forgeries = [
        (json.dumps(json.loads(first) | changes), f"line 2: {message}") for changes, message in cases
    ]
    forgeries.append((first.replace("{", '{"data": 0, ', 1), "line 2: 'data' is there twice"))
    forgeries.append(("\n".join([first] * 4), "line 7: expected 5 batches, got more"))
    for forged, message in forgeries:
        content = "\n".join([heading, forged, *others, ""])
        partial.write_text(content)
        with refused(f"{partial}: {message}"):
            measure(metrics=metrics, resume=True)
        assert partial.read_text() == content


def test_without_resume_an_interrupted_profile_is_begun_anew(measure, interrupt_after):
    interrupt_after(3)
    with pytest.raises(InterruptionError):
        measure()
    measured = interrupt_after(5)
    measure()
    assert len(measured) == 5


def test_batches_of_another_measurement_are_not_gone_on_from(measure, tmp_path, interrupt_after):
    interrupt_after(2)
    with pytest.raises(InterruptionError):
        measure()
    before = partial_path(tmp_path / "p.json").read_bytes()
    for change in ({"seed": 1}, {"max_tokens": 64}, {"metrics": ["kl"]}, {"batch_size": 3}):
        with refused(f"{next(iter(change))} was "):
            measure(resume=True, **change)
        assert partial_path(tmp_path / "p.json").read_bytes() == before


def test_an_empty_journal_is_begun_anew(measure, tmp_path):
    partial_path(tmp_path / "p.json").touch()
    assert measure(max_tokens=64, resume=True) == measure(max_tokens=64, output=None)


@pytest.mark.parametrize("content", [b"{", b"\x00\xff\n", b"null\n", b"[1]\n{}", b'{"kind": "profile"}\n'])
def test_a_file_that_is_no_journal_is_refused_and_left_alone(content, measure, tmp_path):
    partial = partial_path(tmp_path / "p.json")
    partial.write_bytes(content)
    with refused("cannot be resumed"):
        measure(resume=True)
    assert partial.read_bytes() == content


@pytest.mark.slow
def test_a_killed_profile_goes_on_and_equals_the_unbroken_one(folder, tmp_path, measure):
    options = "--block-size 16 --batch-size 1 --max-tokens 4000 --metric cosine --output p.json".split()
    arguments = ["profile", folder / "model", "--data", folder / "text.txt", "--device", "cpu", *options]
    environment = {**os.environ, "IIAD_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from iiad_cli.main import run; run()", *map(str, arguments)]
    running = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    partial = tmp_path / "p.json.partial"
    deadline = time.monotonic() + 120
    while not (partial.exists() and partial.read_text().count("\n") > 3) and time.monotonic() < deadline:
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    finished = partial.read_text().split("\n")[1:-1]
    assert 3 <= len(finished) < 250
    same = {"block_size": 16, "batch_size": 1, "max_tokens": 4000}
    resumed = measure(**same, resume=True)
    assert [batch.model_dump_json() for batch in resumed.batches[: len(finished)]] == finished
    assert resumed == measure(**same, output=None)
    assert not partial.exists()
