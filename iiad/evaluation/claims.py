"""A model under check, and what a claim about it is. All definitions here are ours.

Two exact ways to the same logits differ by the order in which they sum, a fault by much more: the bound on rounding
(`checks.ROUNDING_BOUNDS`) lies between. Logit differences are relative to the standard deviation of the logits.

Legend: B sequences, T tokens of one (prompt and new ones), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iiad.checkpoints import DTYPES, auto_class
from iiad.folders import find_folder
from iiad.identities import ModelIdentity
from iiad.planning import Plan

from .check_artefact import CheckSettings
from .engine import Completion, serving
from .subject_inputs import Inputs, choose_inputs

__all__ = ["Claim", "Skipped", "Subject", "logit_difference", "realign", "running_plan", "worst"]

NUM_SEQUENCES = 2
NUM_PROMPTS = 8
"""At most, of an engine."""

LOGITS, GRADIENT = "of logits' std", "of gradient"
TOKENS, CONTENT, LAYERS, FIELDS = "tokens", "tensors, fields", "layers", "fields"
"""Units of figures."""


class Skipped(Exception):  # noqa: N818  # nothing went wrong
    """A claim does not apply to this model or cannot be checked here; the message is the reason."""


@dataclass(frozen=True)
class Claim:
    """One property that must hold for a model.

    Attributes:
        name: the property, as "cached = uncached".
        unit: of the figure.
        exact: the figure must be 0; otherwise it may reach the bound on rounding.
        measure: returns the figure, 0 where the claim holds exactly. Raises Skipped where it does not apply; any
            other error means that the claim fails.
    """

    name: str
    unit: str
    exact: bool
    measure: Callable[[Subject], float]


@dataclass(frozen=True)
class Subject:
    """A model under check, or its teacher, loaded once, with what several claims need. Claims leave it as it was.

    Attributes:
        model: the loaded model, in evaluation mode.
        identity: its name, weights and plan.
        settings: what to run.
        folder: an empty folder for files, removed after the check.
        teacher: the model to compare with, if one was given.
        plan: the plan that the model should run, if one was given.
        engine: interpreter with vLLM, if one was given.
    """

    model: Any
    identity: ModelIdentity
    settings: CheckSettings
    folder: Path
    teacher: Subject | None = None
    plan: Plan | None = None
    engine: str | Path | None = None

    @cached_property
    def inputs(self) -> Inputs:
        """Inputs of its kind of model."""
        return choose_inputs(self)

    @cached_property
    def tokens(self) -> Tensor:
        """(B, T) random token ids that a model decodes, none of them one that may be taken for padding or the end."""
        return self.inputs.begin(self.draw_tokens(NUM_SEQUENCES, self.settings.seed))

    @cached_property
    def training_tokens(self) -> Tensor:
        """(2 B, T) others, for losses."""
        return self.inputs.begin(self.draw_tokens(2 * NUM_SEQUENCES, self.settings.seed + 1))

    @property
    def prompts(self) -> Tensor:
        """(B, prompt tokens), the beginnings of the sequences."""
        return self.tokens[:, : self.settings.prompt_tokens]

    @cached_property
    def logits(self) -> Tensor:
        """(B, T, V), without a cache. Raises ValueError for logits that nothing can be compared with."""
        logits = self.forward()
        if not logits.isfinite().all():
            raise ValueError("its logits without a cache hold NaN or infinity")
        if not logits.std() > 0:
            raise ValueError("its logits without a cache are all the same")
        return logits

    @cached_property
    def deviation(self) -> float:
        """Standard deviation of the logits."""
        return float(self.logits.double().std())

    @cached_property
    def saved(self) -> Path:
        """The folder of the model, saved again."""
        self.model.save_pretrained(self.folder / "saved")
        return self.folder / "saved"

    @cached_property
    def served(self) -> tuple[list[list[int]], list[Completion]]:
        """Prompts of different lengths and the answers of vLLM, asked for all at once. Raises EngineError."""
        settings, tokens = self.settings, self.draw_tokens(NUM_PROMPTS, self.settings.seed + 3)
        lengths = range(settings.prompt_tokens, 0, -max(1, settings.prompt_tokens // NUM_PROMPTS))
        prompts = [row[:length].tolist() for row, length in zip(tokens, lengths, strict=False)]
        options = ["--skip-tokenizer-init", "--dtype", settings.dtype]
        options += ["--max-model-len", str(settings.prompt_tokens + settings.new_tokens)]
        options += [] if settings.compile else ["--enforce-eager"]
        with serving(self.engine or "python", self.saved, self.folder, *options) as engine:
            return prompts, engine.complete_all(prompts, settings.new_tokens, len(prompts))

    @torch.no_grad()
    def forward(self, model: Any = None) -> Tensor:
        """Return logits (B, T, V) of its tokens in one call without a cache; default: of its model."""
        given = self.inputs.arrange(self.tokens, slice(NUM_SEQUENCES))
        return (model or self.model)(**given, use_cache=False).logits

    @torch.no_grad()
    def forward_alone(self, row: int, tokens: Tensor, padded: bool) -> Tensor:
        """Return logits (1, T, V) of tokens (1, T), which sequence `row` became without its padding, if any."""
        given = self.inputs.arrange(tokens, slice(row, row + 1), padded)
        return self.model(**given, use_cache=False).logits

    def compare(self, found: Tensor, wanted: Tensor | None = None) -> float:
        """Return the `logit_difference` from its logits, or from other ones of its model."""
        return logit_difference(found, self.logits if wanted is None else wanted, self.deviation)

    def load_again(self, name: str | Path | None = None, **fields: Any) -> Any:
        """Load its model, or a folder, by transformers' own means, with some fields of the configuration changed."""
        model = auto_class(self.model.config).from_pretrained(
            find_folder(name or self.identity.name),
            dtype=DTYPES[self.settings.dtype],
            use_safetensors=True,
            trust_remote_code=False,
            **fields,
        )
        return realign(model).to(self.settings.device).eval()

    def draw_tokens(self, num_sequences: int, seed: int) -> Tensor:
        """Return (sequences, T) random token ids."""
        vocab_size = self.model.get_input_embeddings().weight.shape[0]
        special: set[int] = set()
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
            ids = getattr(self.model.config, name, None)
            special |= set(ids if isinstance(ids, list) else [ids]) - {None}
        usual = torch.tensor([token for token in range(vocab_size) if token not in special])
        shape = (num_sequences, self.settings.prompt_tokens + self.settings.new_tokens)
        drawn = torch.randint(len(usual), shape, generator=torch.Generator().manual_seed(seed))
        return usual[drawn].to(self.settings.device)


