"""Nested fields that are checked whole: every problem on a line of its own, with suggestions for unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import Any, Self

from pydantic import ConfigDict, ValidationError, WrapValidator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from iiad.artefacts import Record, describe_problems
from iiad.errors import printable

__all__ = ["Conflicts", "Section", "described", "find_problems"]

Conflicts = Iterator[tuple[str, str]]
"""Fields that do not fit the fields beside them, each with what is expected of it."""


class Section(Record):
    """A part of a recipe: a frozen record that refuses values of another type, too."""

    model_config = ConfigDict(strict=True)

    def conflicts(self) -> Conflicts:
        """Yield each conflict between fields; called once all fields of the section are valid in themselves."""
        yield from ()

    @model_validator(mode="after")
    def _require_no_conflicts(self) -> Self:
        errors = [
            InitErrorDetails(type=_expected(what), loc=tuple(field.split(".")), input=attrgetter(field)(self))
            for field, what in self.conflicts()
        ]
        if errors:
            raise ValidationError.from_exception_data(type(self).__name__, errors)
        return self


def _expected(what: str) -> PydanticCustomError:
    """An error in pydantic's own phrase."""
    return PydanticCustomError("unexpected", "Input should be {what}", {"what": what})


def described(what: str) -> WrapValidator:
    """Report any error of the field as one that says what is expected."""

    def validate(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise _expected(what) from None

    return WrapValidator(validate)


def find_problems(kind: type[Section], fields: Mapping[Any, Any]) -> list[str]:
    """Return all problems of a recipe's fields, a line each; none exactly where `kind.model_validate(fields)` passes.

    Unknown names come first, with a suggestion; then, in the recipe as they suggest it, all fields that are wrong in
    themselves; and conflicts between fields, for every section whose fields are right.
    """
    corrected, problems = _correct_names(kind, kind, fields)
    try:
        kind.model_validate(corrected)
    except ValidationError as error:
        problems += describe_problems(error)
    return problems


def _correct_names(
    recipe: type[Section], kind: type[Section], fields: Mapping[Any, Any], above: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """Return a section's fields with unknown names replaced or left out, and a line for each of them."""
    known = {name: value for name, value in fields.items() if name in kind.model_fields}
    problems = []
    for name in [name for name in fields if name not in known]:
        elsewhere = [path for path in _paths(recipe) if path.rpartition(".")[2] == name]
        meant = elsewhere or difflib.get_close_matches(str(name)[:60], kind.model_fields, n=1)
        hint = (
            f"did you mean {' or '.join(meant)}?" if meant else f"there are: {', '.join(kind.model_fields)}"
        )
        problems.append(f"{above}{_cut(name)}: no such field ({hint})")
        if meant and not elsewhere:
            known.setdefault(meant[0], fields[name])
    for name, field in kind.model_fields.items():
        section = _section_of(kind, name)
        if section and field.is_required():
            known.setdefault(name, {})  # so that the fields that it needs are reported
        if section and isinstance(known.get(name), Mapping):
            known[name], inner = _correct_names(recipe, section, known[name], f"{above}{name}.")
            problems += inner
    return known, problems


def _cut(name: Any) -> str:
    """Return a name, or the beginning of a long one."""
    return printable(str(name)[:60]) + "..." * (len(str(name)) > 60)


def _paths(kind: type[Section], above: str = "") -> Iterator[str]:
    """Yield the dotted path of every section and field."""
    for name in kind.model_fields:
        yield above + name
        if section := _section_of(kind, name):
            yield from _paths(section, f"{above}{name}.")


def _section_of(kind: type[Section], name: str) -> type[Section] | None:
    annotation = kind.model_fields[name].annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None
