"""`iiad capture` and `iiad show` of what it wrote."""

import re

import pytest

from iiad.distillation.stored_signals import StoredSignals


@pytest.fixture
def iiad(iiad, monkeypatch, cache_dir):
    """The same, in this room's surroundings."""
    monkeypatch.setenv("IIAD_CACHE", str(cache_dir))
    monkeypatch.setenv("COLUMNS", "160")
    return iiad


def test_captures_prints_the_price_and_shows_it_again(iiad, teacher_folder, text_file, tmp_path):
    folder = tmp_path / "signals"
    options = ["--data", text_file, "--output", folder, "--top-k", 16, "--hidden-layers", "0,2"]
    options += ["--block-size", 32, "--device", "cpu", "--no-check-teacher"]
    code, out, err = iiad("capture", teacher_folder, *options)
    assert code == 0, err
    record = StoredSignals.open(folder).record
    # k ids and k gaps of two bytes; two states of D = 16 bytes, each with a scale of four.
    assert re.fullmatch(
        rf"{re.escape(str(folder))}: {record.num_tokens:,} tokens, 104\.0 bytes per token, [\d.]+ [KM]iB, "
        r"top 16 keep [\d.]+ % of the mass, in [\d.]+ s\n",
        out,
    )
    code, out, err = iiad("capture", teacher_folder, *options)
    assert (code, out) == (2, "")
    assert "holds finished signals" in err
    code, out, _ = iiad("show", folder / "signals.json")
    assert code == 0
    for words in ("iterations 2 2", "104.0 bytes per token", "hidden states 0, 2 in int8", "blocks of 32"):
        assert words in out


def test_final_hidden_states_are_captured_and_shown(iiad, teacher_folder, text_file, tmp_path):
    options = ["--data", text_file, "--keep", "final-hidden", "--block-size", 32, "--device", "cpu"]
    options += ["--no-check-teacher"]
    for given, num_bytes, name in (([], 32, "bfloat16"), (["--dtype", "int8"], 20, "int8")):
        code, out, err = iiad("capture", teacher_folder, *options, "--output", tmp_path / name, *given)
        assert code == 0, err
        assert f"{num_bytes}.0 bytes per token" in out
        assert "final hidden states keep the whole distribution" in out
        code, out, _ = iiad("show", tmp_path / name)
        assert code == 0
        assert "any temperature" in out
        assert f"hidden states 2 in {name}" in out


def test_blocks_are_by_default_as_long_as_those_that_distil_packs(iiad, teacher_folder, text_file, tmp_path):
    folder = tmp_path / "signals"
    command = ["capture", teacher_folder, "--data", text_file, "--output-dir", folder, "--bf16"]
    code, _, err = iiad(*command)
    assert code == 2
    assert "expected a lower loss than by counts" in err
    assert not folder.exists()
    code, _, err = iiad(*command, "--no-check-teacher")
    assert code == 0, err
    assert StoredSignals.open(folder).record.layout.block_size == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hidden-layers", "all"], "hidden_layers: expected numbers, as in 0,6,12, got 'all'"),
        (
            ["--hidden-layers", "0", "--compression", "zip"],
            "compression: expected int8 or bfloat16, got 'zip'",
        ),
        (["--temperature", "0"], "temperature: expected from 0.01 to 100, got 0.0"),
        (["--keep", "all"], "keep: expected top-k or final-hidden, got 'all'"),
        (
            ["--keep", "final-hidden", "--top-k", "8"],
            "--top-k: expected none with --keep final-hidden, got 8",
        ),
        (["--keep", "final-hidden", "--temperature", "2"], "--temperature: expected none with --keep"),
        (["--dtype", "bf16"], "--compression: expected none without --hidden-layers or --keep final-hidden"),
        (["--top-k", "0"], "top_k: expected from 1 to "),
    ],
)
def test_bad_options_are_one_line(options, message, iiad, tmp_path):
    code, out, err = iiad(
        "capture", "owner/missing", "--data", "stdlib", "--output", tmp_path / "run", *options
    )
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_help_has_an_example(iiad):
    code, out, _ = iiad("capture", "--help")
    assert code == 0
    assert "Example:  iiad capture" in out
