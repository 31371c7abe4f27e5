"""Capturing: right numbers, whole files or none, resume to the same bytes, clear refusals."""

import errno
import json
import math
import os
import shutil
import subprocess
import sys

import pytest
import torch

from iiad import InputError
from iiad.checkpoints import identify_model, load_model
from iiad.data import TokenBlocks, load_tokenizer, pack, resolve_inputs, tokenizer_fingerprint
from iiad.distillation.stored_signals import StoredSignals
from iiad.distillation.teacher_outputs import TeacherOutputs
from iiad.models.layers import IterativeLayer
from tests.helpers import held_by_another, refused

from .conftest import BLOCKS_PER_SHARD, LAYERS, NUM_BLOCKS, T, files_of

NUM_SHARDS = 8
JOURNAL = "signals.partial.jsonl"


@pytest.fixture
def blocks(teacher, little_text, cache_dir):
    corpus = pack(resolve_inputs([str(little_text)], "train"), load_tokenizer(teacher), cache_dir=cache_dir)
    return TokenBlocks(corpus, T)


def test_what_is_stored_is_what_the_teacher_says(stored, blocks, teacher):
    model = load_model(teacher)
    for index in (0, 5, NUM_BLOCKS - 1):
        with torch.no_grad():
            output = model(input_ids=blocks[index]["input_ids"][None], output_hidden_states=True)
        log_probs = (output.logits[0].double() / 2.0).log_softmax(-1)  # (T, V)
        top, ids = log_probs.topk(8)
        tail = log_probs.scatter(1, ids, -math.inf).logsumexp(1)
        found = stored.read(index)
        assert torch.equal(found["top_ids"], ids)
        assert {found[name].dtype for name in ("top_log_probs", "top_tail")} == {torch.float32}
        torch.testing.assert_close(found["top_log_probs"].double(), top, rtol=0, atol=1.1e-3)
        torch.testing.assert_close(found["top_tail"].double(), tail, rtol=0, atol=1.1e-3)
        states = torch.cat([output.hidden_states[layer] for layer in LAYERS])
        assert len(output.hidden_states) == len(LAYERS) == len(found["hidden_states"])
        error = (found["hidden_states"] - states).abs()
        assert (error <= states.abs().amax(-1, keepdim=True) / 250).all()


def test_record_says_whose_signals_they_are_and_how_large(signals, stored, blocks, teacher):
    record = stored.record
    identity = identify_model(load_model(teacher), teacher)
    assert record.teacher == identity
    assert record.teacher.num_iterations == [2, 1]
    assert record.tokenizer_fingerprint == tokenizer_fingerprint(load_tokenizer(teacher))
    assert record.data.fingerprint == blocks.corpus.fingerprint
    assert (record.num_blocks, record.num_tokens, record.data.num_tokens) == (30, 480, 480)
    sizes = {path.name: path.stat().st_size for path in signals.glob("shard-*")}
    assert len(sizes) == NUM_SHARDS == record.num_shards
    assert sum(sizes.values()) == record.num_bytes
    assert record.layout.bytes_per_token == record.num_bytes / record.num_tokens == 8 * 4 + 3 * (32 + 4)
    assert sorted(sizes) == sorted(path.name for path in signals.iterdir() if path.name != "signals.json")
    kept = [1 - stored.read(i)["top_tail"].double().exp().mean() for i in range(NUM_BLOCKS)]
    assert record.kept_mass == pytest.approx(float(sum(kept)) / NUM_BLOCKS, abs=1e-4)
    assert [len(record.blocks_of(index)) for index in (0, NUM_SHARDS - 1)] == [BLOCKS_PER_SHARD, 2]
    stored.verify()


def test_where_memory_runs_out_the_sizes_and_what_helps_are_told(capture, monkeypatch, tmp_path):
    evaluate = IterativeLayer.evaluate

    def fail(layer, point, *args, **kwargs):
        if point.shape[1] <= 2:  # so many tokens are tried when a model is loaded
            return evaluate(layer, point, *args, **kwargs)
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1073741824 bytes."
        )

    monkeypatch.setattr(IterativeLayer, "evaluate", fail)
    with pytest.raises(InputError) as caught:
        capture(tmp_path / "signals")
    line = str(caught.value)
    assert line.startswith(
        "capturing teacher on cpu: out of memory, asked for 1.0 GiB more; batch 3 x 16 tokens, 5 "
    )
    assert line.endswith("what helps: a smaller batch, shorter blocks or bfloat16")


