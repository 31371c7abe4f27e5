"""`iiad profile`, from a model folder and a text file to profile.json."""

import pytest
import typer
from typer.testing import CliRunner

from cli.profile import profile as command
from iiad.artefacts import ModelIdentity
from iiad.checkpoints import save_checkpoint
from iiad.errors import InputError
from iiad.influence import Profile
from tests.conftest import make_iiet

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
    assert "influence by kl" in result.stdout
    assert "profile written to" not in result.stdout  # a remark, for stderr
    made = Profile.load(tmp_path / "profile.json")
    assert set(made.scores) == {"kl", "cosine"}
    assert isinstance(made.model, ModelIdentity)
    assert made.model.num_iterations == [2, 0, 1]
    assert made.settings.block_size == 32  # the model's context, below 512
    assert (made.num_batches, made.data.num_tokens) == (3, 640)
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
        (["--metric", "magic"], "model", "metric: found 'magic'; accepted: kl, cosine"),
        (["--dtype", "int8"], "model", "dtype: found 'int8'; accepted: float32"),
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
