"""Models, folders, profiles and tables that many tests share: tiny, seeded, made here."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from iiad.artefacts import Artefact
from iiad.checkpoints import identify_model, save_checkpoint
from iiad.data import train_tokenizer
from iiad.errors import InputError
from iiad.identities import DataIdentity, ModelIdentity, ModelShape
from iiad.influence.convergence import FixedPoint
from iiad.influence.profile import BatchRecord, Profile, ProfileSettings
from iiad.models import (
    IIETConfig,
    IIETForCausalLM,
    IIETForConditionalGeneration,
    IIETSeq2SeqConfig,
    PCformerConfig,
    PCformerForCausalLM,
    PCformerForConditionalGeneration,
    PCformerSeq2SeqConfig,
)
from iiad.planning import Plan
from iiad.planning.latency import LatencySettings, LatencyTable, PhaseLatency
from iiad.training import RunRecord, learner

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def stir(model: torch.nn.Module, seed: int = 0, scale: float = 0.15) -> torch.nn.Module:
    """Move every parameter away from its initial value, so that nothing is zero, one or linear by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32).to(parameter.dtype)
            parameter.add_(scale * noise)
    return model.eval()


def make_model(kind: type[torch.nn.Module], config: Any) -> Any:
    """A model with stirred weights, the same every time; the random state is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return stir(kind(config))


def make_iiet(**fields: object) -> IIETForCausalLM:
    """A small IIET with stirred weights."""
    return make_model(IIETForCausalLM, IIETConfig(**{**SHAPE, **fields}))


def make_pcformer(**fields: object) -> PCformerForCausalLM:
    """A small PCformer with stirred weights."""
    return make_model(PCformerForCausalLM, PCformerConfig(**{**SHAPE, **fields}))


PAIR_SHAPE = {**SHAPE, "num_layers": 2, "num_encoder_layers": 3}


def make_seq2seq(**fields: object) -> IIETForConditionalGeneration:
    """A small encoder-decoder IIET with stirred weights."""
    return make_model(IIETForConditionalGeneration, IIETSeq2SeqConfig(**{**PAIR_SHAPE, **fields}))


def make_pcformer_seq2seq(**fields: object) -> PCformerForConditionalGeneration:
    """A small encoder-decoder PCformer with stirred weights."""
    return make_model(PCformerForConditionalGeneration, PCformerSeq2SeqConfig(**{**PAIR_SHAPE, **fields}))


UNEVEN = {"num_encoder_iterations": [0, 2, 1], "num_iterations": [2, 0], "max_num_iterations": 3}
STOPS = [[[9]], [[9], [0.3, 0.1]], [[-0.2, 0.3]], [[], [0.1]], []]
"""Extrapolation of that plan's layers; the 9 are of stops that it does not have."""
PAIR_VARIANTS = {
    "history": lambda: make_seq2seq(**UNEVEN),
    "plain": lambda: make_seq2seq(**UNEVEN, history=False, shared_embeddings=False),
    "relaxed": lambda: make_seq2seq(**UNEVEN, history=False, relaxation=True, tie_word_embeddings=False),
    "extrapolated": lambda: make_seq2seq(**UNEVEN, history=False, extrapolation=STOPS),
    "shared": lambda: make_seq2seq(**UNEVEN, cache_policy="shared"),
    "adaptive": lambda: make_seq2seq(
        num_iterations=3, cache_policy="shared", tolerance=[0.3, None, 0.4, 0.2, 0.5]
    ),
    "pcformer-rk2": lambda: make_pcformer_seq2seq(**UNEVEN),
    "pcformer-rk4-fixed": lambda: make_pcformer_seq2seq(predictor_order=4, coefficients="fixed"),
}


def given_cache(options: dict[str, Any]) -> Any:
    """The cache among a forward call's keyword arguments, by the name of any transformers."""
    return options.get("cache", options.get("past_key_values"))