def test_batch_and_chunk_change_nothing_but_rounding(capture, signals, stored, tmp_path):
    capture(tmp_path / "same")
    assert files_of(tmp_path / "same") == files_of(signals)
    capture(tmp_path / "other", batch_size=7, chunk_tokens=5)
    other = StoredSignals.open(tmp_path / "other")
    for index in range(NUM_BLOCKS):
        one, two = stored.read(index), other.read(index)
        assert (one["top_ids"] == two["top_ids"]).float().mean() > 0.99
        torch.testing.assert_close(one["top_log_probs"], two["top_log_probs"], rtol=0, atol=2.1e-3)


def test_less_can_be_kept_in_fewer_bytes(capture, stored, tmp_path):
    record = capture(tmp_path / "run", hidden_layers=[2], compression="bfloat16", temperature=1.0, top_k=300)
    assert record.layout.bytes_per_token == 300 * 4 + 32 * 2
    block = StoredSignals.open(tmp_path / "run").read(0)
    assert block["hidden_states"].dtype == torch.bfloat16
    torch.testing.assert_close(
        block["hidden_states"][0].float(), stored.read(0, [2])["hidden_states"][0], rtol=0.01, atol=0.05
    )
    assert (block["top_tail"] == -math.inf).all()
    assert record.kept_mass == 1
    record = capture(
        tmp_path / "bare", hidden_layers=[], max_tokens=None, blocks_per_shard=None, block_size=128
    )
    assert record.num_shards == 1
    assert record.num_tokens > NUM_BLOCKS * T
    assert set(StoredSignals.open(tmp_path / "bare").read(0)) == {"top_ids", "top_log_probs", "top_tail"}


def test_bfloat16_is_close_and_says_so(capture, stored, tmp_path):
    record = capture(tmp_path / "run", dtype="bfloat16")
    assert record.dtype == "bfloat16"
    one, two = stored.read(0), StoredSignals.open(tmp_path / "run").read(0)
    assert not torch.equal(one["top_log_probs"], two["top_log_probs"])
    torch.testing.assert_close(one["top_log_probs"], two["top_log_probs"], rtol=0, atol=0.3)


def test_a_model_whose_head_is_not_known_to_be_plain_gives_the_same(teacher, blocks):
    batch = blocks.batch([0])
    outputs = TeacherOutputs(load_model(teacher), 8, 1.0, [1], chunk_tokens=3)
    plain = outputs(batch, "block 0")
    outputs.plain = False
    whole = outputs(batch, "block 0")
    assert torch.equal(plain.ids, whole.ids)
    torch.testing.assert_close(plain.gaps, whole.gaps)
    assert torch.equal(plain.states, whole.states)


def test_logits_with_nan_are_one_line(teacher, blocks):
    model = load_model(teacher)
    model.lm_head.weight.data[7] = math.nan
    with pytest.raises(InputError, match=r"block 3: the teacher's logits: .* got NaN"):
        TeacherOutputs(model, 8, 1.0, [])(blocks.batch([0]), "block 3")
    model.model.embed_tokens.weight.data[:] = math.inf
    model.lm_head.weight.data[:] = 0
    with pytest.raises(InputError, match="NaN or infinity"):
        TeacherOutputs(model, 8, 1.0, [0])(blocks.batch([0]), "block 3")


# In children: one is killed as it starts, the next ones some time after they have finished a shard, in the midst of
# another; the last one gets through.
KILLS = """
import os, random, signal, sys, time
from pathlib import Path
from iiad.distillation import capture_signals
folder, options = Path(sys.argv[1]), eval(sys.argv[2])
capture_signals(**options, output_dir=sys.argv[3])
random.seed(0)
for attempt in range(4):
    before = len(list(folder.glob("shard*")))
    child = os.fork()
    if child == 0:
        capture_signals(**options, output_dir=folder, resume=True)
        os._exit(0)
    if attempt < 3:
        while 0 < attempt and len(list(folder.glob("shard*"))) == before:
            time.sleep(0.001)
        time.sleep(random.random() * 0.03)
        os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == (signal.SIGKILL if attempt < 3 else 0), attempt
"""


