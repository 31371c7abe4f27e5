"""What the head's losses and gradients cost, against torch's own cross-entropy on whole logits.

    OMP_NUM_THREADS=1 python benchmarks/head_cost.py        # width 512, vocabulary 32,000, 1,024 tokens
    python benchmarks/head_cost.py --hidden-size 2048 --num-tokens 8192 --device cuda

Everything is timed in turns in one run, each between two runs of what it is compared with, of which it is taken as a
multiple; medians over the rounds. Exit code 1 where a bound is missed:

    cross-entropy, float32 and bf16 autocast      at most 1.05 times torch's, forward and backward
    with the KL to a teacher's whole logits       at most 1.1 times torch's cross-entropy and those logits alone
    memory beyond the head's weights and their gradient, with the KL
        vocabulary 128,000 against 32,000         at most 1.2 times
        against a batch's logits in float32       less than once, at 2,048 tokens and vocabulary 32,000
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from timing import Row, make_parser, print_rows, time_of
from torch.nn import functional as F

from iiad.distillation.divergences import FullTarget, TeacherDivergence
from iiad.evaluation.activation_memory import peak_bytes
from iiad.training.head import head_loss, next_token_labels


def main() -> int:
    """Measure, print, and say whether every bound is kept."""
    options = read_options()
    rows = measure_seconds(options) + measure_memory(options)
    return int(not print_rows(rows))


def measure_seconds(options: Any) -> list[Row]:
    """Seconds, as a multiple of torch's."""
    rows: list[Row] = []
    for autocast in (False, True):
        head = Head(options.num_tokens, options.vocab_size, options.hidden_size, options.device, autocast)
        name = "bf16 autocast" if autocast else "float32"
        found = ratio(head.cross_entropy, head.torch_cross_entropy, options)
        rows.append(Row(f"cross-entropy, {name}, seconds in torch's", found, 1.05))
        found = ratio(head.distillation, head.torch_cross_entropy_and_teacher, options)
        rows.append(Row(f"and KL, {name}, in torch's without KL", found, 1.1))
    return rows


def measure_memory(options: Any, num_tokens: int = 2048, width: int = 16) -> list[Row]:
    """Bytes beyond what the head's own weights and gradients take; the width hardly matters to them."""
    beyond = {}
    for vocab_size in (32_000, 128_000):
        head = Head(num_tokens, vocab_size, width, options.device, autocast=False)
        beyond[vocab_size] = peak_bytes(head.distillation, options.device) - head.weight.nbytes
    logits = num_tokens * 32_000 * 4
    return [
        Row("with KL, memory at vocabulary 128,000 in that at 32,000", beyond[128_000] / beyond[32_000], 1.2),
        Row("with KL, memory in float32 logits of 2,048 tokens", beyond[32_000] / logits, 1.0),
    ]


class Head:
    """A student's and a teacher's last states and heads, random: cost does not depend on what they are."""

    def __init__(self, num_tokens: int, vocab_size: int, width: int, device: str, autocast: bool):
        torch.manual_seed(0)
        self.device, self.autocast = device, autocast
        self.states = torch.randn(num_tokens, width, device=device, requires_grad=True)
        self.weight = (0.05 * torch.randn(vocab_size, width, device=device)).requires_grad_()
        teacher = torch.randn(num_tokens, width, device=device)
        self.target = FullTarget(teacher, 0.05 * torch.randn(vocab_size, width, device=device))
        self.labels = next_token_labels(torch.randint(vocab_size, (1, num_tokens), device=device))

    def cross_entropy(self) -> None:
        """Ours, forward and backward."""
        with self._context():
            loss = head_loss(self.states, self.weight, self.labels).loss
        self._learn(loss)

    def distillation(self) -> None:
        """Ours, with the KL of the teacher."""
        with self._context():
            divergence = TeacherDivergence(self.target)
            loss = head_loss(self.states, self.weight, self.labels, divergence, kl_weight=1.0).loss
        self._learn(loss)

    def torch_cross_entropy(self) -> None:
        """Torch's, on whole logits."""
        with self._context():
            logits = F.linear(self.states, self.weight)
            loss = F.cross_entropy(logits.float(), self.labels, ignore_index=-1)
        self._learn(loss)

    def torch_cross_entropy_and_teacher(self) -> None:
        """And the teacher's whole logits, of which nothing is made."""
        self.torch_cross_entropy()
        with torch.no_grad(), self._context():
            F.linear(*self.target)

    def _context(self) -> Any:
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.autocast)

    def _learn(self, loss: torch.Tensor) -> None:
        loss.backward()
        self.states.grad = self.weight.grad = None


def ratio(work: Callable[[], Any], other: Callable[[], Any], options: Any) -> float:
    """Seconds of one in those of the other right before and after it, median over the rounds."""
    time_of(work, options.device)
    before = [time_of(other, options.device) for _ in range(2)][-1]
    ratios = []
    for _ in range(options.rounds):
        own, after = time_of(work, options.device), time_of(other, options.device)
        ratios.append(2 * own / (before + after))
        before = after
    return median(ratios)


def read_options() -> Any:
    """The command line."""
    parser = make_parser(__doc__, rounds=7)
    parser.add_argument("--vocab-size", type=int, default=32000)
    parser.add_argument("--num-tokens", type=int, default=1024)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
