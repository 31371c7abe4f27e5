"""Artefacts: JSON files that stages hand to each other, with their kind, their contents and what they are made from.

Needs neither torch nor transformers. All definitions here are ours.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Annotated, Any, Generic, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
)

from .errors import InputError, require_printable, shorten
from .files import append_line, parse_json, read_json, read_json_text, write_text

__all__ = [
    "MOST_ITERATIONS",
    "Amount",
    "Artefact",
    "Coefficient",
    "Coefficients",
    "Count",
    "Fields",
    "Iterations",
    "Journal",
    "Number",
    "Record",
    "Share",
    "Size",
    "Tolerances",
    "check_fields",
    "describe_problems",
    "list_differences",
    "without_empty",
]


Count = Annotated[int, Field(ge=0, lt=2**63)]
Size = Annotated[int, Field(ge=1, lt=2**63)]
MOST_ITERATIONS = 1000
Iterations = Annotated[int, Field(ge=0, le=MOST_ITERATIONS)]
Number = Annotated[float, Field(ge=-1e100, le=1e100)]
"""A number whose squares and sums are finite, too."""
Amount = Annotated[float, Field(ge=0, le=1e100)]
Coefficient = Annotated[float, Field(gt=-1000, lt=1000)]
"""Of an extrapolation, see `iiad.models.IIETConfig`."""
Coefficients = list[Coefficient]
"""b_1, b_2, ... of one layer at its stop; none: not extrapolated."""
Share = Annotated[float, Field(ge=0, le=1)]
Tolerances = list[Annotated[float, Field(ge=0, lt=1e6)] | None]
"""Of each layer: how little a token's state moves where it stops by itself; None: it runs all iterations."""


def _require_finite(fields: dict[str, JsonValue]) -> dict[str, JsonValue]:
    json.dumps(fields, allow_nan=False)  # raises ValueError
    return fields


Fields = Annotated[dict[str, JsonValue], AfterValidator(_require_finite)]
"""Any fields, without NaN and infinity."""


class Record(BaseModel):
    """A frozen record: unknown fields, NaN and infinity are refused; in a file, values of another type, too."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def without_empty(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    """Drop fields that say nothing, so that hashes of older artefacts, which lack them, stand."""
    return {name: value for name, value in fields.items() if value or name not in names}


class Artefact(Record):
    """A stage's output as a JSON file. Subclasses set `kind` and add their fields."""

    kind: str
    format_version: int = 1

    @property
    def fingerprint(self) -> str:
        """Hash to which later artefacts are bound: sha256 of the file that `save` writes."""
        return hashlib.sha256(self._text().encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the file whole or not at all. Raises InputError where it cannot be written."""
        write_text(path, self._text())

    def _text(self) -> str:
        return self.model_dump_json(indent=1) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read and check a file. Raises InputError in one line: no file, no JSON, another kind, a wrong field."""
        fields = read_json(path)
        for name in ("kind", "format_version"):
            wanted, found = cls.model_fields[name].default, fields.get(name)
            if type(found) is not type(wanted) or found != wanted:
                raise InputError(f"{path}: {name}: expected {wanted!r}, got {shorten(found)}")
        return check_fields(cls, fields, path)


T = TypeVar("T")
# Escapes of characters that may not print: cheap to look for, so that few files are looked through.
_SUSPECT = re.compile(r"\\u(00[01789]|202|d[89a-f])|\\[bf]|\x7f")


def check_fields(kind: type[T], fields: Any, where: object) -> T:
    """Make a record, or another type, of parsed JSON. Raises InputError, after `where`, for the first wrong field."""
    try:
        text = json.dumps(fields)
        if _SUSPECT.search(text):
            require_printable(fields, where)
        # As JSON, in which a list is a tuple and a name may stand for a number, but true is no 1.
        return TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        raise InputError(f"{where}: {describe_problems(error)[0]}") from None
    except RecursionError:
        raise InputError(f"{where}: is nested too deeply") from None


def describe_problems(error: ValidationError) -> list[str]:
    """Return each problem of a validation as one line, `FIELD: expected WHAT, got WHAT`."""
    lines = []
    for problem in error.errors(include_url=False):
        field = ".".join(str(part) for part in problem["loc"]) or "the whole"
        if problem["type"] == "extra_forbidden":
            lines.append(f"{field}: no such field")
        elif problem["type"] == "missing":
            lines.append(f"{field}: is missing")
        elif problem["type"] == "value_error":
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{field}: {message}" if problem["loc"] else message)
        elif problem["type"] == "model_type":
            lines.append(f"{field}: expected fields, got {shorten(problem['input'])}")
        elif problem["type"] == "json_invalid":  # by the second reader alone
            lines.append("is nested too deeply")
        else:
            what = re.sub("^[A-Z][a-z]+ should (be|have) | after validation, not .*", "", problem["msg"])
            lines.append(f"{field}: expected {what}, got {shorten(problem['input'])}")
    return lines


def list_differences(
    before: Mapping[str, Any], now: Mapping[str, Any], free: Set[str] = frozenset(), above: str = ""
) -> Iterator[str]:
    """Yield each field that differs, as `FIELD was WHAT, now WHAT`; fields named in `free`, at any depth, may."""
    for name in sorted((before.keys() | now.keys()) - free):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from list_differences(old, new, free, f"{above}{name}.")
        elif old != new:
            yield f"{above}{name} was {shorten(old)}, now {shorten(new)}"


RecordT = TypeVar("RecordT", bound=BaseModel)


class Journal(Generic[RecordT]):
    """Finished records of a run, each on disk before the next begins, so that a killed run loses one at most.

    The first line is the heading: what the records belong to. A line that was cut off, which only the last one can
    be, is dropped.
    """

    def __init__(self, path: Path, heading: dict[str, Any], record_type: type[RecordT]):
        self.path = path
        self.heading: dict[str, Any] = json.loads(json.dumps(heading))
        self.record_type = record_type

    def read(self) -> list[RecordT]:
        """Return the records on disk, none where there is no journal.

        Raises InputError where the journal belongs to something else, naming the fields that differ, and for a whole
        line that is no record.
        """
        if not self.path.exists() or not self.path.stat().st_size:
            return []
        first, *lines = read_json_text(self.path, errors="replace").split("\n")
        try:
            found = parse_json(first, self.path)  # written whole or not at all: a kill leaves no part of it
        except InputError:
            found = None
        if not isinstance(found, dict):
            raise InputError(f"{self.path}: cannot be resumed: expected a journal of iiad, got another file")
        differences = list(list_differences(found, self.heading))
        if differences:
            raise InputError(f"{self.path}: cannot be resumed: {'; '.join(differences)}")
        # The last line is empty, or was cut off.
        places = [f"{self.path}: line {number}" for number in range(2, len(lines) + 1)]
        return [
            check_fields(self.record_type, parse_json(line, place), place)
            for line, place in zip(lines, places, strict=False)
        ]

    def start(self, records: Sequence[RecordT] = ()) -> None:
        """Write the heading and these records, in place of what is there."""
        lines = [json.dumps(self.heading), *(record.model_dump_json() for record in records)]
        write_text(self.path, "".join(f"{line}\n" for line in lines))

    def append(self, record: RecordT) -> None:
        """Put a finished record on disk. Raises InputError where that fails; those before it stay."""
        advice = "; the work before it is saved: make room and go on with --resume"
        append_line(self.path, record.model_dump_json(), advice)

    def remove(self) -> None:
        """Delete the journal: its run is finished."""
        self.path.unlink(missing_ok=True)
