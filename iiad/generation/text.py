"""Generate text from a model, through transformers' own generate() or with a draft (lossless mode).

Legend: T tokens of the prompt.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iiad.checkpoints import choose_device, choose_dtype, load_identified
from iiad.data import load_tokenizer
from iiad.data.tokenizers import tokenizing
from iiad.errors import InputError, require_least, require_seed
from iiad.memory import memory_explained
from iiad.planning import Plan, check_plan
from iiad.planning.plan import read_plan

from .draft_choice import Choice, choose_draft
from .drafts import Draft, check_draft, check_draft_options, load_draft
from .guards import encode, end_tokens, finite_logits, settings_explained
from .speculation import Chooser, Speculation, speculate, until_end

__all__ = [
    "Generation",
    "check_sampling",
    "generate_text",
    "load_drafted_generator",
    "load_generator",
    "read_prompt",
]


@dataclass(frozen=True)
class Generation:
    """Generated texts, and the tokens and seconds that they took.

    Attributes:
        texts: one per sample, with the prompt, without special tokens.
        num_new_tokens: over all samples, with the tokens that end texts.
        seconds: of reading the prompt and generating, without the choice of a draft.
        speculation: calls and tokens of draft and teacher; None without a draft.
        choice: the measurement of the draft's plan and length; None where they were given.
    """

    texts: list[str]
    num_new_tokens: int
    seconds: float
    speculation: Speculation | None = None
    choice: Choice | None = None

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
    streamer: Any = None,
    draft: Draft | None = None,
) -> Generation:
    """Continue a prompt with the model's own plan and cache.

    With a draft (lossless mode) the greedy text is the same and samples have the same distribution, but not the
    same tokens for the same seed (`iiad.generation.speculate`).

    The same seed gives the same text on the same machine; the caller's random state is left as it was. The tokens
    that end a text, and anything else that is not an argument here, follow the model's generation_config.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: its tokenizer.
        prompt: text to go on from; empty starts at the beginning of a text.
        max_new_tokens: the most tokens to add.
        temperature: 0 takes the likeliest token each time (greedy), above 0 samples.
        top_k: sample among the k likeliest tokens; default: all.
        top_p: sample among the likeliest tokens that hold this share of probability; default: all.
        seed: of the sampling.
        num_samples: texts to make; more than one only when sampling.
        streamer: gets every token as it comes, as transformers' TextStreamer; for one sample only.
        draft: proposes tokens, which makes one sample faster; see `load_drafted_generator`.

    Raises:
        InputError: a value out of range, prompt and new tokens that do not fit in max_position_embeddings, a draft
            that cannot follow the model, or memory runs out.
    """
    check_sampling(max_new_tokens, temperature, top_k, top_p, seed, num_samples)
    for name, given in (("streamer", streamer), ("draft", draft)):
        if given is not None and num_samples > 1:
            raise InputError(f"num_samples: expected 1 with a {name}, got {num_samples}")
    prompt_ids = _encode(model, tokenizer, prompt, max_new_tokens)  # (1, T)
    chooser = Chooser(float(temperature), top_k, top_p)
    devices = [model.device] if model.device.type == "cuda" else []
    where, num_tokens = f"generating on {model.device}", prompt_ids.shape[1] + max_new_tokens
    speculation = choice = None
    watched = [model] if draft is None else [model, draft.model]
    with (
        torch.random.fork_rng(devices=devices),
        memory_explained(where, model, num_samples, num_tokens),
        finite_logits(*watched),
    ):
        torch.manual_seed(seed)
        if draft is None:
            started = time.perf_counter()
            new = _generate(model, tokenizer, prompt_ids, max_new_tokens, chooser, num_samples, streamer)
            seconds = time.perf_counter() - started
        else:
            speculation, choice = _speculate(model, draft, prompt_ids, max_new_tokens, chooser, streamer)
            new, seconds = [speculation.tokens], speculation.seconds
    with tokenizing("tokens: cannot be decoded by the model's tokenizer"):
        texts = [tokenizer.decode([*prompt_ids[0].tolist(), *row], skip_special_tokens=True) for row in new]
    return Generation(texts, sum(map(len, new)), seconds, speculation, choice)


def _generate(
    model: Any,
    tokenizer: Any,
    prompt_ids: Tensor,
    max_new_tokens: int,
    chooser: Chooser,
    num_samples: int,
    streamer: Any,
) -> list[list[int]]:
    """New tokens of each sample by transformers' generate(), up to the one that ended it."""
    config = model.generation_config
    padding = (config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
    options: dict[str, Any] = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0}  # unused
    if not chooser.greedy:
        # transformers drops all but 50 tokens where top_k is not given; 0 keeps all.
        options = {"do_sample": True, "temperature": chooser.temperature, "top_k": chooser.top_k or 0}
        options["top_p"] = float(chooser.top_p or 1)
    ends = end_tokens(model)
    with settings_explained(model):
        made = model.generate(
            prompt_ids,
            attention_mask=torch.ones_like(prompt_ids),
            max_new_tokens=max_new_tokens,
            num_return_sequences=num_samples,
            num_beams=1,
            pad_token_id=next((token for token in padding if token is not None), None),
            return_dict_in_generate=False,
            streamer=streamer,
            tokenizer=tokenizer,  # for stop_strings
            **options,
        )  # (num_samples, T + new tokens)
    return [until_end(row, ends) for row in made[:, prompt_ids.shape[1] :].tolist()]


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


