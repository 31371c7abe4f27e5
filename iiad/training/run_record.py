"""run.json: the settings of a run, the hashes of its inputs and, once it is finished, its results. Needs no torch."""

from __future__ import annotations

from pydantic import Field

from iiad.artefacts import Artefact, Fields

__all__ = ["RECORD", "RunRecord"]

RECORD = "run.json"


class RunRecord(Artefact):
    """Record of a run: written when it starts, and once more when it is finished."""

    kind: str = "run"
    command: str = Field(description="train or distill")
    settings: Fields = Field(description="the resolved recipe")
    inputs: dict[str, str] = Field(description="hashes of what the run reads: data, tokenizer, teacher, plan")
    finished: bool = False
    results: Fields = {}

    @property
    def identity(self) -> str:
        """Hash of what the run's checkpoints follow from, by which they know it."""
        return self.model_copy(update={"finished": False, "results": {}}).fingerprint
