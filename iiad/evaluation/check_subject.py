"""The model under check, loaded once, with what several claims need of it.

Legend: B sequences, T tokens of one (prompt and new ones), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from iiad.artefacts import ModelIdentity
from iiad.loading import DTYPES
from iiad.planning import Plan

from .check_artefact import CheckSettings

__all__ = ["Subject", "Teacher", "align", "load_again"]

NUM_SEQUENCES = 2


@dataclass(frozen=True)
class Teacher:
    """What a model is compared with.

    Attributes:
        name: folder or hub name.
        model: the loaded teacher, which runs its full plan.
        identity: who it is.
    """

    name: str
    model: Any
    identity: ModelIdentity


@dataclass(frozen=True)
class Subject:
    """A model under check. Claims leave it as they found it.

    Attributes:
        name: folder or hub name.
        model: the loaded model, in evaluation mode.
        identity: who it is, and the plan it runs.
        settings: what to run.
        folder: an empty folder for files, gone after the check.
        teacher: what to compare it with, if given.
        plan: the plan that the model should run, if given.
    """

    name: str
    model: Any
    identity: ModelIdentity
    settings: CheckSettings
    folder: Path
    teacher: Teacher | None = None
    plan: Plan | None = None

    @property
    def iterated(self) -> bool:
        """Whether the model follows a plan."""
        return hasattr(self.model, "set_num_iterations")

    @cached_property
    def tokens(self) -> Tensor:
        """(B, T) random token ids, none of them one that transformers may take for padding or the end."""
        return self._random_tokens(NUM_SEQUENCES, self.settings.seed)

    @cached_property
    def training_tokens(self) -> Tensor:
        """(2 B, T) others, for losses."""
        return self._random_tokens(2 * NUM_SEQUENCES, self.settings.seed + 1)

    @property
    def prompts(self) -> Tensor:
        """(B, prompt tokens), where the sequences begin."""
        return self.tokens[:, : self.settings.prompt_tokens]

    @cached_property
    def logits(self) -> Tensor:
        """(B, T, V), without a cache. Raises ValueError where nothing can be compared with them."""
        logits = self.forward(self.model, self.tokens)
        if not logits.isfinite().all():
            raise ValueError("its logits without a cache hold NaN or infinity")
        if not logits.std() > 0:
            raise ValueError("its logits without a cache are all the same")
        return logits

    @cached_property
    def deviation(self) -> float:
        """Standard deviation of the logits, which differences are relative to."""
        return float(self.logits.double().std())

    @property
    def margin(self) -> float:
        """How far below the likeliest token's logit another one may be and still be chosen for rounding alone.

        Twice the bound, in logits: the one may be too high by the bound, and the other too low.
        """
        return 2 * self.settings.rounding_bound * self.deviation

    @cached_property
    def saved(self) -> Path:
        """The model, saved once more."""
        folder = self.folder / "saved"
        self.model.save_pretrained(folder)
        return folder

    @torch.no_grad()
    def forward(self, model: Any, tokens: Tensor) -> Tensor:
        """Logits (B, T, V) of tokens (B, T), by one forward call without a cache."""
        return model(input_ids=tokens, use_cache=False).logits

    @contextmanager
    def following(self, num_iterations: list[int], model: Any = None) -> Iterator[None]:
        """Let the model, or another one, run a plan for a while and its own again after it."""
        model = self.model if model is None else model
        before = list(model.config.num_iterations)
        model.set_num_iterations(num_iterations)
        try:
            yield
        finally:
            model.set_num_iterations(before)

    def _random_tokens(self, num_sequences: int, seed: int) -> Tensor:
        vocab_size = self.model.get_input_embeddings().weight.shape[0]
        special: set[int] = set()
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            ids = getattr(self.model.config, name, None)
            special |= set(ids if isinstance(ids, list) else [ids]) - {None}
        usual = torch.tensor([token for token in range(vocab_size) if token not in special])
        shape = (num_sequences, self.settings.prompt_tokens + self.settings.new_tokens)
        drawn = torch.randint(len(usual), shape, generator=torch.Generator().manual_seed(seed))
        return usual[drawn].to(self.settings.device)


def load_again(name: str | Path, settings: CheckSettings, **fields: Any) -> Any:
    """A model by transformers' own means, in evaluation mode; fields: of its configuration, to be other ones."""
    model = AutoModelForCausalLM.from_pretrained(
        str(name), dtype=DTYPES[settings.dtype], use_safetensors=True, **fields
    )
    align(model)
    return model.to(settings.device).eval()


def align(model: Any) -> None:
    """Copy every parameter into memory of its own.

    Weights may lie in a mapped file, at an offset that differs between two files, and how a matrix product sums may
    depend on that: two copies of one model would differ in the last bit.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
