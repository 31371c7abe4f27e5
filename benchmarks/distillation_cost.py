"""Cost of a step of distillation, against the student's plain step and the teacher's forward pass.

    python benchmarks/distillation_cost.py                              # the paper's 55M model, a block of 256 tokens
    python benchmarks/distillation_cost.py --vocab-size 128000 --num-tokens 128

Works are timed in turns; a figure is the median over the rounds of their ratio. The teacher runs 3 iterations a
layer, its student one. Exit code 1 where a bound is missed:

    live      a step that learns from a teacher run beside it: at most 1.05 of (plain step + the teacher's forward
              pass with its logits)
    stored    a step that learns from stored top-k signals, reading them included: at most 1.10 of a plain step
    final     the same from stored final hidden states in bfloat16: at most 1 of a step with the live teacher, as it
              does all that one does but run the teacher's layers; printed as a multiple of a plain step, too
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import Row, autocasts, make_iiet, make_parser, median_ratio, print_rows, time_in_turns
from torch import Tensor
from torch.utils.data import default_collate

from iiad.checkpoints import save_checkpoint
from iiad.data import TokenBlocks, load_tokenizer, pack, read_documents, resolve_inputs, train_tokenizer
from iiad.distillation import LearnFromTeacher, LiveTeacher, StoredTeacher
from iiad.distillation.capture import capture_signals
from iiad.distillation.stored_signals import SignalBlocks, StoredSignals
from iiad.models import IIETForCausalLM
from iiad.training.distillation_sections import DistillationSection
from iiad.training.learner import LanguageModelling, Learner, Objective

BOUNDS = {"live": 1.05, "stored": 1.10, "final": 1.0}
SIZES = {"num_layers": 12, "vocab_size": 32000, "top_k": 64, "batch_size": 1, "num_tokens": 256}


class Text:
    """Blocks of Python's standard library, and a teacher's signals on them, captured to the disk."""

    def __init__(self, teacher: IIETForCausalLM, options: Any, folder: Path):
        sources = resolve_inputs(["stdlib"], "validation")
        texts = (text for source in sources[:50] for document in read_documents(source) for text in document)
        save_checkpoint(teacher, folder / "teacher", tokenizer=train_tokenizer(texts, 2048))
        self.stored, self.captured = {}, {}
        for name, top_k in (("stored", options.top_k), ("final", None)):
            capture_signals(
                folder / "teacher",
                ["stdlib"],
                folder / name,
                top_k=top_k,
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
        self.plain = TokenBlocks(corpus, options.num_tokens)
        for name in ("stored", "final"):
            self.stored[name] = StoredSignals.open(folder / name)
            self.captured[name] = SignalBlocks(self.plain, self.stored[name], ())
        self.options, self.position = options, 0

    def batch(self, blocks: Any) -> dict[str, Tensor]:
        """Return the next of the captured blocks, on the device."""
        size = self.options.batch_size
        numbers = [(self.position + offset) % len(self.captured["stored"]) for offset in range(size)]
        self.position += size
        return {
            name: value.to(self.options.device)
            for name, value in default_collate([blocks[number] for number in numbers]).items()
        }


def main() -> int:
    """Measure, print, and return 1 where a bound is missed."""
    options = make_parser(__doc__, rounds=10, **SIZES, attention="sdpa").parse_args()
    missed = False
    with tempfile.TemporaryDirectory() as folder:
        teacher = make_iiet(options).train()
        text = Text(teacher, options, Path(folder))
        for name, bf16 in autocasts():
            figures = measure(teacher, text, options, bf16)
            print(name)
            missed |= not print_rows([Row(name, figures[name], bound) for name, bound in BOUNDS.items()])
    return int(missed)


def measure(teacher: IIETForCausalLM, text: Text, options: Any, bf16: bool) -> dict[str, float]:
    """Return the ratio of each of BOUNDS."""
    student = make_iiet(options, num_iterations=1).train()
    section, num_layers = DistillationSection(), options.num_layers
    live = Learner(student, LearnFromTeacher(LiveTeacher(teacher, bf16=bf16), section, num_layers), bf16)
    stored, final = (
        Learner(
            student, LearnFromTeacher(StoredTeacher(text.stored[name], bf16=bf16), section, num_layers), bf16
        )
        for name in ("stored", "final")
    )
    plain = Learner(student, LanguageModelling(), bf16)
    works: dict[str, Callable[[], Any]] = {
        "plain": lambda: step(plain, text.batch(text.plain)),
        "forward": lambda: run_teacher(teacher, text.batch(text.plain)["input_ids"], bf16),
        "live": lambda: step(live, text.batch(text.plain)),
        "stored": lambda: step(stored, text.batch(text.captured["stored"])),
        "final": lambda: step(final, text.batch(text.captured["final"])),
    }
    seconds = time_in_turns(works, options.rounds, options.device)
    print(f"final / plain: {median_ratio(seconds, 'final', 'plain'):.3f}")
    return {
        "live": median_ratio(seconds, "live", "plain", "forward"),
        "stored": median_ratio(seconds, "stored", "plain"),
        "final": median_ratio(seconds, "final", "live"),
    }


def step(learner: Learner, batch: dict[str, Tensor]) -> None:
    """Run signal, forward and backward; drop the gradients."""
    objective: Objective | None = learner.objective
    assert objective is not None
    loss, _ = learner(batch, objective.signal(batch))
    loss.backward()
    learner.zero_grad(set_to_none=True)


@torch.no_grad()
def run_teacher(teacher: IIETForCausalLM, input_ids: Tensor, bf16: bool) -> None:
    """Run the teacher's forward pass with its logits."""
    with torch.autocast(input_ids.device.type, torch.bfloat16, enabled=bf16):
        teacher(input_ids=input_ids, use_cache=False)


if __name__ == "__main__":
    sys.exit(main())