@torch.no_grad()
def greedy(model: Any, tokens: torch.Tensor, num_new: int) -> torch.Tensor:
    """The tokens (B, T) and num_new more, each by a full forward without a cache."""
    for _ in range(num_new):
        tokens = torch.cat([tokens, model(tokens, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return tokens


VARIANTS = {
    "history": lambda: make_iiet(num_iterations=[0, 2, 1], max_num_iterations=3),
    "history-full": lambda: make_iiet(num_iterations=3),
    "plain": lambda: make_iiet(num_iterations=[1, 0, 2], history=False),
    "relaxed": lambda: make_iiet(num_iterations=[1, 2, 0], history=False, relaxation=True),
    "shared": lambda: make_iiet(num_iterations=[0, 2, 1], cache_policy="shared"),
    "adaptive": lambda: make_iiet(num_iterations=[3, 2, 1], cache_policy="shared", tolerance=0.3),
    "plain-shared": lambda: make_iiet(num_iterations=[1, 0, 2], history=False, cache_policy="shared"),
    "extrapolated": lambda: make_iiet(
        num_iterations=[0, 2, 1],
        max_num_iterations=3,
        extrapolation=[[[9]], [[9], [0.7, 0, 0.2]], [[1.5, -0.3]]],
    ),
    "untied": lambda: make_iiet(num_iterations=1, tie_word_embeddings=False),
    "pcformer-rk2": lambda: make_pcformer(),
    "pcformer-shared": lambda: make_pcformer(cache_policy="shared"),
    "pcformer-rk4-fixed": lambda: make_pcformer(predictor_order=4, coefficients="fixed"),
}


TEXT = """class Stack:
    def __init__(self, items=()):
        self.items = list(items)

    def push(self, item):
        self.items.append(item)
        return len(self.items) + 100

# Ünïcödé, 漢字 and 🙂
"""
BUDGET = [0, 2, 1]


@dataclass(frozen=True)
class Folders:
    """Paths that the tests of evaluation, benchmarking and generation read."""

    teacher: Path
    student: Path
    llama: Path
    other_tokenizer: Path
    text: Path
    plan: Path


def make_llama(**fields: object) -> LlamaForCausalLM:
    """A Llama of the shape of the small IIETs."""
    shape = {name: value for name, value in SHAPE.items() if name != "num_layers"}
    fields = {**shape, "num_hidden_layers": SHAPE["num_layers"], "tie_word_embeddings": True, **fields}
    return make_model(LlamaForCausalLM, LlamaConfig(**fields))


def learn(model: IIETForCausalLM, tokenizer: object) -> None:
    """A few steps on the text, so that the model gets some tokens right."""
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])[:, :60]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(12):
        optimizer.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()


def write_folders(root: Path) -> Folders:
    """Save everything once."""
    tokenizer, other = train_tokenizer([TEXT], 320), train_tokenizer([TEXT], 270)
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    fields = {"vocab_size": len(tokenizer), **tokens}
    teacher = make_iiet(num_iterations=3, **fields)
    learn(teacher, tokenizer)
    folders = Folders(
        *(root / name for name in ("teacher", "student", "llama", "other", "text.txt", "plan.json"))
    )
    save_checkpoint(teacher, folders.teacher, tokenizer=tokenizer)
    Plan.explicit(BUDGET, identify_model(teacher, folders.teacher)).save(folders.plan)
    student = make_iiet(num_iterations=BUDGET, max_num_iterations=3, **fields)
    student.load_state_dict(teacher.state_dict())
    save_checkpoint(stir(student, scale=0.01), folders.student, tokenizer=tokenizer)
    save_checkpoint(make_llama(**fields), folders.llama, tokenizer=tokenizer)
    small = make_iiet(num_iterations=1, vocab_size=len(other), max_position_embeddings=40, **tokens)
    save_checkpoint(small, folders.other_tokenizer, tokenizer=other)
    folders.text.write_text(TEXT * 3, encoding="utf-8")
    return folders


PAIRS = [("def push(self", "def pop(self"), ("return x", "x"), ("import names", "names"), ("class A:", "A")]
PAIR_BUDGET = [1, 0, 0, 2, 1]


class PairFolders(NamedTuple):
    """Encoder-decoders of one vocabulary, PAIRS as a file, and a plan of 4 of the teacher's 15 iterations."""

    teacher: Path
    student: Path
    pairs: Path
    plan: Path


def write_pair_folders(root: Path) -> PairFolders:
    """Save everything once. The models have learnt nothing; the student's plan is the teacher's budget."""
    found = PairFolders(*(root / name for name in ("translator", "smaller", "pairs.jsonl", "plan.json")))
    tokenizer = train_tokenizer([TEXT], 320)
    fields = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    teacher = make_seq2seq(**fields)
    save_checkpoint(teacher, found.teacher, tokenizer=tokenizer)
    Plan.explicit(PAIR_BUDGET, identify_model(teacher, found.teacher)).save(found.plan)
    teacher.set_num_iterations(PAIR_BUDGET)
    save_checkpoint(stir(teacher, scale=0.01), found.student, tokenizer=tokenizer)
    rows = (json.dumps({"source": source, "target": target}) + "\n" for source, target in PAIRS)
    found.pairs.write_text("".join(rows))
    return found


BLOCK_SHAPE = ModelShape(
    hidden_size=32,
    intermediate_size=56,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=97,
    history=True,
    relaxation=False,
)


def make_profile(scores=None, num_iterations=(2, 0, 3), errors=True, num_sets=1, **fields):
    """A profile of a made-up model; `scores` by metric, or numbers that fall with the iteration.

    errors: 8 batches of 512 tokens that lie 10 % apart, in turns from num_sets data sets; False: one batch.
    """
    if scores is None:
        scores = {
            "kl": [[0.1 * (t + 1) / 4**i for i in range(r)] for t, r in enumerate(num_iterations)],
            "cosine": [[0.2 * (t + 1) / 3**i for i in range(r)] for t, r in enumerate(num_iterations)],
        }
    model = ModelIdentity(
        name="teacher",
        fingerprint="a" * 64,
        model_type="iiet",
        num_layers=len(num_iterations),
        num_iterations=list(num_iterations),
        num_start_evaluations=1,
        cache_bytes_per_slot=100,
        shape=BLOCK_SHAPE,
    )
    fixed_point = [make_fixed_point(r) for r in num_iterations]
    steps = [0.9, 1.1] * 4 if errors else [1.0]
    batches = [
        BatchRecord(
            data=number % num_sets,
            num_tokens=512,
            loss=3.0,
            scores={
                metric: [[step * score for score in layer] for layer in layers]
                for metric, layers in scores.items()
            },
            fixed_point=fixed_point,
        )
        for number, step in enumerate(steps)
    ]
    sets = [
        DataIdentity(names=[f"set{n}"], fingerprint=f"{n:x}" * 64, num_tokens=4096 // num_sets)
        for n in range(num_sets)
    ]
    defaults = {
        "model": model,
        "data": sets,
        "settings": ProfileSettings(block_size=64, batch_size=8, max_tokens=4096, seed=0, dtype="float32"),
        "loss": 3.0,
        "scores": scores,
        "standard_errors": {
            metric: [[abs(score) / 10 for score in layer] for layer in layers]
            for metric, layers in scores.items()
        }
        if errors
        else None,
        "fixed_point": fixed_point,
        "batches": batches,
    }
    return Profile(**{**defaults, **fields})


def profile_of(scores):
    """A profile by `kl` alone of a model that runs as many iterations as there are scores."""
    return make_profile({"kl": scores}, tuple(len(layer) for layer in scores))


def make_fixed_point(r, contraction=0.5, turn=0.2):
    """A layer of r iterations, each changing the state `contraction` times as much as the one before."""
    return FixedPoint(
        residuals=[0.4 * contraction**i for i in range(r)],
        contractions=[contraction] * max(r - 1, 0),
        turns=[turn] * max(r - 1, 0),
    )


LATENCY_SETTINGS = LatencySettings(
    device="cpu",
    device_name="a CPU",
    dtype="float32",
    batch_size=2,
    context=256,
    num_threads=1,
    repeats=3,
    torch_version="2.11",
)


def make_phase(layers, fixed=0.001, plan=None, error=0.05):
    """A phase whose one check, of the largest plan unless another is named, is `error` above the clock."""
    plan = plan or [len(layer) - 1 for layer in layers]
    seconds = fixed + sum(layer[r] for layer, r in zip(layers, plan, strict=True))
    return PhaseLatency.of(fixed, layers, [(plan, seconds / (1 + error) or 1.0)])


def make_table(model, layers=None, fixed=0.001, **fields):
    """A table by which an evaluation takes 1 ms of decoding and 10 ms of prefill; or `layers` as they are given."""
    evaluations = [
        [model.num_start_evaluations + r for r in range(most + 1)] for most in model.num_iterations
    ]
    decode, prefill = ([[n * each for n in layer] for layer in evaluations] for each in (0.001, 0.01))
    return LatencyTable(
        model=model,
        settings=LATENCY_SETTINGS,
        decode=make_phase(layers or decode, fixed),
        prefill=make_phase(layers or prefill, fixed, error=-0.02),
        **fields,
    )


def printed(renderable, width=110, encoding="utf-8", **options):
    """A rich renderable as it looks on a terminal."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    Console(file=stream, width=width, **options).print(renderable)
    stream.flush()
    return raw.getvalue().decode(encoding)


@contextmanager
def held_by_another(lock: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Have another process, which is given, hold `lock_folder` or `lock_file` of a path inside of the block."""
    script = (
        f"import sys\nfrom iiad.outputs import {lock}\nwith {lock}(sys.argv[1]): print(flush=True), input()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", script, str(path)], **pipes) as process:
        try:
            process.stdout.readline()
            yield process
        finally:
            process.kill()


@contextmanager
def refused(*words: object) -> Iterator[None]:
    """A block that must raise InputError, in one line that holds every one of the words."""
    with pytest.raises(InputError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    missing = [word for word in words if str(word) not in message]
    assert not missing, f"{missing} not in {message!r}"


def load_spoilt(artefact: Artefact, folder: Path, *change: Any) -> Artefact:
    """Load an artefact's file with one field replaced; change: the path to it, then its value."""
    fields = place = json.loads(artefact.model_dump_json())
    *path, last, value = change
    for step in path:
        place = place[step]
    place[last] = value
    (folder / "spoilt.json").write_text(json.dumps(fields))
    return type(artefact).load(folder / "spoilt.json")


def log_of(run, stage=None, name="loss"):
    """Lines of a run's log.jsonl that hold that figure (None: any), of one stage or of all."""
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [each for each in entries if stage in (None, each["stage"]) and (name is None or name in each)]


def half_done(finished, step, folder):
    """Copy a finished run as a kill after that step's checkpoint leaves it."""
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("checkpoint-*", "*.safetensors"))
    shutil.copytree(finished / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    record = RunRecord.load(folder / "run.json")
    record.model_copy(update={"finished": False, "results": {}}).save(folder / "run.json")
    return folder


def change_loss(monkeypatch, change):
    """Have losses of the text be change(loss, call), for calls from 1."""
    original, calls = learner.head_loss, itertools.count(1)

    def head_loss(*args, **kwargs):
        found = original(*args, **kwargs)
        return found._replace(loss=change(found.loss, next(calls)))

    monkeypatch.setattr(learner, "head_loss", head_loss)
