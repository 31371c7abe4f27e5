"""What all sections of a recipe share: frozen, strict about names, checked field by field and between fields.

A field's own bounds stand in its declaration. What several fields must fulfil together is a method with `@check`, one
for each thing that can be wrong: so all of it is found at once, also where other fields are wrong (validation.py).
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

__all__ = ["FIELDS_ALONE", "Section", "UnknownValueError", "check", "restate", "section_of"]

FIELDS_ALONE = object()
"""As the context of `model_validate`: check each field, and nothing between fields."""

Check = TypeVar("Check", bound=Callable[[Any], str | None])


class UnknownValueError(AttributeError):
    """A check read a field that could not be read from the recipe: it cannot be decided."""


def check(method: Check) -> Check:
    """Make a method of a section a check between its fields: it returns what is wrong, or None."""
    vars(method)["is_check"] = True
    return method


class Section(BaseModel):
    """A frozen part of a recipe that refuses unknown fields, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def conflicts(self) -> list[str]:
        """What is wrong between the fields, as far as these are known."""
        named = {name: value for base in reversed(type(self).__mro__) for name, value in vars(base).items()}
        found = []
        for value in named.values():
            if isinstance(value, FunctionType) and "is_check" in vars(value):
                try:
                    found.append(value(self))
                except UnknownValueError:
                    continue
        return [problem for problem in found if problem]

    @model_validator(mode="after")
    def _has_no_conflicts(self, info: ValidationInfo) -> Self:
        conflicts = [] if info.context is FIELDS_ALONE else self.conflicts()
        if conflicts:
            raise ValidationError.from_exception_data(
                type(self).__name__, [restate("value_error", problem) for problem in conflicts]
            )
        return self

    def without(self, names: set[str]) -> Self:
        """A copy in which those fields are unknown: a check that reads one is not decided."""
        copy = self.model_copy()
        for name in names:
            vars(copy).pop(name)
        return copy

    if not TYPE_CHECKING:  # where mypy looks, an attribute that is not there is a mistake

        def __getattr__(self, name: str) -> Any:
            if name in type(self).model_fields:
                raise UnknownValueError(name)
            return super().__getattr__(name)


def section_of(annotation: Any) -> type[Section] | None:
    """The section that a field of that annotation holds, if it holds one."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def restate(
    kind: str, message: str, place: tuple[str | int, ...] = (), found: Any = None
) -> InitErrorDetails:
    """One problem of a ValidationError, in our own words. kind: pydantic's type of error."""
    # The message goes in by name: braces in it would be taken for names of their own.
    error = PydanticCustomError(kind, "{message}", {"message": message})
    return InitErrorDetails(type=error, loc=place, input=found)
