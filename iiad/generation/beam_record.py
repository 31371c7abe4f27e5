"""beams.json: the teacher, sources and settings of targets made by beams. Needs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

import iiad
from iiad.artefacts import Artefact, Count, Number, Size
from iiad.identities import DataIdentity, ModelIdentity

__all__ = ["BEAMS", "BeamRecord"]

BEAMS = "beams.json"


class BeamRecord(Artefact):
    """Teacher, sources and settings of targets that were made by beams, and the hash of their file."""

    kind: Literal["beams"] = "beams"
    format_version: Literal[1] = 1
    iiad_version: str = iiad.__version__
    teacher: ModelIdentity = Field(description="under the plan that it ran")
    tokenizer_fingerprint: str
    data: DataIdentity = Field(description="the pairs whose sources were read; num_tokens: of these sources")
    dtype: Literal["float32", "bfloat16"]
    num_beams: Size
    length_penalty: Number | None = Field(description="null for one beam")
    max_new_tokens: Size
    num_pairs: Size = Field(description="rows of pairs.jsonl")
    num_left_out: Count = Field(description="pairs whose source is too long")
    num_empty: Count = Field(description="pairs left out because the teacher made no text")
    num_unfinished: Count = Field(description="targets without an end: max_new_tokens was too few")
    sha256: str = Field(default="", description="of pairs.jsonl")
