"""Everything that a distillation needs, loaded and found to fit before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel, set_seed

from iiad.artefacts import ModelIdentity
from iiad.checkpoints import choose_device, load_identified
from iiad.data import load_tokenizer
from iiad.errors import InputError
from iiad.planning import Plan, check_plan
from iiad.progress import print_status
from iiad.training.batches import blocks_per_step
from iiad.training.recipes import DistillRecipe
from iiad.training.requirements import check_stage
from iiad.training.scoring import TokenScore, measure_naive_losses, require_knowledge, score_beginning
from iiad.training.teacher import Corpora

from .objectives import hidden_layers, needs_signals
from .stored_signals import StoredSignals
from .students import freeze_unused, make_student, student_changes
from .teacher_signals import LiveTeacher

__all__ = ["Distillation", "prepare"]


@dataclass
class Distillation:
    """A teacher, its student and their text; the teacher only for as long as something learns from it.

    teacher_score: on the validation text, once it is measured.
    """

    recipe: DistillRecipe
    teacher: PreTrainedModel | None
    teacher_config: Any
    identity: ModelIdentity
    tokenizer: Any
    student: PreTrainedModel
    corpora: Corpora
    stored: StoredSignals | None
    teacher_score: TokenScore | None = None
    _live: LiveTeacher | None = None

    def needs_teacher(self, stage: str) -> bool:
        """Whether a stage learns from a live teacher."""
        section = self.recipe.distillation
        if not getattr(section, stage).max_steps or stage == "recover":
            return False
        return stage == "layerwise" or (self.stored is None and needs_signals(section))

    def live_teacher(self) -> LiveTeacher:
        """The teacher as one to learn from."""
        if self._live is None:
            assert self.teacher is not None
            training = self.recipe.training
            layers = hidden_layers(self.recipe.distillation, self.student.config.num_layers)
            sharded = training.fsdp and PartialState().num_processes > 1
            self._live, self.teacher = LiveTeacher(self.teacher, layers, training.bf16, sharded), None
        return self._live

    def forget_teacher(self) -> None:
        """Free it."""
        self.teacher = self._live = None

    def check_teacher(self) -> dict[str, Any]:
        """Measure the teacher before anything learns from it, beside models that know next to nothing.

        Raises InputError for a teacher that is no better than token counts, unless the recipe does not ask, and for
        one that has no accuracy to be retained.
        """
        corpora, section = self.corpora, self.recipe.distillation
        held: Any
        if corpora.score is not None and corpora.validation is not None:
            score, where, held = corpora.score(self.teacher), "data.validation", corpora.validation.tokens
            self.teacher_score = score
        else:
            score, held = score_beginning(
                self.teacher, corpora.training, corpora.block_size, corpora.batch_size, corpora.dtype
            )
            where = "data.train"
        naive = measure_naive_losses(corpora.training.tokens, held, self.teacher_config.vocab_size)
        override = "distillation.check_teacher=false" if section.check_teacher else None
        print_status(require_knowledge(score.nll, naive, where, override))
        if section.retain is not None and not score.accuracy:
            raise InputError("distillation.retain: the teacher predicts no token of data.validation rightly")
        return {"teacher_nll": score.nll, "unigram_nll": naive.unigram, "uniform_nll": naive.uniform}


def prepare(teacher_folder: str | Path, plan: Plan | None, recipe: DistillRecipe) -> Distillation:
    """Load what a recipe names and check that it fits together; nothing is written.

    Raises InputError for a teacher, plan, text or signals that cannot be used or do not belong together.
    """
    device = choose_device(None)
    # In float32 whatever is stored: what a small learning rate adds would be rounded away in bfloat16.
    teacher, identity = load_identified(teacher_folder, device, "float32", cast=True)
    if plan is not None:
        check_plan(plan, identity)
    changes = student_changes(teacher.config, plan, recipe.student)
    tokenizer = load_tokenizer(teacher_folder)
    _require_fit(teacher_folder, teacher, tokenizer, recipe)
    corpora = Corpora(recipe.data, teacher.config.max_position_embeddings, tokenizer, recipe.training)
    stored = _open_signals(recipe, identity, corpora)
    set_seed(recipe.training.seed)
    student = make_student(teacher_folder, changes, recipe.student, device)
    freeze_unused(student)
    for model in (teacher, student):
        check_stage(model, corpora.blocks, recipe.training)
    return Distillation(recipe, teacher, teacher.config, identity, tokenizer, student, corpora, stored)


def _require_fit(folder: str | Path, teacher: PreTrainedModel, tokenizer: Any, recipe: DistillRecipe) -> None:
    """Raise InputError for a vocabulary or a context that is too small, or a hidden state that is not there."""
    if len(tokenizer) > teacher.config.vocab_size:
        raise InputError(
            f"{folder}: its tokenizer has {len(tokenizer)} tokens, its model a vocabulary of "
            f"{teacher.config.vocab_size}"
        )
    longest = teacher.config.max_position_embeddings
    if (recipe.data.block_size or 0) > longest:
        raise InputError(
            f"data.block_size must be at most the teacher's max_position_embeddings ({longest}), "
            f"found {recipe.data.block_size}"
        )
    last = teacher.config.num_layers
    if max(recipe.distillation.hidden_layers or [0]) > last:
        raise InputError(
            f"distillation.hidden_layers must be at most the teacher's num_layers ({last}), "
            f"found {recipe.distillation.hidden_layers}"
        )


def _open_signals(recipe: DistillRecipe, identity: ModelIdentity, corpora: Corpora) -> StoredSignals | None:
    section = recipe.distillation
    if section.signals is None or not section.distill.max_steps:
        return None
    stored = StoredSignals.open(section.signals)
    stored.require(
        teacher=identity,
        tokenizer_fingerprint=corpora.fingerprints["tokenizer"],
        corpus_fingerprint=corpora.training.fingerprint,
        block_size=corpora.block_size,
        temperature=section.temperature if section.kl_weight else None,
        hidden_layers=hidden_layers(section, identity.num_layers),
    )
    batch = blocks_per_step(recipe.training)
    if stored.record.num_blocks < batch:
        raise InputError(
            f"{section.signals}: holds {stored.record.num_blocks} blocks; one step needs {batch}"
        )
    return stored