def test_a_capture_killed_at_random_moments_ends_with_the_bytes_of_an_unbroken_one(
    teacher, little_text, options, tmp_path
):
    arguments = {**options, "teacher_folder": str(teacher), "inputs": [str(little_text)]}
    arguments |= {"blocks_per_shard": 1, "max_tokens": 30 * T}
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path / "killed"), repr(arguments), str(tmp_path / "unbroken")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stderr.count("shards were captured before") >= 2
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "unbroken")


class StoppedError(RuntimeError):
    pass


@pytest.fixture(scope="module")
def stopped(capture, tmp_path_factory):
    """A folder with a capture that was interrupted in its sixth shard, after its fifth one was noted."""
    calls, call = iter(range(11)), TeacherOutputs.__call__

    def counted(self, input_ids, where):
        if next(calls, None) is None:
            raise StoppedError
        return call(self, input_ids, where)

    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TeacherOutputs, "__call__", counted)
        with pytest.raises(StoppedError):
            capture(folder)
    return folder


@pytest.fixture
def interrupted(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "run")


def test_an_interrupted_capture_holds_whole_shards_and_no_signals(interrupted):
    names = sorted(path.name for path in interrupted.iterdir())
    assert names == [*(f"shard-0000{index}.bin" for index in range(5)), JOURNAL]
    with pytest.raises(InputError, match="capture is not finished; go on with iiad capture --resume"):
        StoredSignals.open(interrupted)


@pytest.mark.parametrize("harm", ["none", "flip", "cut", "lose", "half a line", "left over"])
def test_whatever_was_damaged_is_captured_again_and_nothing_else(harm, interrupted, capture, signals, capsys):
    shard, journal = interrupted / "shard-00002.bin", interrupted / JOURNAL
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    text = journal.read_text()
    if harm == "flip":
        shard.write_bytes(content)
    elif harm == "cut":
        shard.write_bytes(content[:-9])
    elif harm == "lose":
        shard.unlink()
    elif harm == "half a line":
        journal.write_text(text[:-20])
    elif harm == "left over":
        for name in (".shard-00006.bin.tmp", f".{JOURNAL}-abc", ".signals.json-abc"):
            (interrupted / name).write_bytes(b"half")
    kept = {path.name: path.stat().st_mtime_ns for path in interrupted.glob("shard*")}
    capture(interrupted, resume=True)
    assert files_of(interrupted) == files_of(signals)
    said = capsys.readouterr().err
    damaged = harm in ("flip", "cut", "lose")
    assert ("shard-00002.bin: is missing or damaged; it is captured again" in said) == damaged
    assert f"{4 if damaged or harm == 'half a line' else 5} shards were captured before" in said
    assert (interrupted / "shard-00001.bin").stat().st_mtime_ns == kept["shard-00001.bin"]


def test_a_forged_shard_beyond_the_last_is_refused(interrupted, capture):
    journal = interrupted / JOURNAL
    lines = journal.read_text().splitlines()
    forged = json.loads(lines[-1]) | {"index": 8}
    journal.write_text("\n".join([*lines, json.dumps(forged), ""]))
    with pytest.raises(InputError, match=r"line 7: index: expected a shard from 0 to 7, got 8"):
        capture(interrupted, resume=True)


def test_one_capture_at_a_time_and_another_batch_size_may_go_on(interrupted, capture):
    with held_by_another("lock_folder", interrupted), refused("is being written by process"):
        capture(interrupted, resume=True)
    capture(interrupted, resume=True, batch_size=2)
    StoredSignals.open(interrupted).verify()


def test_other_settings_are_not_resumed_but_named(interrupted, capture):
    before = files_of(interrupted)
    for changes, message in (
        ({"top_k": 9}, "layout.top_k was 8, now 9"),
        ({"temperature": 1.0}, "temperature was 2.0, now 1.0"),
        ({"block_size": 8}, "layout.block_size was 16, now 8"),
        ({"hidden_layers": [0]}, r"layout.hidden_layers was \[0, 1, 2\], now \[0\]"),
        ({"compression": "bfloat16"}, "layout.compression was 'int8', now 'bfloat16'"),
        ({"max_tokens": 64}, "num_blocks was 30, now 4"),
        ({"dtype": "bfloat16"}, "dtype was 'float32', now 'bfloat16'"),
        ({"blocks_per_shard": 5}, "layout.blocks_per_shard was 4, now 5"),
    ):
        with pytest.raises(InputError, match=f"cannot be resumed: .*{message}"):
            capture(interrupted, resume=True, **changes)
        assert files_of(interrupted) == before


