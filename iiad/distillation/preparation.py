"""Teacher, student and text of a distillation, loaded and checked before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import set_seed

from iiad.checkpoints import choose_device, load_identified
from iiad.data import load_tokenizer
from iiad.errors import InputError
from iiad.planning import Family, Plan, check_plan
from iiad.training.corpora import Corpora, require_step
from iiad.training.recipes import DistillRecipe
from iiad.training.requirements import set_attention
from iiad.training.rewriting import Rewriting
from iiad.training.scoring import COUNTED_TOKENS, TokenScore, require_knowledge, score_beginning
from iiad.training.turns import Turns

from .continuations import Continuations
from .elastic import choose_family, give_plans, make_turns
from .objectives import hidden_layers, needs_signals
from .stored_signals import StoredSignals
from .students import freeze_unused, make_student, require_change
from .teacher_signals import LiveTeacher, StoredTeacher

__all__ = ["Distillation"]


class Distillation:
    """A teacher, its student and their text.

    budget: None where the recipe says what changes. family: of a student that learns several plans; None for one.
    teacher_score: on the validation text, once it is measured.
    Raises InputError for a teacher, plan, text or signals that cannot be used or do not belong together.
    """

    def __init__(self, teacher_folder: str | Path, budget: Plan | Family | None, recipe: DistillRecipe):
        self.recipe, device = recipe, choose_device(None)
        # In float32 whatever is stored: what a small learning rate adds would be rounded away in bfloat16.
        self.teacher, self.identity = load_identified(teacher_folder, device, "float32", cast=True, kind=None)
        self.teacher_config: Any = self.teacher.config
        self.family = choose_family(budget, recipe.distillation, self.identity)
        assert self.family is not None or not isinstance(budget, Family)
        plans = (
            self.family.members if self.family is not None else [budget] if isinstance(budget, Plan) else []
        )
        plan = plans[0] if plans else None
        if plan is not None:
            check_plan(plan, self.identity)
        require_change(self.teacher_config, plans, recipe.student)
        num_layers = (
            self.teacher_config.num_layers
        )  # an encoder-decoder's hidden states are those of its decoder
        self.layers = hidden_layers(recipe.distillation, num_layers)
        if max(self.layers, default=0) > num_layers:
            raise InputError(
                f"distillation.hidden_layers: expected at most {num_layers}, the teacher's num_layers, "
                f"got {self.layers}"
            )
        self.tokenizer = load_tokenizer(teacher_folder)
        self.corpora = Corpora(recipe, self.tokenizer, self.teacher_config)
        self.stored = self._open_signals()
        set_seed(recipe.training.seed)
        if plan is None:
            self.student = make_student(teacher_folder, None, recipe.student, device)
        else:
            given = (plan.coefficients, plan.tolerance)
            self.student = make_student(teacher_folder, plan.num_iterations, recipe.student, device, *given)
        freeze_unused(self.student)
        self.turns = Turns()
        if self.family is not None:
            give_plans(self.student, self.family)
            self.turns = make_turns(self.family, recipe.distillation.elastic)
        for model in (self.teacher, self.student):
            set_attention(model, recipe.training)
        self.rewriting = Rewriting()
        if recipe.distillation.onpolicy.generates:
            self.rewriting = Continuations(
                recipe.distillation.onpolicy, self.corpora.blocks, self.student, self.tokenizer
            )
        self.teacher_score: TokenScore | None = None

    def _open_signals(self) -> StoredSignals | None:
        section = self.recipe.distillation
        if section.signals is None or not section.distill.max_steps:
            return None
        stored = StoredSignals.open(section.signals)
        stored.require(
            teacher=self.identity,
            tokenizer_fingerprint=self.corpora.fingerprints["tokenizer"],
            corpus_fingerprint=self.corpora.training.fingerprint,
            block_size=self.corpora.blocks.num_outputs,
            temperature=section.temperature if section.kl_weight else None,
            hidden_layers=self.layers,
        )
        if stored.record.num_blocks < len(self.corpora.blocks):
            require_step(section.signals, stored.record.num_blocks, self.recipe.training)
        return stored

    def check_teacher(self) -> dict[str, float]:
        """Measure the teacher before anything learns from it, and the losses that it must beat; return all three.

        Raises InputError for a teacher that is no better than token counts, unless the recipe does not ask, and for
        one that has no accuracy to be retained.
        """
        corpora, section = self.corpora, self.recipe.distillation
        held: Any
        if corpora.score is not None and corpora.validation is not None:
            validation, where = corpora.validation, "data.validation"
            held = validation.targets(validation.num_tokens)
            self.teacher_score = score = corpora.score(self.teacher, "measuring the teacher")
        else:
            score, held = score_beginning(
                self.teacher, corpora.training, corpora.block_size, corpora.batch_size, corpora.dtype
            )
            where = "data.train"
        override = "distillation.check_teacher=false" if section.check_teacher else None
        vocab_size = self.teacher_config.vocab_size
        losses = require_knowledge(
            score.nll, corpora.training.targets(COUNTED_TOKENS), held, vocab_size, where, override
        )
        if section.retain is not None and not score.accuracy:
            raise InputError(
                f"distillation.retain: expected a teacher with accuracy on {where}, got one of 0"
            )
        return losses

    def take_teachers(self) -> dict[str, Any]:
        """Hand over the teacher of each stage that learns from one, by name: a LiveTeacher or a StoredTeacher.

        Nothing else keeps the model, so it is freed with the last of them.
        """
        section, training = self.recipe.distillation, self.recipe.training
        stages = [name for name in section.stages() if name == "layerwise"]
        teachers: dict[str, Any] = {}
        if needs_signals(section):
            stages += [name for name in section.stages() if name in ("distill", "onpolicy")]
            if self.stored is not None:  # without stage onpolicy
                stages.remove("distill")
                teachers["distill"] = StoredTeacher(self.stored, self.layers, training.autocast)
        if stages:
            sharded = training.fsdp and PartialState().num_processes > 1
            live = LiveTeacher(self.teacher, self.layers, training.autocast, sharded)
            teachers |= dict.fromkeys(stages, live)
        self.teacher = None
        return teachers
