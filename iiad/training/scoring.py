"""Score a model on tokens: likelihood and accuracy in chunks, and the losses that a teacher must beat.

Legend: B windows of a batch, T tokens, D model width, V vocabulary, n tokens of a chunk.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iiad.data import AnyCorpus, Window, evaluation_windows, model_inputs
from iiad.errors import InputError
from iiad.progress import print_status

__all__ = [
    "PLAIN_HEADS",
    "TokenScore",
    "evaluate_model",
    "has_plain_head",
    "logits_in_chunks",
    "require_knowledge",
    "run_trunk",
    "score_beginning",
]

PLAIN_HEADS = frozenset("iiet pcformer iiet_seq2seq pcformer_seq2seq llama mistral qwen2 qwen3 gpt2".split())
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
        by_group: of labelled rows in groups: group -> its number of tokens and its accuracy.
    """

    tokens: int
    nll: float
    accuracy: float
    by_group: dict[int, tuple[int, float]] = field(default_factory=dict)

    def retained(self, teacher: TokenScore) -> float | None:
        """Accuracy as a share of the teacher's; None where that is 0."""
        return self.accuracy / teacher.accuracy if teacher.accuracy else None


@torch.no_grad()
def evaluate_model(
    model: Any,
    windows: Iterable[Window],
    *,
    name: str = "model",
    dtype: str = "float32",
    chunk_tokens: int | None = None,
    advance: Callable[[float], None] | None = None,
) -> TokenScore:
    """Score every target of the windows, given the tokens before it in its window (ours).

    Sums are in float64; the logits of a whole batch never exist at once for the model types whose head is
    known to be plain. Batch and chunk size change nothing but rounding.

    Args:
        model: a causal language model of transformers; its training mode is put back at the end.
        windows: as `iiad.data.evaluation_windows` makes them.
        name: the model's, for errors.
        dtype: "float32" runs the model as it is, "bfloat16" under autocast, which leaves head and loss alone.
        chunk_tokens: n, tokens whose logits (n, V) are held at a time; default: as many as fit in 64 MiB.
        advance: called with the number of tokens just scored.

    Raises:
        InputError: a token outside the vocabulary, a loss that is NaN or infinite, or no tokens at all.
    """
    vocab_size = model.get_input_embeddings().weight.shape[0]
    chunk_tokens = chunk_tokens or default_chunk(model)
    tokens, hits, total = 0, 0, 0.0
    of_group: Counter[int] = Counter()
    hits_of_group: Counter[int] = Counter()
    was_training = model.training
    model.eval()
    try:
        for number, window in enumerate(windows):
            asked = window.targets.flatten() >= 0
            if not asked.any():
                continue
            highest = max(
                int(values.max()) for name, values in window.inputs.items() if name.endswith("input_ids")
            )
            highest = max(highest, int(window.targets.max()))
            if highest >= vocab_size:
                got = f"{highest} in batch {number}"
                raise InputError(f"{name}: expected tokens below its vocabulary of {vocab_size}, got {got}")
            nll, right = _score_window(model, window, asked.nonzero()[:, 0], dtype, chunk_tokens)
            if not torch.isfinite(nll).all():
                bad = int((~torch.isfinite(nll)).nonzero()[0])
                got = f"{nll[bad].item()} in batch {number} (the {tokens + bad + 1}. token predicted)"
                raise InputError(f"{name}: loss: expected finite numbers, got {got}")
            tokens, hits, total = tokens + nll.numel(), hits + int(right.sum()), total + float(nll.sum())
            if window.groups is not None:
                groups = window.groups.flatten()[asked]
                of_group.update(groups.tolist())
                hits_of_group.update(groups[right].tolist())
            if advance is not None:
                advance(nll.numel())
    finally:
        model.train(was_training)
    if not tokens:
        raise InputError(f"{name}: windows: expected at least 1 token to predict, got none")
    by_group = {
        group: (count, hits_of_group[group] / count) for group, count in sorted(of_group.items()) if group
    }
    return TokenScore(tokens, total / tokens, hits / tokens, by_group)


def _score_window(
    model: Any, window: Window, asked: Tensor, dtype: str, chunk_tokens: int
) -> tuple[Tensor, Tensor]:
    """asked: (n,) positions of B * T -> nll of each target (n,) in float64, and if it is ranked first; on the CPU."""
    inputs = {name: values.to(model.device) for name, values in window.inputs.items()}
    targets = window.targets.flatten()[asked].to(model.device)
    losses, right = [], []
    states = run_trunk(model, inputs, dtype)[0].flatten(0, 1)  # (B * T, D or V), a chunk of them at a time
    if len(asked) < len(states):
        states = states[asked.to(states.device)]
    chunks = zip(logits_in_chunks(model, states, chunk_tokens), targets.split(chunk_tokens), strict=True)
    for logits, wanted in chunks:
        chosen = logits.gather(1, wanted[:, None])[:, 0]  # (n,)
        losses.append((logits.logsumexp(1) - chosen).cpu())
        right.append((logits.argmax(1) == wanted).cpu())
    return torch.cat(losses).double(), torch.cat(right)


def run_trunk(
    model: Any, inputs: Mapping[str, Tensor], dtype: str, hidden_states: bool = False
) -> tuple[Tensor, Any]:
    """Run a model up to its head, if that is known to be plain.

    inputs: a batch, of which `iiad.data.model_inputs` go into the model. dtype: "bfloat16" for autocast. Returns
    states (B, T, D), or logits (B, T, V) of a model whose head is its own, and the model's whole output, with
    hidden_states if they are asked for.
    """
    plain = has_plain_head(model)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        output = (model.base_model if plain else model)(
            **model_inputs(inputs), use_cache=False, output_hidden_states=hidden_states
        )
    return output.last_hidden_state if plain else output.logits, output


def has_plain_head(model: Any) -> bool:
    """Return whether the logits are known to be the head's output; those of a folder's own code are not."""
    foreign = type(model).__module__.startswith("transformers_modules.")
    return model.config.model_type in PLAIN_HEADS and not foreign


def logits_in_chunks(model: Any, states: Tensor, chunk_tokens: int | None = None) -> Iterator[Tensor]:
    """Yield the logits of some of `run_trunk`'s states, (N, D or V) -> (n, V), in float32 or float64."""
    head = model.get_output_embeddings() if has_plain_head(model) else None
    for part in states.split(chunk_tokens or default_chunk(model)):
        # Out of autocast: logits in bfloat16 would tie, and accuracy would hang on the order of the vocabulary.
        logits = part if head is None else head(part.to(head.weight.dtype))
        yield logits if logits.dtype == torch.float64 else logits.float()


def default_chunk(model: Any) -> int:
    """Return how many tokens' logits fit in 64 MiB."""
    return max(1, _LOGITS_AT_ONCE // model.get_input_embeddings().weight.shape[0])


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
    model: Any, corpus: AnyCorpus, block_size: int, batch_size: int, dtype: str
) -> tuple[TokenScore, np.ndarray]:
    """Score a teacher on the first tokens of a text; return those that are asked for, too."""
    windows = evaluation_windows(corpus, block_size, MEASURED_TOKENS, batch_size)
    return evaluate_model(model, windows, name="teacher", dtype=dtype), corpus.targets(MEASURED_TOKENS)
