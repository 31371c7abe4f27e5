"""All problems of a recipe at once.

By itself pydantic does not check what lies between fields while one of them is wrong. Here, what is wrong is taken
out and noted as unknown, until all fields can be read; then each check that reads no unknown field is made.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from iiad.artefacts import describe_problems

from .section import FIELDS_ALONE, Section, restate, section_of

__all__ = ["find_problems"]

Path = tuple[str, ...]
Errors = list[Any]  # pydantic's ErrorDetails


def find_problems(kind: type[Section], fields: Mapping[Any, Any]) -> list[str]:
    """All that is wrong with the fields of a recipe, a line each: field, what is accepted, what was found.

    Empty exactly where `kind.model_validate(fields)` passes. What only follows from another problem is left out: a
    misspelled field is not also missing, and no check is made against a value that is itself refused.
    """
    reading = _Reading(kind, fields)
    problems = reading.problems + _conflicts(reading.section, reading.unknown)
    if not problems:
        try:
            kind.model_validate(fields)
        except ValidationError as error:  # nothing that is known of, but never pass what would not pass then
            problems = describe_problems(error)
    return list(dict.fromkeys(problems))


class _Reading:
    """A recipe as far as it can be read.

    section: the recipe, with some accepted value for what could not be read. unknown: the paths of these.
    problems: why, a line each.
    """

    def __init__(self, kind: type[Section], fields: Mapping[Any, Any]):
        self.kind = kind
        self.fields = _copy(kind, fields)
        self.unknown: set[Path] = set()
        self.problems: list[str] = []
        self.section = self._read()

    def _read(self) -> Section:
        while True:  # each round takes out all that it refuses; what it puts in is accepted
            try:
                return self.kind.model_validate(self.fields, context=FIELDS_ALONE)
            except ValidationError as error:
                found = error.errors(include_url=False)
            by_field: dict[Path, Errors] = {}
            for problem in found:
                by_field.setdefault(_field_path(self.kind, problem["loc"]), []).append(problem)
            # Misspelled fields first: what they were meant to be is then not missing.
            for path in sorted(by_field, key=lambda path: by_field[path][0]["type"] != "extra_forbidden"):
                self._take_out(path, by_field[path])

    def _take_out(self, path: Path, errors: Errors) -> None:
        *above, name = path
        kind, place = self.kind, self.fields
        for part in above:
            kind, place = section_of(kind.model_fields[part].annotation) or kind, place[part]
        if errors[0]["type"] == "missing" and name in place:
            return  # a misspelled one has taken its place
        meant = name if name in kind.model_fields else _closest(self.kind, kind, name)
        if not any(path[:end] in self.unknown for end in range(1, len(path) + 1)):
            hint = _hint(self.kind, kind, name)
            self.problems += [line + hint for line in _describe(path, kind.model_fields.get(name), errors)]
        value = place.pop(name, None)
        if meant is None or meant in place:
            return
        section = section_of(kind.model_fields[meant].annotation)
        if meant != name and section and isinstance(value, Mapping):
            place[meant] = _copy(section, value)  # what is in it can be read all the same
            return
        self.unknown.add((*above, meant))
        if kind.model_fields[meant].is_required():
            place[meant] = _stand_in(kind.model_fields[meant])


def _copy(kind: type[Section], fields: Mapping[Any, Any]) -> dict[str, Any]:
    """The fields, with dicts of their own for all sections, and names as strings: YAML has others too."""
    copied = {}
    for name, value in fields.items():
        field = kind.model_fields.get(str(name))
        section = section_of(field.annotation) if field else None
        copied[str(name)] = _copy(section, value) if section and isinstance(value, Mapping) else value
    return copied


def _stand_in(field: FieldInfo) -> Any:
    """A value that the field accepts: its example or, for a section, no fields at all."""
    if section_of(field.annotation):
        return {}
    assert field.examples, "a required field needs an example"
    return field.examples[0]


def _field_path(kind: type[Section], place: tuple[int | str, ...]) -> Path:
    """Where the field of a problem is, without what pydantic adds of the field's own inside."""
    path: list[str] = []
    section: type[Section] | None = kind
    for part in place:
        if section is None:
            break
        path.append(str(part))
        field = section.model_fields.get(str(part))
        section = section_of(field.annotation) if field else None
    return tuple(path)


