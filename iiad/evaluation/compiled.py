"""Decoding as one compiled graph: a static cache and torch.compile, on a GPU with CUDA graphs.

Legend: B sequences, T prompt tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import StaticCache

from iiad.errors import InputError, one_line

__all__ = ["CompiledDecoder", "require_compiler"]


class CompiledDecoder:
    """A causal language model whose decoding step is compiled whole (fullgraph), for one number of sequences.

    The step is compiled at its first call, which takes tens of seconds, and again where the number of sequences, the
    length of the cache or the model's plan is another one.
    """

    def __init__(self, model: Any, max_cache_len: int):
        """model: in evaluation mode. max_cache_len: prompt and new tokens together, at most."""
        self.model, self.max_cache_len = model, max_cache_len
        self.uses_graphs = model.device.type == "cuda"  # CUDA graphs
        mode = "reduce-overhead" if self.uses_graphs else None
        self.step = torch.compile(model.forward, fullgraph=True, dynamic=False, mode=mode)

    def run_calls(self, prompts: Tensor, cache: StaticCache) -> Iterator[Tensor]:
        """The next token of each sequence, (B, 1), after one call each: the prompts' (not compiled), then a step's.

        prompts: (B, T) on the model's device. cache: what `new_cache` gives.
        """
        inputs, forward = prompts, self.model
        while True:
            if self.uses_graphs:
                torch.compiler.cudagraph_mark_step_begin()  # what the last step returned has been used
            logits = forward(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            inputs, forward = logits[:, -1:].argmax(-1), self.step
            yield inputs

    def new_cache(self) -> StaticCache:
        """An empty cache of that length."""
        return StaticCache(config=self.model.config, max_cache_len=self.max_cache_len)


def require_compiler(device: str) -> None:
    """Raise InputError where not even an addition can be compiled: no C++ compiler, no Triton."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # of many kinds
        reason = one_line(error).split(" Set TORCH")[0]
        raise InputError(
            f"compile: nothing can be compiled on {device} here: {reason[:200]}; accepted: a machine with a C++ "
            "compiler (CPU) or Triton (CUDA)"
        ) from None
