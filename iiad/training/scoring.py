"""Score a model on tokens: likelihood and accuracy in chunks, and the losses that a teacher must beat.

Legend: B windows of a batch, T tokens, D model width, V vocabulary, n tokens of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iiad.data import TokenCorpus, evaluation_windows
from iiad.errors import InputError
from iiad.progress import print_status

__all__ = [
    "PLAIN_HEADS",
    "TokenScore",
    "evaluate_model",
    "require_knowledge",
    "score_beginning",
]

PLAIN_HEADS = frozenset({"iiet", "pcformer", "llama", "mistral", "qwen2", "qwen3", "gpt2"})
"""Types of models whose logits are the head's output and nothing more. Others scale or cap them in their forward."""

COUNTED_TOKENS = 1 << 26
"""Tokens of a training text, from its start, that unigram counts are taken of."""
MEASURED_TOKENS = 1 << 15
"""Tokens of a training text, from its start, that a teacher is scored on where there is no other text."""
_LOGITS_AT_ONCE = 1 << 24  # 64 MiB in float32
_IDS_AT_ONCE = 1 << 22  # counting makes 8 bytes of each


@dataclass(frozen=True)
class TokenScore:
    """A model's likelihood and accuracy on some tokens.

    Attributes:
        tokens: number of predicted tokens.
        nll: mean negative log likelihood of a token, in nats.
        accuracy: share of tokens that the model ranked first, 0 to 1.
    """

    tokens: int
    nll: float
    accuracy: float

    def retained(self, teacher: TokenScore) -> float | None:
        """Accuracy as a share of the teacher's; None where that is 0."""
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
        name: the model's, for errors.
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
                got = f"{int(batch.max())} in batch {number}"
                raise InputError(f"{name}: expected tokens below its vocabulary of {vocab_size}, got {got}")
            nll, num_right = _score_batch(model, batch.to(model.device), dtype, chunk_tokens)
            if not torch.isfinite(nll).all():
                bad = int((~torch.isfinite(nll)).nonzero()[0])
                got = f"{nll[bad].item()} in batch {number} (the {tokens + bad + 1}. token predicted)"
                raise InputError(f"{name}: loss: expected finite numbers, got {got}")
            tokens, hits, total = tokens + nll.numel(), hits + num_right, total + float(nll.sum())
            if advance is not None:
                advance(nll.numel())
    finally:
        model.train(was_training)
    if not tokens:
        raise InputError(f"{name}: windows: expected at least 1 token to predict, got none")
    return TokenScore(tokens, total / tokens, hits / tokens)


def _score_batch(model: Any, batch: Tensor, dtype: str, chunk_tokens: int) -> tuple[Tensor, int]:
    """batch: (B, T + 1) -> nll of each token (B * T,) in float64 on the CPU, and the number ranked first."""
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


def require_knowledge(
    nll: float, training: np.ndarray, held: np.ndarray, vocab_size: int, where: str, override: str | None
) -> dict[str, float]:
    """Print and return a teacher's loss on a text and the losses that it must beat, nats per token (ours).

    nll: the teacher's, on the text `held` that is called `where`. training: like `held`, ids (n,) below vocab_size.
    unigram_nll is by the counts in its first 2^26 tokens, plus one (Laplace); uniform_nll is ln V.
    override: the option that goes on with any teacher; None where it was given. Raises InputError for a teacher that
    is no better than counts: random weights, say, or another tokenizer's.
    """
    counts = _count(training[:COUNTED_TOKENS], vocab_size) + 1.0
    costs = math.log(counts.sum()) - np.log(counts)  # (V,)
    of_held = _count(held, vocab_size)
    unigram, uniform = float(of_held @ costs / of_held.sum()), math.log(vocab_size)
    line = (
        f"teacher: {nll:.4f} nats a token on {where}; token counts alone give {unigram:.4f}, "
        f"a uniform guess {uniform:.4f}"
    )
    if override is not None and nll >= unigram:
        raise InputError(
            f"{line}: expected a lower loss than by counts: is it the trained model, with its own tokenizer? "
            f"({override} goes on all the same)"
        )
    print_status(line)
    return {"teacher_nll": nll, "unigram_nll": unigram, "uniform_nll": uniform}


def _count(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Count each id, (V,) in float64."""
    chunks = (tokens[start : start + _IDS_AT_ONCE] for start in range(0, len(tokens), _IDS_AT_ONCE))
    return sum((np.bincount(chunk, minlength=vocab_size) for chunk in chunks), np.zeros(vocab_size))


def score_beginning(
    model: Any, corpus: TokenCorpus, block_size: int, batch_size: int, dtype: str
) -> tuple[TokenScore, np.ndarray]:
    """Score a teacher on the first tokens of a text; return those tokens too."""
    windows = evaluation_windows(corpus, block_size, MEASURED_TOKENS, batch_size)
    return evaluate_model(model, windows, name="teacher", dtype=dtype), corpus.tokens[:MEASURED_TOKENS]
