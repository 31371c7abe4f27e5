"""The gradients of a language-modelling head, added up chunk by chunk.

Legend: N tokens, m tokens of a chunk, D model width, V vocabulary, S rows of a slice of the weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["HeadGradients"]

SLICE_NUMBERS = {"cpu": 1 << 18, "cuda": 1 << 25}
"""Of a half-precision product at a time, before it is added up in float32: small enough for a core's cache."""


class HeadGradients:
    """d loss / d states (N, D) and d loss / d weight (V, D), each None where it is not asked for.

    Added up in float32 (float64 for float64), whatever the products are made in.
    """

    def __init__(
        self, shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype, needs: tuple[bool, bool]
    ):
        """shape: N, V, D. dtype: to add up in. needs: whether for states, and for the weight."""
        num_tokens, vocab_size, width = shape
        self.num_tokens = num_tokens
        self.states = torch.empty(num_tokens, width, device=device, dtype=dtype) if needs[0] else None
        self.weight = torch.empty(vocab_size, width, device=device, dtype=dtype) if needs[1] else None

    def add(self, chunk: slice, slope: Tensor, states: Tensor, weight: Tensor) -> None:
        """slope: (m, V), N d loss / d logits; states: (m, D); weight: (V, D); of one type, the chunks in order."""
        scale = 1 / self.num_tokens  # here and not in the slope, which half precision would round away
        if self.states is not None:
            torch.mul(slope @ weight, scale, out=self.states[chunk])
        if self.weight is None:
            return
        beta = int(chunk.start > 0)  # what is not written yet counts as 0
        if slope.dtype == self.weight.dtype:
            torch.addmm(self.weight, slope.t(), states, beta=beta, alpha=scale, out=self.weight)
            return
        length = max(1, SLICE_NUMBERS.get(slope.device.type, SLICE_NUMBERS["cpu"]) // states.shape[1])
        for start in range(0, len(self.weight), length):
            part = slice(start, start + length)
            product = slope[:, part].t() @ states  # (S, D)
            if beta:
                self.weight[part].add_(product, alpha=scale)
            else:
                torch.mul(product, scale, out=self.weight[part])
