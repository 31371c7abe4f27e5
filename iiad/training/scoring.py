"""How well one model predicts tokens: likelihood and accuracy, reduced in chunks.

Legend: B windows of a batch, T tokens, D model width, V vocabulary, n tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from iiad.errors import InputError

__all__ = ["PLAIN_HEADS", "TokenScore", "evaluate_model"]

PLAIN_HEADS = frozenset({"iiet", "pcformer", "llama", "mistral", "qwen2", "qwen3", "gpt2"})
"""Types of models whose logits are the head's output and nothing more. Others scale or cap them in their forward."""

_LOGITS_AT_ONCE = 1 << 24  # 64 MiB in float32


@dataclass(frozen=True)
class TokenScore:
    """What a model did on some tokens.

    Attributes:
        tokens: how many were predicted.
        nll: mean negative log likelihood of a token, in nats.
        accuracy: share of tokens that the model ranked first, 0 to 1.
    """

    tokens: int
    nll: float
    accuracy: float

    def retained(self, teacher: TokenScore) -> float | None:
        """Its accuracy as a share of the teacher's; None where the teacher has none."""
        return self.accuracy / teacher.accuracy if teacher.accuracy else None


@torch.no_grad()
def evaluate_model(
    model: Any,
    windows: Iterable[Tensor],
    *,
    name: str = "model",
    dtype: str = "float32",
    chunk_tokens: int | None = None,
    advance: Callable[[float], None] | None = None,
) -> TokenScore:
    """Score every token of the windows but the first of each, given those before it in its window (ours).

    Sums are in float64; the logits of a whole batch never exist at once for the model types whose head is
    known to be plain. Batch and chunk size change nothing but rounding.

    Args:
        model: a causal language model of transformers; its training mode is put back at the end.
        windows: int64 batches (B, T + 1), as `iiad.data.evaluation_windows` makes them.
        name: what errors call the model.
        dtype: "float32" runs the model as it is, "bfloat16" under autocast, which leaves head and loss alone.
        chunk_tokens: n, tokens whose logits (n, V) are held at a time; default: as many as fit in 64 MiB.
        advance: called with the number of tokens just scored.

    Raises:
        InputError: a token outside the vocabulary, a loss that is NaN or infinite, or no tokens at all.
    """
    vocab_size = model.get_input_embeddings().weight.shape[0]
    chunk_tokens = chunk_tokens or max(1, _LOGITS_AT_ONCE // vocab_size)
    tokens, hits, total = 0, 0, 0.0
    was_training = model.training
    model.eval()
    try:
        for number, batch in enumerate(windows):
            if batch[:, 1:].numel() == 0:
                continue
            if int(batch.max()) >= vocab_size:
                found = f"batch {number} holds token {int(batch.max())}"
                raise InputError(f"{name}: {found}; accepted: below its vocabulary of {vocab_size}")
            nll, num_right = _score_batch(model, batch.to(model.device), dtype, chunk_tokens)
            if not torch.isfinite(nll).all():
                bad = int((~torch.isfinite(nll)).nonzero()[0])
                found = f"found {nll[bad].item()} in batch {number} (the {tokens + bad + 1}. token predicted)"
                raise InputError(f"{name}: loss: {found}; accepted: finite numbers")
            tokens, hits, total = tokens + nll.numel(), hits + num_right, total + float(nll.sum())
            if advance is not None:
                advance(nll.numel())
    finally:
        model.train(was_training)
    if not tokens:
        raise InputError(f"{name}: windows: found no token to predict; accepted: at least 1")
    return TokenScore(tokens, total / tokens, hits / tokens)


def _score_batch(model: Any, batch: Tensor, dtype: str, chunk_tokens: int) -> tuple[Tensor, int]:
    """batch: (B, T + 1) -> nll of each token (B * T,) in float64 on the CPU, and how many were ranked first."""
    inputs, targets = batch[:, :-1], batch[:, 1:].flatten()  # (B, T), (B * T,)
    plain = model.config.model_type in PLAIN_HEADS
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        if plain:
            states = model.base_model(input_ids=inputs, use_cache=False).last_hidden_state
        else:
            states = model(input_ids=inputs, use_cache=False).logits
    head = model.get_output_embeddings() if plain else None
    losses, num_right = [], 0
    # (B, T, D or V) -> (n, D or V) at a time
    for part, wanted in zip(
        states.flatten(0, 1).split(chunk_tokens), targets.split(chunk_tokens), strict=True
    ):
        # Out of autocast: logits in bfloat16 would tie, and accuracy would hang on the order of the vocabulary.
        logits = part if head is None else head(part.to(head.weight.dtype))
        if logits.dtype != torch.float64:
            logits = logits.float()
        chosen = logits.gather(1, wanted[:, None])[:, 0]  # (n,)
        losses.append((logits.logsumexp(1) - chosen).cpu())
        num_right += int((logits.argmax(1) == wanted).sum())
    return torch.cat(losses).double(), num_right