def read_prompt(prompt: str | None, prompt_file: str | Path | None) -> str:
    """Return the prompt from either place, empty from neither. Raises InputError: both, or no UTF-8 text."""
    if prompt_file is None:
        return prompt or ""
    if prompt is not None:
        raise InputError("prompt: expected a text or a file, got both")
    try:
        return Path(prompt_file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{prompt_file}: expected UTF-8 text, got another byte at {error.start}") from None


def load_generator(
    model: str | Path,
    *,
    plan: Plan | str | Path | None = None,
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
    draft_plan: Plan | str | Path | None = None,
    draft_length: int | None = None,
    plan: Plan | str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> tuple[Any, Any, Draft | None]:
    """Load a model, its tokenizer and a draft for it, all as `load_generator`.

    draft: "self", "auto", or a model folder or hub name, see `iiad.generation.drafts.load_draft`; None: no draft.
    draft_plan: for "self", a plan or its file; default: no iterations. draft_length: the most tokens to draft at a
    time; default: measured when generating. Raises InputError also for a draft of another vocabulary.
    """
    check_draft_options(model, draft, draft_plan, draft_length)
    plan, draft_plan, device = read_plan(plan), read_plan(draft_plan), choose_device(device)
    dtype = choose_dtype(dtype, device)
    loaded, identity = load_identified(model, device, dtype, cast=True)
    tokenizer, made = load_tokenizer(model), None
    if plan is not None:
        check_plan(plan, identity)
        loaded.set_num_iterations(plan.num_iterations)
    if draft is not None:
        made = load_draft(draft, loaded, identity, plan=draft_plan, length=draft_length, dtype=dtype)
    return loaded, tokenizer, made


def _encode(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int) -> Tensor:
    """(1, T) token ids on the model's device, T at least 1."""
    ids = encode(tokenizer, prompt)
    if not ids:  # the token before a document's first one
        start = tokenizer.bos_token_id
        ids = [tokenizer.eos_token_id if start is None else start]
    vocab_size = model.get_input_embeddings().weight.shape[0]
    if max(ids) >= vocab_size:
        raise InputError(
            f"prompt: expected tokens below the model's vocabulary of {vocab_size}, got {max(ids)} from the tokenizer"
        )
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and len(ids) + max_new_tokens > limit:
        raise InputError(
            f"prompt: expected at most {limit} tokens with the new ones, the model's positions, got {len(ids)} and "
            f"{max_new_tokens} new"
        )
    return torch.tensor([ids], device=model.device)
