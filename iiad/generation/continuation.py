"""A prompt continued with a draft: checked, measured where it is open, and told to a streamer.

Legend: T prompt tokens.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from .draft_choice import Choice, choose_draft
from .drafts import Draft, check_draft
from .speculation import Speculation, speculate
from .token_choice import Chooser

__all__ = ["continue_with_draft"]


def continue_with_draft(
    teacher: Any,
    draft: Draft,
    prompt_ids: Tensor,
    max_new_tokens: int,
    chooser: Chooser | None = None,
    ends: Collection[int] = (),
    streamer: Any = None,
) -> tuple[Speculation, Choice | None]:
    """As `speculate`, with the draft's plan and length chosen first where they are open.

    prompt_ids: (1, T). streamer: told the prompt and every token as it comes, as transformers' TextStreamer.
    Returns what was said, and how plan and length were chosen, None where both were given. Raises InputError for a
    draft that cannot follow the teacher.
    """
    check_draft(teacher, draft, prompt_ids.shape[1] + max_new_tokens)
    chooser, choice, length = chooser or Chooser(), None, draft.length
    if length is None or draft.plans:
        choice = choose_draft(teacher, draft, prompt_ids, max_new_tokens, chooser)
        length = choice.best.length

    def stream(tokens: list[int]) -> None:
        for token in tokens:
            streamer.put(torch.tensor([token]))

    told = None if streamer is None else stream
    if streamer is not None:
        streamer.put(prompt_ids.cpu())
    said = speculate(teacher, draft.model, prompt_ids, max_new_tokens, length, chooser, ends, told)
    if streamer is not None:
        streamer.end()
    return said, choice
