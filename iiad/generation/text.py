"""Generate text from a model, through transformers' own generate() or with a draft (lossless mode).

Legend: T tokens of the prompt.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iiad.checkpoints import choose_device, choose_dtype, load_identified
from iiad.data import load_tokenizer
from iiad.errors import InputError, require_least, require_seed
from iiad.memory import memory_explained
from iiad.models import EvaluationCounts, count_evaluations
from iiad.planning.binding import AnyPlan, bind_plan, read_plan
from iiad.progress import progress

from .draft_choice import Choice, choose_draft
from .drafts import Draft, check_draft, check_draft_options, load_draft
from .guards import end_tokens, finite_logits
from .prompting import prompting
from .searching import Search, decode, search_all, search_batch
from .speculation import Chooser, Speculation, speculate

__all__ = [
    "Generation",
    "check_sampling",
    "generate_text",
    "generate_texts",
    "load_drafted_generator",
    "load_generator",
]


@dataclass(frozen=True)
class Generation:
    """Generated texts, and the tokens and seconds that they took.

    Attributes:
        texts: one per sample, without special tokens; a causal model's with the prompt.
        num_new_tokens: over all samples, with the tokens that end texts.
        seconds: of reading the prompt and generating, without the choice of a draft.
        speculation: calls and tokens of draft and teacher; None without a draft.
        choice: the measurement of the draft's plan and length; None where they were given.
        evaluations: mean block evaluations of a token, the prompt's too, padding among them; None where all tokens
            run all iterations.
    """

    texts: list[str]
    num_new_tokens: int
    seconds: float
    speculation: Speculation | None = None
    choice: Choice | None = None
    evaluations: float | None = None

    @property
    def tokens_per_second(self) -> float:
        """New tokens a second, over all samples."""
        return self.num_new_tokens / max(self.seconds, 1e-9)


def generate_text(
    model: Any,
    tokenizer: Any,
    prompt: str = "",
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    num_samples: int = 1,
    num_beams: int = 1,
    length_penalty: float | None = None,
    streamer: Any = None,
    draft: Draft | None = None,
) -> Generation:
    """Continue a prompt, or make the target of a source, with the model's own plan and cache.

    With a draft (lossless mode) the greedy text is the same and samples have the same distribution, but not the
    same tokens for the same seed (`iiad.generation.speculate`).

    The same seed gives the same text on the same machine; the caller's random state is left as it was. The tokens
    that end a text, and anything else that is not an argument here, follow the model's generation_config.

    Args:
        model: a causal language model, or an encoder-decoder, in evaluation mode.
        tokenizer: its tokenizer.
        prompt: text to go on from, empty starts at the beginning of a text; or an encoder-decoder's source.
        max_new_tokens: the most tokens to add.
        temperature: 0 takes the likeliest token each time (greedy), above 0 samples.
        top_k: sample among the k likeliest tokens; default: all.
        top_p: sample among the likeliest tokens that hold this share of probability; default: all.
        seed: of the sampling.
        num_samples: texts to make; more than one only when sampling.
        num_beams, length_penalty: as `iiad.generation.searching.Search` takes them.
        streamer: gets every token as it comes, as transformers' TextStreamer; for one sample only.
        draft: proposes tokens, which makes one sample faster; see `load_drafted_generator`.

    Raises:
        InputError: a value out of range, prompt and new tokens that do not fit in max_position_embeddings, a draft
            that cannot follow the model, or memory runs out.
    """
    check_sampling(max_new_tokens, temperature, top_k, top_p, seed, num_samples)
    for name, given in (("streamer", streamer), ("draft", draft)):
        for count, number in (("num_samples", num_samples), ("num_beams", num_beams)):
            if given is not None and number > 1:
                raise InputError(f"{count}: expected 1 with a {name}, got {number}")
    chooser = Chooser(float(temperature), top_k, top_p)
    search = Search(max_new_tokens, num_beams, length_penalty, chooser, num_samples)
    kind = prompting(model, tokenizer)
    prompt_ids = kind.encode(prompt, max_new_tokens)
    devices = [model.device] if model.device.type == "cuda" else []
    where, num_tokens = f"generating on {model.device}", len(prompt_ids) + max_new_tokens
    speculation = choice = None
    watched = [model] if draft is None else [model, draft.model]
    with (
        torch.random.fork_rng(devices=devices),
        memory_explained(where, model, num_samples * num_beams, num_tokens),
        finite_logits(*watched),
        _counted(model) as counts,
    ):
        torch.manual_seed(seed)
        if draft is None:
            started = time.perf_counter()
            new = search_batch(kind, [prompt_ids], search, streamer)
            seconds = time.perf_counter() - started
        else:
            ids = torch.tensor([prompt_ids], device=model.device)  # (1, T)
            speculation, choice = _speculate(model, draft, ids, max_new_tokens, chooser, streamer)
            new, seconds = [speculation.tokens], speculation.seconds
    texts = [decode(kind, prompt_ids, row) for row in new]
    evaluations = None if counts is None else counts.mean
    return Generation(texts, sum(map(len, new)), seconds, speculation, choice, evaluations)


def generate_texts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 128,
    num_beams: int = 1,
    length_penalty: float | None = None,
    batch_size: int = 8,
) -> Generation:
    """Make a text of each prompt, greedy or by beams, in batches of like length; otherwise as `generate_text`."""
    search, kind = Search(max_new_tokens, num_beams, length_penalty), prompting(model, tokenizer)
    ids = [kind.encode(prompt, max_new_tokens) for prompt in prompts]
    with progress("generating", len(ids), "texts") as advance, _counted(model) as counts:
        started = time.perf_counter()
        new = search_all(kind, ids, search, batch_size, advance)
        seconds = time.perf_counter() - started
    texts = [decode(kind, *each) for each in zip(ids, new, strict=True)]
    evaluations = None if counts is None else counts.mean
    return Generation(texts, sum(map(len, new)), seconds, evaluations=evaluations)


def _counted(model: Any) -> AbstractContextManager[EvaluationCounts | None]:
    """Count evaluations in the block where tokens stop by themselves; elsewhere there is nothing to count."""
    stops = getattr(model.config, "tolerance", None) is not None
    return count_evaluations(model) if stops else nullcontext()


def _speculate(
    teacher: Any, draft: Draft, prompt_ids: Tensor, max_new_tokens: int, chooser: Chooser, streamer: Any
) -> tuple[Speculation, Choice | None]:
    """Run `speculate`, after a choice of the draft's plan and length where they are open."""
    check_draft(teacher, draft, prompt_ids.shape[1] + max_new_tokens)
    choice, length = None, draft.length
    if length is None or draft.plans:
        choice = choose_draft(teacher, draft, prompt_ids, max_new_tokens, chooser)
        length = choice.best.length
    run = partial(
        speculate, teacher, draft.model, prompt_ids, max_new_tokens, length, chooser, end_tokens(teacher)
    )
    if streamer is None:
        return run(), choice
    streamer.put(prompt_ids.cpu())
    speculation = run(lambda tokens: streamer.put(torch.tensor(tokens)))
    streamer.end()
    return speculation, choice


