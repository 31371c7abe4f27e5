"""Claims about serving: vLLM decodes what the model does by itself.

The server decodes all prompts (`Subject.served`) at once. Its greedy tokens are read once by the model
without a cache, as in `decoding_claims`, where ties are explained.

Legend: B sequences, P prompt tokens, N new tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .claims import LOGITS, TOKENS, Claim, Skipped, Subject
from .decoding_claims import count_unlikely_tokens
from .engine import Completion

__all__ = ["SERVED"]


def served_tokens(subject: Subject) -> float:
    """Count tokens that the model itself would not choose."""
    margin = 2 * subject.settings.rounding_bound * subject.deviation
    return sum(
        count_unlikely_tokens(torch.tensor([answer.tokens], device=logits.device), logits[None], margin)
        for answer, logits in _read_again(subject)
    )


def served_log_probabilities(subject: Subject) -> float:
    """Largest difference of a token's log-probability."""
    found, wanted = [], []
    for answer, logits in _read_again(subject):
        chosen = torch.tensor(answer.tokens, device=logits.device)[:, None]
        wanted.append(logits.double().log_softmax(-1).gather(-1, chosen)[:, 0])
        found.append(wanted[-1].new_tensor(answer.log_probabilities))
    return subject.compare(torch.cat(found), torch.cat(wanted))


def _read_again(subject: Subject) -> list[tuple[Completion, Tensor]]:
    """Each answer with the logits (N, V) that its tokens should have been chosen from."""
    if subject.engine is None:
        raise Skipped("no engine given (--served PYTHON)")
    if subject.model.config.is_encoder_decoder:
        raise Skipped("vLLM serves no encoder-decoders through its Transformers backend")
    prompts, answers = subject.served
    new = subject.settings.new_tokens
    pairs = []
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        tokens = torch.tensor([[*prompt, *answer.tokens]], device=subject.tokens.device)
        pairs.append((answer, subject.forward_alone(row, tokens, padded=False)[0, -new - 1 : -1]))
    return pairs


SERVED = [
    Claim("served = generated: greedy tokens", TOKENS, True, served_tokens),
    Claim("served = generated: log-probabilities", LOGITS, False, served_log_probabilities),
]
