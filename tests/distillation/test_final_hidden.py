"""Final hidden states beside the head: the teacher's whole distribution, but for rounding."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from iiad import InputError
from iiad.checkpoints import load_model
from iiad.data import TokenBlocks, load_tokenizer, pack, resolve_inputs
from iiad.distillation import LiveTeacher, StoredTeacher, capture_signals
from iiad.distillation.divergences import DIVERGENCES, TeacherDivergence
from iiad.distillation.signal_record import SignalRecord
from iiad.distillation.stored_head import choose_scales
from iiad.distillation.stored_signals import StoredSignals
from iiad.distillation.teacher_outputs import TeacherOutputs
from iiad.files import file_sha256
from iiad.training.head import head_loss
from tests.helpers import log_of, refused

from .conftest import NUM_BLOCKS, T, files_of

D = 32
FINAL = {"top_k": None, "temperature": 1.0, "hidden_layers": []}


@pytest.fixture(scope="module")
def folders(capture, tmp_path_factory):
    """A capture in each type."""
    folder = tmp_path_factory.mktemp("final")
    for compression in ("bfloat16", "int8"):
        capture(folder / compression, **FINAL, compression=compression)
    return folder


@pytest.fixture
def copied(folders, tmp_path):
    return shutil.copytree(folders / "int8", tmp_path / "signals")


@pytest.fixture
def batch(teacher, little_text, cache_dir):
    corpus = pack(resolve_inputs([str(little_text)], "train"), load_tokenizer(teacher), cache_dir=cache_dir)
    return TokenBlocks(corpus, T).batch(range(6))


def targets(stored, teacher, batch):
    """The same blocks' target, live and of these signals."""
    signals = torch.utils.data.default_collate([stored.read(index) for index in range(6)])
    live = LiveTeacher(load_model(teacher)).signal(batch).target
    return live, StoredTeacher(stored).signal(batch | signals).target


@pytest.mark.parametrize(("compression", "num_bytes"), [("bfloat16", 2 * D), ("int8", D + 4)])
def test_the_distribution_is_the_teachers_within_the_states_rounding(
    compression, num_bytes, folders, teacher, batch
):
    stored = StoredSignals.open(folders / compression)
    stored.verify()
    assert stored.record.layout.bytes_per_token == num_bytes
    live, found = targets(stored, teacher, batch)
    assert torch.equal(found.weight, live.weight)
    states, weight = live.states.double(), live.weight.double()
    if compression == "int8":
        scales = stored.scales.double()
        error = (states / scales).abs().amax(1, keepdim=True) / 254 * scales
    else:
        error = states.abs() * 2**-8
    logits, rounded = states @ weight.t(), found.states.double() @ weight.t()
    bound = error @ weight.abs().t() * (1 + 1e-5)  # of every logit
    assert ((logits - rounded).abs() <= bound).all()
    log_p, log_q = logits.log_softmax(1), rounded.log_softmax(1)
    kl = (log_p.exp() * (log_p - log_q)).sum(1)
    assert (kl <= bound.amax(1) ** 2 / 2).all()  # Hoeffding's lemma
    assert kl.max() > 0


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_unrounded_signals_are_the_live_teacher_bit_for_bit(kind, temperature, folders, teacher, batch):
    stored = StoredSignals.open(folders / "bfloat16")
    live, _ = targets(stored, teacher, batch)
    signals = TeacherOutputs(load_model(teacher), None, 1.0, [2])(batch, "blocks")
    assert (signals.ids, signals.gaps, signals.kept_mass) == (None, None, 6 * T)
    teachers = StoredTeacher(stored)
    found = teachers.signal(batch | {"final_states": signals.states[:, -1]}).target
    student = torch.randn(6 * T, D, generator=torch.Generator().manual_seed(3))
    losses = [
        head_loss(
            student,
            live.weight,
            batch["labels"].flatten(),
            TeacherDivergence(target, kind, temperature),
            kl_weight=1.0,
            chunk_tokens=7,
        ).kl
        for target in (live, found)
    ]
    assert losses[0] > 0
    assert torch.equal(*losses)


def naive_rounding(states, scales):
    """In float64, number by number."""
    found = torch.zeros_like(states)
    for n, state in enumerate(states):
        step = max(abs(float(x / c)) for x, c in zip(state, scales, strict=True)) / 127
        for d, (x, c) in enumerate(zip(state, scales, strict=True)):
            found[n, d] = round(float(x / c) / step) * step * c
    return found