def test_another_teacher_plan_or_text_is_not_resumed_but_named(
    interrupted, capture, teacher, little_text, tmp_path
):
    tokenizer = load_tokenizer(teacher)
    for name in ("fingerprint", "num_iterations"):
        model = load_model(teacher)
        if name == "fingerprint":
            model.model.norm.weight.data[0] += 1
        else:
            model.set_num_iterations([1, 1])
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        with pytest.raises(InputError, match=f"cannot be resumed: teacher.{name} was") as error:
            capture(interrupted, source=tmp_path / name, resume=True)
        assert "\n" not in str(error.value)
    (tmp_path / "other.txt").write_text("The plan keeps the token. " * 200)
    with pytest.raises(InputError, match=r"cannot be resumed: data\.fingerprint was \w{12}, now \w{12}"):
        capture(interrupted, inputs=[str(tmp_path / "other.txt")], resume=True)
    shutil.copytree(teacher, tmp_path / "moved")
    shutil.copy(little_text, tmp_path / "moved.jsonl")
    capture(interrupted, source=tmp_path / "moved", inputs=[str(tmp_path / "moved.jsonl")], resume=True)


def test_nothing_that_is_there_is_overwritten(signals, interrupted, capture, tmp_path):
    before = files_of(signals), files_of(interrupted)
    for resume in (False, True):
        with pytest.raises(InputError, match="holds finished signals; nothing was changed"):
            capture(signals, resume=resume)
    with pytest.raises(InputError, match="holds an unfinished capture; go on with --resume"):
        capture(interrupted)
    assert (files_of(signals), files_of(interrupted)) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no capture"):
        capture(tmp_path / "mine", resume=True)
    with pytest.raises(InputError, match="expected a folder, got a file"):
        capture(tmp_path / "mine" / "thesis.tex")
    (interrupted / JOURNAL).write_text("{")
    with pytest.raises(InputError, match="cannot be resumed"):
        capture(interrupted, resume=True)


def test_a_full_disk_is_one_line_and_leaves_only_whole_shards(capture, signals, tmp_path, monkeypatch):
    sync, count = os.fsync, 0

    def full(descriptor):
        nonlocal count
        count += 1
        if count > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=r"No space left on device; .* go on with --resume") as error:
            capture(tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not [path for path in (tmp_path / "run").iterdir() if path.suffix == ".tmp"]
    capture(tmp_path / "run", resume=True)
    assert files_of(tmp_path / "run") == files_of(signals)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 301}, "top_k: expected 1 to 300, the teacher's vocabulary, got 301"),
        ({"top_k": 0}, "top_k: .* got 0"),
        ({"temperature": 0.0}, "temperature: expected from 0.01 to 100, got 0.0"),
        ({"temperature": math.nan}, "temperature: .* got nan"),
        ({"block_size": 129}, "block_size: expected 2 to 128, the teacher's context, got 129"),
        ({"block_size": 0}, "block_size: .* got 0"),
        ({"hidden_layers": [3]}, "hidden_layers: expected 0 .the embeddings. to 2 .* got 3"),
        ({"hidden_layers": [-1]}, "hidden_layers: .* got -1"),
        ({"hidden_layers": [1, 1]}, r"hidden_layers: expected each layer once, got \[1, 1\]"),
        ({"compression": "zip"}, "compression: expected int8 or bfloat16, got 'zip'"),
        ({"dtype": "float16"}, "dtype: .* got 'float16'"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"max_tokens": 15}, "max_tokens: expected at least 16, a block's tokens, got 15"),
        ({"device": "tpu9"}, "device: expected cpu, or cuda where there is one, got 'tpu9'"),
        ({"inputs": ["missing.txt"]}, "missing.txt"),
        ({"source": "missing"}, "missing: no such model folder"),
    ],
)
def test_what_cannot_be_captured_is_one_line_and_writes_nothing(changes, message, capture, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        capture(tmp_path / "run", **changes)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_text_shorter_than_a_block_and_a_teacher_without_tokenizer_are_refused(capture, teacher, tmp_path):
    (tmp_path / "short.txt").write_text("The plan.")
    with pytest.raises(
        InputError, match=r"block_size: expected at most the \d+ tokens of the corpus, got 16"
    ):
        capture(tmp_path / "run", inputs=[str(tmp_path / "short.txt")])
    shutil.copytree(teacher, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(InputError, match="tokenizer"):
        capture(tmp_path / "run", source=tmp_path / "bare")
    assert not (tmp_path / "run").exists()
