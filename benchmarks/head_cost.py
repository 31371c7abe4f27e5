"""Cost of the head's losses and gradients, against torch's own cross-entropy on whole logits.

    OMP_NUM_THREADS=1 python benchmarks/head_cost.py        # width 512, vocabulary 32,000, 1,024 tokens
    python benchmarks/head_cost.py --hidden-size 2048 --num-tokens 8192 --device cuda

Works are timed in turns; medians over the rounds. Exit code 1 where a bound is missed:

    cross-entropy, float32 and bf16 autocast      at most 1.05 times torch's, forward and backward
    with the KL to a teacher's whole logits       at most 1.1 times torch's cross-entropy and those logits alone
    memory beyond the head's weights and their gradient, with the KL
        vocabulary 128,000 against 32,000         at most 1.2 times
        against a batch's logits in float32       less than once, at 2,048 tokens and vocabulary 32,000
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from common import Row, autocasts, make_parser, print_rows, ratio_in_turns
from torch.nn import functional as F

from iiad.data import next_labels
from iiad.distillation.divergences import FullTarget, TeacherDivergence
from iiad.evaluation.activation_memory import peak_bytes
from iiad.training.head import head_loss


def main() -> int:
    """Measure, print, and return 1 where a bound is missed."""
    options = make_parser(__doc__, rounds=7, vocab_size=32000, num_tokens=1024).parse_args()
    kept = [print_rows(measure(options)) for measure in (measure_seconds, measure_memory)]
    return int(not all(kept))


def measure_seconds(options: Any) -> Iterator[Row]:
    """Yield seconds as multiples of torch's."""
    for name, autocast in autocasts():
        head = Head(options.num_tokens, options.vocab_size, options.hidden_size, options.device, autocast)
        turns = (options.rounds, options.device)
        found = ratio_in_turns(head.cross_entropy, head.torch_cross_entropy, *turns)
        yield Row(f"cross-entropy, {name}, seconds in torch's", found, 1.05)
        found = ratio_in_turns(head.distillation, head.torch_cross_entropy_and_teacher, *turns)
        yield Row(f"and KL, {name}, in torch's without KL", found, 1.1)


def measure_memory(options: Any, num_tokens: int = 2048, width: int = 16) -> Iterator[Row]:
    """Yield bytes beyond those of the head's own weights and gradients; the width hardly matters to them."""
    beyond = {}
    for vocab_size in (32_000, 128_000):
        head = Head(num_tokens, vocab_size, width, options.device, autocast=False)
        beyond[vocab_size] = peak_bytes(head.distillation, options.device) - head.weight.nbytes
    yield Row(
        "with KL, memory at vocabulary 128,000 in that at 32,000", beyond[128_000] / beyond[32_000], 1.2
    )
    logits = num_tokens * 32_000 * 4
    yield Row("with KL, memory in float32 logits of 2,048 tokens", beyond[32_000] / logits, 1.0)


class Head:
    """Last states and heads of a student and a teacher, random: cost does not depend on their values."""

    def __init__(self, num_tokens: int, vocab_size: int, width: int, device: str, autocast: bool):
        torch.manual_seed(0)
        self.device, self.autocast = device, autocast
        self.states = torch.randn(num_tokens, width, device=device, requires_grad=True)
        self.weight = (0.05 * torch.randn(vocab_size, width, device=device)).requires_grad_()
        teacher = torch.randn(num_tokens, width, device=device)
        self.target = FullTarget(teacher, 0.05 * torch.randn(vocab_size, width, device=device))
        self.labels = next_labels(torch.randint(vocab_size, (1, num_tokens), device=device)).flatten()

    def cross_entropy(self) -> None:
        """Run ours, forward and backward."""
        with self._context():
            loss = head_loss(self.states, self.weight, self.labels).loss
        self._learn(loss)

    def distillation(self) -> None:
        """Run ours with the KL of the teacher."""
        with self._context():
            divergence = TeacherDivergence(self.target)
            loss = head_loss(self.states, self.weight, self.labels, divergence, kl_weight=1.0).loss
        self._learn(loss)

    def torch_cross_entropy(self) -> None:
        """Run torch's, on whole logits."""
        with self._context():
            logits = F.linear(self.states, self.weight)
            loss = F.cross_entropy(logits.float(), self.labels, ignore_index=-1)
        self._learn(loss)

    def torch_cross_entropy_and_teacher(self) -> None:
        """Run torch's, and make the teacher's whole logits."""
        self.torch_cross_entropy()
        with torch.no_grad(), self._context():
            F.linear(*self.target)

    def _context(self) -> Any:
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.autocast)

    def _learn(self, loss: torch.Tensor) -> None:
        loss.backward()
        self.states.grad = self.weight.grad = None


if __name__ == "__main__":
    sys.exit(main())