def _conflicts(section: Section, unknown: set[Path], above: Path = ()) -> list[str]:
    """What is wrong between fields, in the sections inside first, as far as it can be told without the unknown."""
    below: list[str] = []
    for name in type(section).model_fields:
        path, value = (*above, name), getattr(section, name)
        if isinstance(value, Section) and path not in unknown:
            below += _conflicts(value, unknown, path)
    here = _without(section, unknown, above).conflicts()
    return below + [f"{'.'.join(above)}: {problem}" if above else problem for problem in here]


def _without(section: Section, unknown: set[Path], above: Path) -> Section:
    """The section without its unknown fields, and so all sections inside."""
    names = {path[-1] for path in unknown if path[:-1] == above}
    inner = {
        name: _without(value, unknown, (*above, name))
        for name in type(section).model_fields
        if name not in names and isinstance(value := getattr(section, name), Section)
    }
    return section.without(names).model_copy(update=inner)


def _describe(path: Path, field: FieldInfo | None, errors: Errors) -> list[str]:
    """The problems of one field, a line each. An alternative that it does not take is not a problem of its own."""
    rest = [error["loc"][len(path) :] for error in errors]
    kinds = [kind for kind in get_args(field.annotation) if kind is not type(None)] if field else []
    if field and get_origin(field.annotation) in (Union, UnionType) and len(kinds) > 1:
        deepest = max(map(len, rest))
        if deepest > 1:  # a list with something wrong in it: not a number, to be sure
            errors = [error for error in errors if len(error["loc"]) == len(path) + deepest]
            rest = [place[1:] for place in rest if len(place) == deepest]
        else:
            errors, rest = [{**errors[0], "msg": _alternatives(errors)}], [()]
    elif field and section_of(field.annotation) and errors[0]["type"] == "model_type":
        errors = [{**errors[0], "msg": "Must be a section with fields"}]
    told = [
        restate(
            "extra_forbidden" if error["type"] == "invalid_key" else error["type"],
            error["msg"],
            (*path, *place),
            error["input"],
        )
        for error, place in zip(errors, rest, strict=True)
    ]
    return describe_problems(ValidationError.from_exception_data("recipe", told))


def _alternatives(errors: Errors) -> str:
    accepted = [error["msg"].removeprefix("Input should be ").partition(", ")[0] for error in errors]
    return f"Input should be {' or '.join(accepted)}"


def _closest(recipe: type[Section], kind: type[Section], name: str) -> str | None:
    """The field of the section that a misspelled one was meant to be, unless it is right in another section."""
    if _elsewhere(recipe, name):
        return None
    return next(iter(difflib.get_close_matches(name, kind.model_fields, n=1)), None)


def _hint(recipe: type[Section], kind: type[Section], name: str) -> str:
    """What a field that there is not may have meant, and which fields a section cannot be without."""
    if name in kind.model_fields:
        section = section_of(kind.model_fields[name].annotation)
        needed = (
            [inner for inner, field in section.model_fields.items() if field.is_required()] if section else []
        )
        return f" (it needs {', '.join(needed)})" if needed else ""
    closest = _closest(recipe, kind, name)
    meant = [closest] if closest else _elsewhere(recipe, name)
    known = ", ".join(kind.model_fields)
    return f" (did you mean {' or '.join(meant)}?)" if meant else f" (there are: {known})"


def _elsewhere(kind: type[Section], name: str, above: Path = ()) -> list[str]:
    """The fields of a recipe that have this name, in whatever section, with their sections."""
    found = []
    for inner, field in kind.model_fields.items():
        if inner == name:
            found.append(".".join((*above, inner)))
        if section := section_of(field.annotation):
            found += _elsewhere(section, name, (*above, inner))
    return found