def check_sampling(
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    num_samples: int,
) -> None:
    """Raise InputError for the first value out of range. Needs no model."""
    require_least(1, max_new_tokens=max_new_tokens, num_samples=num_samples, top_k=top_k)
    require_seed(seed)
    if temperature != 0 and not 0.01 <= temperature <= 100:
        raise InputError(f"temperature: expected 0 (greedy), or from 0.01 to 100, got {temperature}")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p: expected above 0, at most 1, got {top_p}")
    sampling = {"top_k": top_k, "top_p": top_p, "num_samples": num_samples if num_samples > 1 else None}
    for name, choice in sampling.items():
        if choice is not None and temperature == 0:
            raise InputError(f"{name}: expected a temperature above 0 with it, got {choice} and 0 (greedy)")


def load_generator(
    model: str | Path,
    *,
    plan: AnyPlan | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> tuple[Any, Any]:
    """Load a model, truncated to a plan if one is given, and its tokenizer.

    plan: a plan or its file. device: default CUDA where there is one. dtype: of the weights, "float32" or
    "bfloat16"; default float32 on the CPU. Raises InputError for any of them that cannot be used.
    """
    return load_drafted_generator(model, None, plan=plan, device=device, dtype=dtype)[:2]


def load_drafted_generator(
    model: str | Path,
    draft: str | Path | None,
    *,
    draft_plan: AnyPlan | None = None,
    draft_length: int | None = None,
    plan: AnyPlan | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> tuple[Any, Any, Draft | None]:
    """Load a model, its tokenizer and a draft for it, all as `load_generator`.

    draft: "self", "auto", or a model folder or hub name, see `iiad.generation.drafts.load_draft`; None: no draft.
    draft_plan: for "self", a plan or its file; default: the smallest that the model was trained for, or no
    iterations. draft_length: the most tokens to draft at a time; default: measured when generating. Raises InputError
    also for a draft of another vocabulary.
    """
    check_draft_options(model, draft, draft_plan, draft_length)
    plan, draft_plan, device = read_plan(plan), read_plan(draft_plan), choose_device(device)
    dtype = choose_dtype(dtype, device)
    loaded, identity = load_identified(model, device, dtype, cast=True, kind=None)
    tokenizer, made = load_tokenizer(model), None
    if plan is not None:
        budget = bind_plan(plan, identity)
        loaded.follow_plan(budget)
    if draft is not None:
        made = load_draft(draft, loaded, identity, plan=draft_plan, length=draft_length, dtype=dtype)
    return loaded, tokenizer, made
