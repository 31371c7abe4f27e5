"""How much is run at a time so that a profile fits into memory, estimated from sizes. All rules here are ours.

Legend: B batch, T tokens, D model width, V vocabulary, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from iiad.models import IIETForCausalLM

from .outputs import CHUNK_COPIES, choose_chunk_tokens

__all__ = ["MemoryPlan", "free_bytes"]

SHARE_OF_FREE = 0.5
"""Of the memory that is free: the rest is for what the estimate leaves out."""


TIMES_EVALUATION = 1.8
"""What the model itself takes to evaluate the batch: twice that, less a margin for what the estimate leaves out."""


@dataclass(frozen=True)
class MemoryPlan:
    """How much of a batch (B, T) is kept and run at a time.

    limit: bytes that the profile may take beside the weights.
    num_rows: B. row: bytes that one number for each token of a row takes: T * itemsize.
    """

    limit: int
    num_rows: int
    row: int
    model: IIETForCausalLM

    @classmethod
    def of(
        cls, model: IIETForCausalLM, num_rows: int, num_tokens: int, limit: int | None = None
    ) -> MemoryPlan:
        """limit: default: twice what the model takes to evaluate the batch, or half of what is free if less."""
        plan = cls(0, num_rows, num_tokens * model.dtype.itemsize, model)
        if limit is None:
            evaluation = num_rows * plan.row * plan._evaluating()
            limit = min(int(TIMES_EVALUATION * evaluation), int(SHARE_OF_FREE * free_bytes(model.device)))
        return cls(limit, num_rows, plan.row, model)

    def num_kept_layers(self) -> int:
        """Layers, from the first, whose iterates are kept until their stops are run, 0 to L; others are run again.

        Stops are run from the last layer down: the more iterates are still kept, the fewer layers are above.
        """
        config = self.model.config
        width = config.hidden_size
        for kept in range(config.num_layers, 0, -1):
            above = (config.num_layers - kept) * width if config.history else 0
            if (
                width * max(config.iterations) * kept + max(above + self._layer(), self._chunk())
                <= self._left()
            ):
                return kept
        return 0

    def num_stops(self, layer: int) -> int:
        """Stops of this layer (from 0) and those below it to run as one batch, at least 1."""
        config = self.model.config
        kept = sum(config.iterations[: min(layer + 1, self.num_kept_layers())])
        return max(1, (self._left() - config.hidden_size * kept) // self._running())

    def num_stopped_rows(self) -> int:
        """Rows of a stop to run at a time, 1 to B: fewer where a whole one does not fit beside what is kept."""
        config = self.model.config
        left = self._left() - config.hidden_size * sum(config.iterations[: self.num_kept_layers()])
        return self._evenly(self.num_rows * left // self._running())

    def num_backward_rows(self) -> int:
        """Rows to take through the backward pass at a time, 1 to B; kept beside it are the states of all layers."""
        config = self.model.config
        most = config.num_start_evaluations + max(config.iterations)
        saved = 12 * config.hidden_size + 5 * config.intermediate_size + self._scores()
        held = most * saved + config.hidden_size * config.num_layers
        left = self._left() + config.vocab_size  # the logits are gone
        return self._evenly(self.num_rows * left // held)

    def _evenly(self, most: int) -> int:
        """Rows at a time, at most so many but at least one, so that the parts of the batch are of like size."""
        num_parts = -(-self.num_rows // max(1, most))
        return -(-self.num_rows // num_parts)

    def _left(self) -> int:
        """Numbers per token of the batch beside what is always kept: the logits, and every layer's state."""
        config = self.model.config
        kept = config.vocab_size + config.hidden_size * (2 + config.num_layers)
        return self.limit // (self.num_rows * self.row) - kept

    def _evaluating(self) -> int:
        """Numbers per token of the model's own forward pass, at most at a time: its logits, or those of a layer."""
        config = self.model.config
        layer = self._history() + 5 * config.hidden_size + 9 * config.intermediate_size // 2 + self._scores()
        return max(config.vocab_size + config.hidden_size, layer)

    def _running(self) -> int:
        """Numbers per token while a stopped model runs from the first layer on, or its logits are compared."""
        return max(self._history() + self._layer(), self._chunk())

    def _history(self) -> int:
        config = self.model.config
        return config.hidden_size * config.num_layers if config.history else 0

    def _layer(self) -> int:
        """What attention and MLP of one layer hold."""
        config = self.model.config
        return 6 * config.hidden_size + 4 * config.intermediate_size + self._scores()

    def _chunk(self) -> int:
        """A chunk of logits, as a share of all the batch's tokens."""
        vocab_size, device = self.model.config.vocab_size, self.model.device.type
        num_tokens = self.num_rows * self.row // self.model.dtype.itemsize
        chunk = choose_chunk_tokens(num_tokens, vocab_size, device)
        return -(-CHUNK_COPIES * chunk * vocab_size // num_tokens)

    def _scores(self) -> int:
        """Attention weights, which only the eager implementation holds."""
        config = self.model.config
        if config._attn_implementation != "eager":
            return 0
        return 3 * config.num_attention_heads * self.row // self.model.dtype.itemsize


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be had on a device; on the CPU also within the limit that a container sets."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    available = int(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        return min(available, int(limit.read_text()) - int(used.read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return available
