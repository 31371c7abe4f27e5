"""`iiad capture --beam`: what a teacher makes of each source, as pairs that training reads."""

import json

import pytest

from iiad.data import PairLimits, load_tokenizer, pack, resolve_inputs
from iiad.distillation import distill
from iiad.files import file_sha256
from iiad.generation import beam_targets, generate_texts, load_generator
from iiad.generation.beam_record import BeamRecord
from iiad.generation.beam_targets import capture_beams
from iiad.training import DistillRecipe
from tests.helpers import PAIRS, refused

GIVEN = {"num_beams": 2, "max_new_tokens": 6, "device": "cpu"}


def rows_of(folder):
    return [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]


@pytest.fixture
def capture(pair_folders, cache_dir, tmp_path):
    def run(name="beams", inputs=(pair_folders.pairs,), **changes):
        given = {**GIVEN, "cache_dir": cache_dir, **changes}
        record = capture_beams(pair_folders.teacher, list(map(str, inputs)), tmp_path / name, **given)
        return record, tmp_path / name

    return run


def test_targets_are_what_generate_makes_of_each_source_and_a_student_learns_from_them(
    capture, pair_folders, cache_dir, tmp_path
):
    record, folder = capture()
    sources = [source for source, _ in PAIRS]
    model = load_generator(pair_folders.teacher, device="cpu")
    made = generate_texts(*model, sources, max_new_tokens=6, num_beams=2).texts
    wanted = [
        (source, target.strip()) for source, target in zip(sources, made, strict=True) if target.strip()
    ]
    assert [(row["source"], row["target"]) for row in rows_of(folder)] == wanted
    assert record == BeamRecord.load(folder / "beams.json")
    assert (record.num_pairs, record.num_empty) == (len(wanted), len(PAIRS) - len(wanted))
    assert record.sha256 == file_sha256(folder / "pairs.jsonl")
    assert record.length_penalty == 1
    corpus = pack(
        resolve_inputs([str(folder)], "train"), load_tokenizer(pair_folders.teacher), cache_dir=cache_dir
    )
    assert corpus.num_documents == len(wanted)
    stage = {"max_steps": 1, "warmup_steps": 0, "learning_rate": 0.01}
    recipe = DistillRecipe.model_validate(
        {
            "data": {"train": [str(folder)], "cache_dir": str(cache_dir)},
            "distillation": {"check_teacher": False, "distill": stage, "recover": {"max_steps": 0}},
            "training": {"logging_steps": 1},
        }
    )
    distill(pair_folders.teacher, pair_folders.plan, recipe, tmp_path / "student")


def test_an_interrupted_capture_goes_on_and_ends_as_an_unbroken_one(capture, monkeypatch):
    monkeypatch.setattr(beam_targets, "ROWS_AT_ONCE", 2)
    whole, folder = capture()
    search = beam_targets.search_all

    def stop(kind, prompts, *args):
        monkeypatch.setattr(beam_targets, "search_all", interrupt)
        return search(kind, prompts, *args)

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(beam_targets, "search_all", stop)
    with pytest.raises(KeyboardInterrupt):
        capture("broken")
    monkeypatch.setattr(beam_targets, "search_all", search)
    with refused("holds an unfinished capture"):
        capture("broken")
    with refused("cannot be resumed: num_beams was 2, now 3"):
        capture("broken", num_beams=3, resume=True)
    again, other = capture("broken", resume=True)
    assert again == whole
    assert (other / "pairs.jsonl").read_bytes() == (folder / "pairs.jsonl").read_bytes()
    assert sorted(path.name for path in other.iterdir()) == ["beams.json", "pairs.jsonl"]
    with refused("holds finished targets"):
        capture("broken", resume=True)


def test_long_sources_are_left_out_and_counted(capture, capsys):
    record, folder = capture(limits=PairLimits(source=9))
    assert record.num_left_out > 0
    assert record.num_pairs + record.num_empty + record.num_left_out == len(PAIRS)
    kept = [source for source, _ in PAIRS if source in {row["source"] for row in rows_of(folder)}]
    assert [row["source"] for row in rows_of(folder)] == kept
    assert "left out" in capsys.readouterr().err


def test_the_command_writes_and_shows_them_and_refuses_what_does_not_fit(
    pair_folders, folders, tmp_path, iiad
):
    given = ["capture", pair_folders.teacher, "--data", pair_folders.pairs, "--output", tmp_path / "beams"]
    code, shown, errors = iiad(*given, "--beam", 2, "--max-new-tokens", 5, "--device", "cpu")
    assert code == 0, errors
    assert "pairs by 2 beams" in shown
    assert "targets of" in iiad("show", tmp_path / "beams" / "beams.json")[1]
    for arguments, message in (
        ([*given, "--beam", 2, "--top-k", 4], "--top-k: expected none with --beam"),
        ([*given, "--max-new-tokens", 4], "--max-new-tokens: expected none without --beam"),
        ([*given, "--beam", 2, "--max-source-tokens", 500], "max_source_tokens: expected 2 to 128"),
        ([*given[:1], folders.teacher, *given[2:], "--beam", 2], "expected an encoder-decoder, got a causal"),
        (
            [*given[:3], folders.text, *given[4:], "--beam", 2],
            "translator: data: expected pairs of source and target",
        ),
        ([*given[:3], folders.text, *given[4:]], "translator: data: expected pairs of source and target"),
        ([*given, "--beam", 2, "--max-new-tokens", 200], "max_new_tokens: expected at most 127"),
    ):
        arguments = [tmp_path / "other" if each == tmp_path / "beams" else each for each in arguments]
        code, _, errors = iiad(*arguments)
        assert code == 2
        assert message in errors
        assert not [path for path in (tmp_path / "other").glob("*") if path.name != ".lock"]
