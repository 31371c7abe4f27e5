"""Input of the training loop: one stage of a run, and the context that all stages of the run share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from .batches import Blocks
from .estimates import StageWork
from .interruption import Interruption
from .learner import LanguageModelling, Objective
from .phases import TwoPhases
from .rewriting import Rewriting
from .scoring import TokenScore
from .sections import OptimizationSection, StageSection, TrainingSection
from .turns import Turns

__all__ = ["RunContext", "Stage"]


@dataclass(frozen=True)
class RunContext:
    """Context that the stages of a run share.

    folder: of the run. run: its identity. optimization: the recipe's section. tokenizer: saved with checkpoints.
    card: the model card for figures by name. score: of a model on held-out text. interruption: ends the run early.
    on_step: called before each step with its number, from 1.
    """

    folder: Path
    run: str
    optimization: OptimizationSection
    tokenizer: Any
    card: Callable[[PreTrainedModel, dict[str, Any]], str]
    score: Callable[[Any], TokenScore] | None = None
    interruption: Interruption = field(default_factory=Interruption)
    on_step: Callable[[int], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a run.

    folder: for checkpoints. blocks: items with input_ids (T,), all of one length, and what the objective's signals
    ask for. length: steps, learning rate, warm-up and schedule. seed: of dropout, of the data's order and of what the
    turns and the rewriting draw. turns: passes over each batch. rewriting: of the batches. phases: of the iterations.
    unused: some parameters get no gradient in some steps, which DDP must be told. work: of its steps, and share: of
    the run's, to tell the time left. retain: end once this share of the teacher's accuracy is there. teacher: its
    score on the held-out text.
    """

    name: str
    folder: Path
    blocks: Blocks
    length: TrainingSection | StageSection
    seed: int
    objective: Objective = field(default_factory=LanguageModelling)
    turns: Turns = field(default_factory=Turns)
    rewriting: Rewriting = field(default_factory=Rewriting)
    phases: TwoPhases | None = None
    unused: bool = False
    work: StageWork = field(default_factory=StageWork)
    share: float = 1.0
    retain: float | None = None
    teacher: TokenScore | None = None