def logit_difference(found: Tensor, wanted: Tensor, deviation: float) -> float:
    """Return the largest |found - wanted| / deviation, the standard deviation of the logits; both of one shape."""
    if found.shape != wanted.shape:
        raise ValueError(f"expected shape {tuple(wanted.shape)}, got {tuple(found.shape)}")
    # In float64, so that small differences of bfloat16 logits are not rounded away.
    return float((found.double() - wanted.double()).abs().max()) / deviation


def worst(figures: Iterable[float]) -> float:
    """Return the largest figure, or NaN if there is any, which max() may miss."""
    return max(figures, key=lambda figure: (math.isnan(figure), figure))


@contextmanager
def running_plan(
    model: Any, num_iterations: list[int], extrapolation: list[list[float]] | None = None
) -> Iterator[None]:
    """Let a model run another plan in the block, and its own after it."""
    names = (*model.config.plan_fields, "extrapolation", "tolerance")
    before = {name: getattr(model.config, name) for name in names}
    model.set_num_iterations(num_iterations, extrapolation)
    try:
        yield
    finally:
        model.reconfigure(**before)


def realign(model: Any) -> Any:
    """Copy every parameter into memory of its own; return the model.

    Weights may lie in a mapped file, at an offset that differs between two files, and how a matrix product sums may
    depend on that: two copies of one model would differ in the last bit.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model
