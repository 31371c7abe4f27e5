"""Folder of a run: claimed, resumed and finished so that nothing is lost, mixed up or overwritten.

It holds run.json, the record; recipe.yaml; checkpoints; and in the end the finished model.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from transformers import PreTrainedModel

from iiad.artefacts import list_differences
from iiad.checkpoints import require_finite
from iiad.errors import InputError, one_line
from iiad.files import atomic_folder, write_text
from iiad.progress import print_status

from .batches import blocks_per_step
from .model_card import model_card
from .processes import from_first_process
from .recipes import DistillRecipe, TrainRecipe
from .run_record import RECORD, RunRecord

__all__ = ["RunFolder"]

RECIPE = "recipe.yaml"

_FREE_TO_CHANGE = frozenset(
    """
save_steps save_total_limit logging_steps report_to eval_steps cache_dir max_skipped_steps teacher plan
per_device_train_batch_size gradient_accumulation_steps gradient_checkpointing fsdp
torch_compile torch_compile_backend attn_implementation
""".split()
)
"""Settings that may change when a run is resumed: how it is watched and kept, where its inputs lie (their hashes are
compared), and what a step costs rather than computes, rounding aside. The blocks of a step may not change."""


class RunFolder:
    """Output folder of one run. Nothing is written before `begin`; of several processes, the first one writes.

    given: settings that stand beside the recipe. Raises InputError where the folder holds a finished run, an
    unfinished one that is not to be resumed or has other settings, or anything else.
    """

    def __init__(
        self,
        folder: str | Path,
        command: str,
        recipe: TrainRecipe | DistillRecipe,
        resume: bool,
        given: Mapping[str, str | None] | None = None,
    ):
        self.path = Path(folder)
        settings: dict[str, Any] = {**recipe.model_dump(mode="json"), **(given or {})}
        settings["blocks_per_step"] = blocks_per_step(recipe.training)
        found = self._find_run(resume)
        if found is not None:
            self._require_same(found, command, settings)
        self.record = found or RunRecord(command=command, settings=settings, inputs={})

    def _find_run(self, resume: bool) -> RunRecord | None:
        """Read the record of the unfinished run to go on with; None for a new or empty folder."""
        if not (self.path / RECORD).exists():
            # The lock, and what a kill can leave before the record is there, begin with a dot.
            if self.path.exists() and any(not path.name.startswith(".") for path in self.path.iterdir()):
                raise InputError(
                    f"{self.path}: expected a new folder, got one with files that are no run's and no {RECORD}"
                )
            if resume:
                print_status(f"{self.path}: nothing to resume; starting afresh")
            return None
        record = RunRecord.load(self.path / RECORD)
        if record.finished:
            raise InputError(f"{self.path}: expected a new folder, got a finished run; nothing was changed")
        if not resume:
            raise InputError(
                f"{self.path}: expected a new folder, got an unfinished run; continue it with --resume"
            )
        return record

    def _require_same(self, found: RunRecord, command: str, settings: dict[str, Any]) -> None:
        if found.command != command:
            raise InputError(
                f"{self.path}: expected a run of iiad {command}, got one of iiad {found.command}"
            )
        # With retain, how often it is looked at decides when the run ends.
        retain = (settings.get("distillation") or {}).get("retain")
        free = _FREE_TO_CHANGE - {"eval_steps"} if retain else _FREE_TO_CHANGE
        if differences := list(list_differences(found.settings, settings, free)):
            raise InputError(f"{self.path}: cannot be resumed with another recipe: {'; '.join(differences)}")

    def begin(self, inputs: dict[str, str]) -> None:
        """Write down the hashes of what the run reads or, when resumed, require that they are the same."""
        before = {name: self.record.inputs.get(name, found) for name, found in inputs.items()}
        if differences := list(list_differences(before, inputs)):
            raise InputError(f"{self.path}: cannot be resumed with other inputs: {'; '.join(differences)}")
        self.record = self.record.model_copy(update={"inputs": {**self.record.inputs, **inputs}})
        PartialState().wait_for_everyone()  # every process has looked at the folder as it was
        from_first_process(self._write)

    def _write(self) -> None:
        self.record.save(self.path / RECORD)  # first: it is what makes the folder a run
        # What else is in the settings, teacher and plan for one, is no part of a recipe.
        sections = {name: value for name, value in self.record.settings.items() if isinstance(value, dict)}
        write_text(self.path / RECIPE, yaml.safe_dump(sections, sort_keys=False))

    def card(self, model: PreTrainedModel, results: dict[str, Any]) -> str:
        """Write the model card for these results."""
        return model_card(model, self.record, results)

    def finish(self, model: PreTrainedModel, tokenizer: Any, results: dict[str, Any]) -> None:
        """Put the finished model into the folder, and only then call the run finished."""
        require_finite(model.state_dict(), self.path)
        from_first_process(lambda: self._finish(model, tokenizer, results))

    def _finish(self, model: PreTrainedModel, tokenizer: Any, results: dict[str, Any]) -> None:
        final = self.path / ".final"
        for leftover in (final, *self.path.glob(f".{final.name}-*")):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            with atomic_folder(final) as stage:
                if model.generation_config is not None:
                    model.generation_config.pad_token_id = tokenizer.pad_token_id
                model.save_pretrained(stage)
                tokenizer.save_pretrained(stage)
                (stage / "README.md").write_text(self.card(model, results), encoding="utf-8")
            # config.json last: without it a folder is no model to anybody.
            for file in sorted(final.iterdir(), key=lambda file: file.name == "config.json"):
                os.replace(file, self.path / file.name)
            final.rmdir()
        except (OSError, InputError) as error:
            raise InputError(
                f"{self.path}: the finished model cannot be written ({one_line(error)}); "
                "its checkpoints are whole: make room and continue with --resume"
            ) from error
        self.record = self.record.model_copy(update={"finished": True, "results": results})
        self.record.save(self.path / RECORD)