def test_int8_divides_channels_by_powers_of_two_near_their_rms_and_outliers_stay_with_themselves(
    folders, teacher, batch
):
    stored = StoredSignals.open(folders / "int8")
    live, found = targets(stored, teacher, batch)
    states = live.states.double()
    assert torch.allclose(naive_rounding(states, stored.scales.double()), found.states.double(), atol=1e-6)
    with torch.no_grad():
        model = load_model(teacher)
        corpus = torch.cat([model.model(input_ids=batch["input_ids"]).last_hidden_state]).flatten(0, 1)
    assert torch.equal(stored.scales.log2().round().exp2(), stored.scales)
    rms = choose_scales(corpus * torch.arange(D)) / (corpus * torch.arange(D)).square().mean(0).sqrt()
    assert ((rms[1:] >= 2**-0.51) & (rms[1:] <= 2**0.51)).all()
    assert choose_scales(corpus * torch.arange(D))[0] == 1  # a channel of zeros

    weight, outlier = live.weight.double(), torch.ones(D).double()
    outlier[5] = 400
    large, weight = states * outlier, weight / outlier  # the same distributions
    log_p = (large @ weight.t()).log_softmax(1)
    kls = []
    for scales in (torch.ones(D), choose_scales(large)):
        log_q = (naive_rounding(large, scales.double()) @ weight.t()).log_softmax(1)
        kls.append(float((log_p.exp() * (log_p - log_q)).sum(1).mean()))
    assert kls[1] < kls[0] / 1000


def test_captures_without_scales_are_read_as_they_were(folders, copied, teacher, batch):
    """Those of earlier versions."""
    weight = load_file(copied / "head.safetensors")["weight"]
    scales = StoredSignals.open(folders / "int8").scales
    forge(copied, {"weight": weight})
    old, new = (StoredSignals.open(folder).read(3) for folder in (copied, folders / "int8"))
    assert torch.equal(old["final_states"] * scales, new["final_states"])
    assert torch.equal(old["hidden_states"][-1] * scales, new["hidden_states"][-1])
    StoredSignals.open(copied).verify()


def test_nothing_of_top_k_is_kept_and_other_hidden_states_may_be(capture, folders, tmp_path):
    stored = StoredSignals.open(folders / "bfloat16")
    assert set(stored.read(0, [])) == {"final_states"}
    record = capture(tmp_path / "run", **FINAL | {"hidden_layers": [0]}, max_tokens=64)
    assert record.layout.hidden_layers == [0, 2]
    assert (record.layout.compression, record.kept_mass) == ("bfloat16", 1)
    found = StoredSignals.open(tmp_path / "run").read(3)
    assert found["hidden_states"].shape == (2, T, D)
    assert torch.equal(found["final_states"], found["hidden_states"][1])
    assert torch.equal(found["final_states"], stored.read(3)["final_states"])
    only = StoredSignals.open(tmp_path / "run").read(3, [0])
    assert torch.equal(only["hidden_states"][0], found["hidden_states"][0])


def test_records_of_top_k_are_written_as_they_were(signals):
    assert "head" not in json.loads((signals / "signals.json").read_text())
    assert not (signals / "head.safetensors").exists()


def test_an_interrupted_capture_is_resumed_to_the_same_bytes_and_not_as_another(capture, folders, copied):
    whole = files_of(copied)
    record = SignalRecord.load(copied / "signals.json")
    heading = json.loads(record.model_dump_json(exclude={"kind", "shards", "iiad_version"}))
    heading = {"kind": "unfinished signals", **heading}
    heading["teacher"].pop("name")
    heading["data"].pop("names")
    lines = [json.dumps(heading), *(shard.model_dump_json() for shard in record.shards[:3])]
    (copied / "signals.partial.jsonl").write_text("".join(f"{line}\n" for line in lines))
    for name in ("signals.json", "head.safetensors", "shard-00004.bin"):
        (copied / name).unlink()
    with refused("cannot be resumed: ", "layout.compression was 'int8', now 'bfloat16'"):
        capture(copied, **FINAL, compression="bfloat16", resume=True)
    with refused("cannot be resumed: ", "layout.top_k was None, now 8"):
        capture(copied, temperature=1.0, hidden_layers=[2], resume=True)
    capture(copied, **FINAL, compression="int8", resume=True)
    assert files_of(copied) == whole


def forge(folder, head):
    """Put a head there whose hash fits."""
    save_file(head, folder / "head.safetensors")
    fields = json.loads((folder / "signals.json").read_text())
    fields["head"] = file_sha256(folder / "head.safetensors")
    (folder / "signals.json").write_text(json.dumps(fields))


