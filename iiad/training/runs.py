"""The folder of a run: claimed, resumed and finished so that nothing is lost, mixed up or overwritten.

run.json says what the run is and whether it is finished; checkpoints are beside it; the finished model lies in the
folder itself.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from pydantic import Field, JsonValue
from safetensors import SafetensorError
from transformers import PreTrainedModel

from iiad.artefacts import Artefact
from iiad.checkpoints import require_finite
from iiad.errors import InputError, one_line
from iiad.files import write_text
from iiad.progress import print_status

from .processes import from_first_process

__all__ = ["RunFolder", "RunRecord"]

RECORD = "run.json"
RECIPE = "recipe.yaml"
# Fields that may change when a run is resumed: they say how it is watched and kept, not what it computes.
# Teacher and plan are bound by their hashes, wherever they lie now.
FREE_TO_CHANGE = {"save_steps", "save_total_limit", "logging_steps", "report_to", "eval_steps", "cache_dir"}
FREE_TO_CHANGE |= {"teacher", "plan"}
# These change what a step costs and, beyond rounding, not what it computes; the blocks of a step are compared.
FREE_TO_CHANGE |= {
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "fsdp",
}
FREE_TO_CHANGE |= {"torch_compile", "torch_compile_backend", "attn_implementation", "max_skipped_steps"}


class RunRecord(Artefact):
    """What a run is: written when it starts, and once more when it is finished."""

    kind: str = "run"
    command: str = Field(description="train or distill")
    settings: dict[str, JsonValue] = Field(description="the resolved recipe")
    inputs: dict[str, str] = Field(description="hashes of what the run reads: data, tokenizer, teacher, plan")
    finished: bool = False
    results: dict[str, JsonValue] = {}


class RunFolder:
    """An output folder for one run. Nothing is written before `begin`; of several processes, the first one writes.

    blocks_per_step: what one step learns from, which must be the same when resumed, with whatever processes.
    Raises InputError if the folder holds a finished run, an unfinished one that was not to be resumed or had other
    settings, or anything else.
    """

    def __init__(
        self,
        folder: str | Path,
        command: str,
        settings: dict[str, Any],
        resume: bool,
        blocks_per_step: int = 1,
    ):
        self.path = Path(folder)
        settings = {**settings, "blocks_per_step": blocks_per_step}
        record = self._check(resume, command, settings)
        self.record = record or RunRecord(command=command, settings=settings, inputs={})

    def _check(self, resume: bool, command: str, settings: dict[str, Any]) -> RunRecord | None:
        if not self.path.exists():
            if resume:
                print_status(f"{self.path}: nothing to resume; starting afresh")
            return None
        if not self.path.is_dir():
            raise InputError(f"{self.path}: is a file; name a folder")
        if not (self.path / RECORD).exists():
            # What a kill can leave before the record is there begins with a dot.
            if any(not path.name.startswith(".") for path in self.path.iterdir()):
                raise InputError(f"{self.path}: is not empty and holds no run; name another folder")
            return None
        record = RunRecord.load(self.path / RECORD)
        if record.finished:
            raise InputError(f"{self.path}: holds a finished run; nothing was changed; name another folder")
        if not resume:
            raise InputError(
                f"{self.path}: holds an unfinished run; continue it with --resume, or name another folder"
            )
        if record.command != command:
            raise InputError(f"{self.path}: holds a run of iiad {record.command}, not of iiad {command}")
        # With retain, how often it is looked at decides when the run ends.
        retain = (settings.get("distillation") or {}).get("retain")
        free = FREE_TO_CHANGE - {"eval_steps"} if retain else FREE_TO_CHANGE
        differences = list(_differences(record.settings, settings, free))
        if differences:
            raise InputError(f"{self.path}: cannot be resumed with another recipe: {'; '.join(differences)}")
        return record

    def begin(self, inputs: dict[str, str]) -> None:
        """Write down what the run reads, or, when resumed, require that it is still the same."""
        for name, found in inputs.items():
            before = self.record.inputs.get(name, found)
            if before != found:
                raise InputError(
                    f"{self.path}: cannot be resumed: {name} has changed since the run began "
                    f"(then {before[:12]}, now {found[:12]})"
                )
        self.record = self.record.model_copy(update={"inputs": {**self.record.inputs, **inputs}})
        PartialState().wait_for_everyone()  # every process has looked at the folder as it was
        from_first_process(self._write)

    def _write(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be made: {error.strerror}") from None
        self.record.save(self.path / RECORD)  # first: it is what makes the folder a run
        # What else is in the settings, teacher and plan for one, is no part of a recipe.
        sections = {name: value for name, value in self.record.settings.items() if isinstance(value, dict)}
        write_text(self.path / RECIPE, yaml.safe_dump(sections, sort_keys=False))

    def finish(self, model: PreTrainedModel, tokenizer: Any, card: str, results: dict[str, Any]) -> None:
        """Put the finished model into the folder, and only then call the run finished."""
        require_finite(model.state_dict(), self.path)
        from_first_process(lambda: self._finish(model, tokenizer, card, results))

    def _finish(self, model: PreTrainedModel, tokenizer: Any, card: str, results: dict[str, Any]) -> None:
        stage = self.path / ".final"
        shutil.rmtree(stage, ignore_errors=True)
        try:
            if model.generation_config is not None:
                model.generation_config.pad_token_id = tokenizer.pad_token_id
            model.save_pretrained(stage)
            tokenizer.save_pretrained(stage)
            (stage / "README.md").write_text(card, encoding="utf-8")
            # config.json last: without it a folder is no model to anybody.
            for file in sorted(stage.iterdir(), key=lambda file: file.name == "config.json"):
                os.replace(file, self.path / file.name)
            stage.rmdir()
        except (OSError, RuntimeError, SafetensorError) as error:  # each library's own for a full disk
            shutil.rmtree(stage, ignore_errors=True)
            raise InputError(
                f"{self.path}: the finished model cannot be written ({one_line(error)}); "
                "its checkpoints are whole: make room and continue with --resume"
            ) from error
        self.record = self.record.model_copy(update={"finished": True, "results": results})
        self.record.save(self.path / RECORD)


def _differences(before: dict[str, Any], now: dict[str, Any], free: set[str], prefix: str = "") -> Any:
    for name in sorted(before.keys() | now.keys()):
        if name in free:
            continue
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, free, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name} was {old!r}, now {new!r}"
