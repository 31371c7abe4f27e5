"""New tokens by transformers' own generate(): greedy, by beams or by sampling, of one prompt or of many.

Legend: B prompts of a batch, S tokens of its longest prompt, N samples of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from iiad.data.tokenizers import tokenizing
from iiad.errors import InputError, require_least
from iiad.memory import memory_explained

from .guards import end_tokens, finite_logits, settings_explained
from .prompting import Prompting
from .speculation import Chooser, until_end

__all__ = ["Search", "decode", "search_all", "search_batch"]


@dataclass(frozen=True)
class Search:
    """Settings of decoding: length, beams and sampling.

    max_new_tokens: the most tokens to add. num_beams: 1 is no beams. length_penalty: beams are compared by their log
    likelihood over length ** length_penalty; default: 1. chooser: greedy or sampling. num_samples: N. static_cache: a
    cache of one size for all steps; not compiled.
    Raises InputError for a value out of range, and for beams when sampling.
    """

    max_new_tokens: int = 128
    num_beams: int = 1
    length_penalty: float | None = None
    chooser: Chooser = field(default_factory=Chooser)
    num_samples: int = 1
    static_cache: bool = False

    def __post_init__(self) -> None:
        require_least(1, max_new_tokens=self.max_new_tokens, num_beams=self.num_beams)
        if self.num_beams > 1 and not self.chooser.greedy:
            raise InputError(f"num_beams: expected 1 when sampling, got {self.num_beams}")
        if self.length_penalty is None:
            return
        if not -100 <= self.length_penalty <= 100:
            raise InputError(f"length_penalty: expected from -100 to 100, got {self.length_penalty}")
        if self.num_beams == 1:
            raise InputError(
                f"length_penalty: expected several beams with it, got {self.length_penalty} and 1"
            )

    def options(self) -> dict[str, Any]:
        """Return the arguments of generate()."""
        # What is not used has transformers' default, which keeps it from remarks.
        how: dict[str, Any] = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0}
        if not self.chooser.greedy:
            # transformers drops all but 50 tokens where top_k is not given; 0 keeps all.
            how = {
                "do_sample": True,
                "temperature": self.chooser.temperature,
                "top_k": self.chooser.top_k or 0,
            }
            how["top_p"] = float(self.chooser.top_p or 1)
        if self.num_beams > 1:
            how["length_penalty"] = 1.0 if self.length_penalty is None else float(self.length_penalty)
        counts = {"num_beams": self.num_beams, "num_return_sequences": self.num_samples}
        if self.static_cache:
            how |= {"cache_implementation": "static", "disable_compile": True}
        return {"max_new_tokens": self.max_new_tokens, **counts, **how}


def search_batch(
    kind: Prompting, prompts: Sequence[Sequence[int]], search: Search, streamer: Any = None
) -> list[list[int]]:
    """Return the new tokens of each sample (B N), up to the one that ended it.

    prompts: B prompts of tokens, as `Prompting.encode` makes them.
    """
    model, inputs = kind.model, kind.batch(prompts)
    ends = end_tokens(model)
    with settings_explained(model):
        made = model.generate(
            **inputs,
            pad_token_id=kind.pad_token_id,
            return_dict_in_generate=False,
            streamer=streamer,
            tokenizer=kind.tokenizer,  # for stop_strings
            **search.options(),
        )  # (B N, S + new tokens), or (B N, 1 + new tokens)
    given = kind.num_given(inputs["input_ids"].shape[1])
    return [until_end(row, ends) for row in made[:, given:].tolist()]


def search_all(
    kind: Prompting,
    prompts: Sequence[Sequence[int]],
    search: Search,
    batch_size: int,
    advance: Callable[[int], None] = lambda amount: None,
) -> list[list[int]]:
    """Return the new tokens of each prompt, found in batches of like length, the longest first.

    advance: is told how many prompts are done. Raises InputError for logits that are not finite, settings of the
    model's folder that cannot be followed, or memory that runs out.
    """
    require_least(1, batch_size=batch_size)
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    found: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        batch = [prompts[number] for number in numbers]
        tokens = len(batch[0]) + search.max_new_tokens
        where = f"generating on {kind.model.device}"
        with (
            memory_explained(where, kind.model, len(batch) * search.num_beams, tokens),
            finite_logits(kind.model),
        ):
            for number, new in zip(numbers, search_batch(kind, batch, search), strict=True):
                found[number] = new
        advance(len(batch))
    return found


def decode(kind: Prompting, prompt: Sequence[int], new: Sequence[int]) -> str:
    """Return the text of a prompt's new tokens, with the prompt where the text goes on from it."""
    with tokenizing("tokens: cannot be decoded by the model's tokenizer"):
        text: str = kind.tokenizer.decode([*kind.beginning(prompt), *new], skip_special_tokens=True)
    return text