def test_a_head_that_is_damaged_or_missing_is_named(copied):
    path = copied / "head.safetensors"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    stored = StoredSignals.open(copied)
    with refused("head.safetensors: is damaged: its sha256"):
        stored.verify()
    path.write_bytes(b"no tensors")
    with refused("head.safetensors: cannot be read as safetensors"):
        stored.read_head()
    path.unlink()
    with refused("head.safetensors: is missing"):
        StoredSignals.open(copied)
    with refused("head.safetensors: cannot be read"):
        stored.read_head()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: {"weight": weight[1:]}, "weight: expected [300, 32], got [299, 32]"),
        (lambda weight: {"weight": weight.flatten()}, "weight: expected [300, 32], got [9600]"),
        (lambda weight: {"weight": weight.double()}, "weight: expected one of F32, BF16, F16, got F64"),
        (lambda weight: {"weight": weight * torch.nan}, "weight: expected finite numbers"),
        (lambda weight: {"bias": weight}, "expected 'weight', maybe 'channels', got 2 tensors"),
        (lambda weight: {"weight": weight, "more": weight * 2}, "maybe 'channels', got 3 tensors"),
        (lambda weight: {"channels": None, "bias": weight}, "expected 'weight', maybe 'channels', got 1"),
        (lambda weight: {"weight": weight, "channels": weight[0, 1:]}, "channels: expected [32], got [31]"),
        (lambda weight: {"weight": weight, "channels": 0 * weight[0]}, "channels: expected numbers above 0"),
        (
            lambda weight: {"weight": weight, "channels": weight[0].bfloat16()},
            "channels: expected one of F32",
        ),
        (
            lambda weight: {"weight": weight, "channels": weight[0] * torch.nan},
            "channels: expected finite numbers",
        ),
    ],
)
def test_a_head_that_cannot_be_is_refused_even_with_a_hash_that_fits(change, message, copied):
    found = load_file(copied / "head.safetensors")
    made = {"channels": found["channels"], **change(found["weight"])}
    forge(copied, {name: value.clone() for name, value in made.items() if value is not None})
    with refused("head.safetensors: ", message):
        StoredSignals.open(copied).verify()


def test_states_that_are_not_finite_are_refused_where_they_are_read(copied):
    record = SignalRecord.load(copied / "signals.json")
    blocks = np.memmap(copied / "shard-00001.bin", record.layout.block_dtype, mode="r+")
    blocks[1]["scales"][0, 3] = np.inf
    blocks.flush()
    with refused("shard-00001.bin: block 5: expected finite hidden states"):
        StoredSignals.open(copied).read(5, [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: fields.pop("head"), "head: expected a hash without top_k"),
        (
            lambda fields: fields["layout"].update(top_k=8),
            "head: expected a hash without top_k, null with it",
        ),
        (
            lambda fields: fields["layout"].update(hidden_layers=[1]),
            "hidden_layers: expected the teacher's last",
        ),
        (
            lambda fields: fields["layout"].update(hidden_layers=[], compression=None),
            "hidden_layers: expected the last one without top_k, got none",
        ),
    ],
)
def test_records_that_cannot_be_are_refused(change, message, copied):
    path = copied / "signals.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))
    with refused(message):
        StoredSignals.open(copied)


def test_what_cannot_be_captured_is_one_line_and_writes_nothing(capture, tmp_path, monkeypatch):
    with refused("temperature: expected 1, as final hidden states serve any, got 2.0"):
        capture(tmp_path / "run", **FINAL | {"temperature": 2.0})
    monkeypatch.setattr("iiad.training.scoring.PLAIN_HEADS", frozenset())
    with refused("keep: expected top-k of a iiet, whose logits are not its head's output alone"):
        capture(tmp_path / "run", **FINAL)
    assert not (tmp_path / "run").exists()


def test_any_temperature_fits_and_another_teacher_does_not(folders):
    stored = StoredSignals.open(folders / "int8")
    stored.require(temperature=3.0)
    other = stored.record.teacher.model_copy(update={"fingerprint": "0" * 64})
    with refused("teacher: expected"):
        stored.require(teacher=other)
    assert stored.record.num_blocks == NUM_BLOCKS


@pytest.fixture(scope="module")
def lessons(teacher_folder, little_text, recipe_fields, tmp_path_factory):
    """Signals of the teacher that is distilled."""
    folder = tmp_path_factory.mktemp("lessons")
    for compression in ("bfloat16", "int8"):
        capture_signals(
            teacher_folder,
            [str(little_text)],
            folder / compression,
            top_k=None,
            compression=compression,
            block_size=32,
            cache_dir=recipe_fields["data"]["cache_dir"],
            check_teacher=False,
            device="cpu",
        )
    return folder


@pytest.mark.parametrize(
    ("divergence", "temperature", "bf16"),
    [("forward", 2.0, False), ("reverse", 1.0, True), ("jsd", 0.5, False)],
)
def test_a_distillation_goes_as_with_the_live_teacher(divergence, temperature, bf16, lessons, distilled):
    changes = {"temperature": temperature, "divergence": divergence, "distill": 2, "training": {"bf16": bf16}}
    live = log_of(distilled("live", **changes), "distill")
    for compression, relative in (("bfloat16", 3e-3), ("int8", 1e-2)):
        stored = log_of(distilled(compression, signals=str(lessons / compression), **changes), "distill")
        assert [line["kl"] for line in stored] == pytest.approx(
            [line["kl"] for line in live], rel=relative, abs=1e-5
        )
        assert [line["ce"] for line in stored] == pytest.approx([line["ce"] for line in live], rel=relative)


def test_a_head_that_was_damaged_is_noticed_before_anything_is_learnt(lessons, distilled, tmp_path):
    folder = shutil.copytree(lessons / "int8", tmp_path / "signals")
    forge(folder, {"weight": torch.zeros(4, 4)})
    with pytest.raises(InputError, match=r"head\.safetensors: weight: expected"):
        distilled(distill=1, signals=str(folder))
    assert not (tmp_path / "run").exists()
