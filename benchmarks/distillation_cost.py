"""What a step of distillation costs, against the student's plain step and the teacher's forward pass.

    python benchmarks/distillation_cost.py                              # the paper's 55M model, a block of 256 tokens
    python benchmarks/distillation_cost.py --vocab-size 128000 --num-tokens 128

Everything is timed in turns in one run; a figure is the median over the rounds of what was timed side by side. The
teacher runs 3 iterations a layer, its student one. Exit code 1 where a bound is missed:

    live      a step that learns from a teacher run beside it: at most 1.05 of (plain step + the teacher's forward
              pass with its logits)
    stored    a step that learns from stored top-k signals, reading them included: at most 1.10 of a plain step
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import Row, make_parser, print_rows, time_of
from torch import Tensor
from torch.utils.data import default_collate

from iiad.checkpoints import save_checkpoint
from iiad.data import TokenBlocks, load_tokenizer, pack, read_documents, resolve_inputs, train_tokenizer
from iiad.distillation import LearnFromTeacher, LiveTeacher, StoredTeacher
from iiad.distillation.capture import capture_signals
from iiad.distillation.stored_signals import SignalBlocks, StoredSignals
from iiad.models import IIETConfig, IIETForCausalLM
from iiad.training.learner import LanguageModelling, Learner, Objective
from iiad.training.sections import DistillationSection

BOUNDS = {"live": 1.05, "stored": 1.10}


class Text:
    """Blocks of Python's standard library, and what a teacher says about them: captured, then read from the disk."""

    def __init__(self, teacher: IIETForCausalLM, options: Any, folder: Path):
        sources = resolve_inputs(["stdlib"], "validation")
        texts = (text for source in sources[:50] for document in read_documents(source) for text in document)
        save_checkpoint(teacher, folder / "teacher", tokenizer=train_tokenizer(texts, 2048))
        capture_signals(
            folder / "teacher",
            ["stdlib"],
            folder / "signals",
            top_k=options.top_k,
            block_size=options.num_tokens,
            max_tokens=4 * options.batch_size * options.num_tokens,
            batch_size=options.batch_size,
            cache_dir=folder / "cache",
            dtype="bfloat16",
            check_teacher=False,  # random weights cost what trained ones do
            device=options.device,
        )
        tokenizer = load_tokenizer(folder / "teacher")
        corpus = pack(
            resolve_inputs(["stdlib"], "train"), tokenizer, cache_dir=folder / "cache", progress=False
        )
        self.stored = StoredSignals.open(folder / "signals")
        self.plain = TokenBlocks(corpus, options.num_tokens)
        self.captured = SignalBlocks(self.plain, self.stored, ())
        self.options, self.position = options, 0

    def batch(self, blocks: Any) -> dict[str, Tensor]:
        """The next blocks of those that are captured, on the device."""
        size = self.options.batch_size
        numbers = [(self.position + offset) % len(self.captured) for offset in range(size)]
        self.position += size
        return {
            name: value.to(self.options.device)
            for name, value in default_collate([blocks[number] for number in numbers]).items()
        }


def main() -> int:
    """Measure, print, and say whether every bound is kept."""
    options = read_options()
    missed = False
    with tempfile.TemporaryDirectory() as folder:
        teacher = make_model(options, 3)
        text = Text(teacher, options, Path(folder))
        for bf16 in (False, True):
            figures = measure(teacher, text, options, bf16)
            print("bfloat16 autocast" if bf16 else "float32")
            missed |= not print_rows([Row(name, figures[name], bound) for name, bound in BOUNDS.items()])
    return int(missed)


def measure(teacher: IIETForCausalLM, text: Text, options: Any, bf16: bool) -> dict[str, float]:
    """The ratios, by name."""
    student, section, num_layers = make_model(options, 1), DistillationSection(), options.num_layers
    live = Learner(student, LearnFromTeacher(LiveTeacher(teacher, bf16=bf16), section, num_layers), bf16)
    stored = Learner(student, LearnFromTeacher(StoredTeacher(text.stored), section, num_layers), bf16)
    plain = Learner(student, LanguageModelling(), bf16)
    works: dict[str, Callable[[], Any]] = {
        "plain": lambda: step(plain, text.batch(text.plain)),
        "forward": lambda: run_teacher(teacher, text.batch(text.plain)["input_ids"], bf16),
        "live": lambda: step(live, text.batch(text.plain)),
        "stored": lambda: step(stored, text.batch(text.captured)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(options.rounds + 1):
        names = list(works) if number % 2 else list(reversed(works))  # none is always the one after another
        for name in names:
            seconds[name].append(time_of(works[name], options.device))
    rounds = list(zip(*(seconds[name][1:] for name in works), strict=True))  # the first one warms up
    return {
        "live": statistics.median(live / (plain + forward) for plain, forward, live, _ in rounds),
        "stored": statistics.median(stored / plain for plain, _, _, stored in rounds),
    }


def make_model(options: Any, num_iterations: int) -> IIETForCausalLM:
    """Random weights: cost does not depend on them."""
    torch.manual_seed(0)
    config = IIETConfig(
        vocab_size=options.vocab_size,
        hidden_size=options.hidden_size,
        intermediate_size=options.hidden_size * 11 // 4,
        num_layers=options.num_layers,
        num_attention_heads=max(1, options.hidden_size // 128),
        num_iterations=num_iterations,
        attn_implementation=options.attention,
    )
    return IIETForCausalLM(config).train().to(options.device)


def step(learner: Learner, batch: dict[str, Tensor]) -> None:
    """Signal, forward and backward; the gradients are dropped."""
    objective: Objective | None = learner.objective
    assert objective is not None
    loss, _ = learner(batch, objective.signal(batch))
    loss.backward()
    learner.zero_grad(set_to_none=True)


@torch.no_grad()
def run_teacher(teacher: IIETForCausalLM, input_ids: Tensor, bf16: bool) -> None:
    """What transformers does for it: states and logits."""
    with torch.autocast(input_ids.device.type, torch.bfloat16, enabled=bf16):
        teacher(input_ids=input_ids, use_cache=False)


def read_options() -> Any:
    """The command line."""
    parser = make_parser(__doc__, rounds=10)
    parser.add_argument("--num-layers", type=int, default=12)
    parser.add_argument("--vocab-size", type=int, default=32000)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--num-tokens", type=int, default=256)
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "eager"])
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
