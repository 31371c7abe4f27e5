"""Base of generated tasks: settings, a vocabulary, and rows that follow from their number.

Row i of a split follows from the task, its seed and i alone, so a longer data set begins with a shorter one. A row is
in validation if the hash of its question says so: no question is in both splits.
"""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import ClassVar, NamedTuple

from iiad.errors import InputError

__all__ = ["END", "PAD", "Row", "Task"]

VALIDATION_SHARE = 16  # one question of so many
MOST_DRAWS = 10_000
PAD = "<pad>"
END = "<end>"


class Row(NamedTuple):
    """One example, in words of the task's vocabulary.

    labels: aligned with the words, as in transformers: what stands there is asked for after the words before it; None
        where nothing is asked. groups: of each label its length, operations or hops; 0 without one.
    """

    words: list[str]
    labels: list[str | None]
    groups: list[int]

    @classmethod
    def of_answer(cls, words: list[str], group: int) -> Row:
        """Return the row that asks for its last word alone."""
        before = len(words) - 1
        return cls(words, [None] * before + words[-1:], [0] * before + [group])


@dataclass(frozen=True)
class Task(ABC):
    """A generated data set; its fields are the settings that stand behind the colon, `states:group=s5,length=32`.

    Raises InputError for settings out of their range.
    """

    seed: int = 0
    rows: int | None = None

    name: ClassVar[str]
    grouped_by: ClassVar[str]
    """Unit of `Row.groups`."""

    def __post_init__(self) -> None:
        self.require("seed", 0, 2**31)
        if self.rows is not None:
            self.require("rows", 1, 2**31)

    @property
    @abstractmethod
    def vocabulary(self) -> list[str]:
        """The words of all rows, in a fixed order."""

    @property
    def words(self) -> list[str]:
        """The vocabulary, with padding and the end, which come first."""
        return list(dict.fromkeys([PAD, END, *self.vocabulary]))

    @property
    @abstractmethod
    def longest(self) -> int:
        """Words of the longest row."""

    @abstractmethod
    def draw(self, rng: random.Random) -> Row:
        """Draw one row of either split."""

    def generate(self, split: str, first: int = 0) -> Iterator[Row]:
        """Yield the rows of a split, "train" or "validation", without end, from number `first` on.

        Raises InputError for a task with so few questions that none falls in the split.
        """
        number = first
        while True:
            rng = random.Random(f"{self} {split} {number}")
            for _ in range(MOST_DRAWS):
                row = self.draw(rng)
                if _in_validation(row) == (split == "validation"):
                    break
            else:
                raise InputError(f"{self}: expected a task with more questions, got none for {split}")
            yield row
            number += 1

    def require(self, field: str, least: int, most: int) -> None:
        """Raise InputError for a setting that is not in [least, most]."""
        got = getattr(self, field)
        if not least <= got <= most:
            raise InputError(f"{self.name}: {field}: expected {least} to {most}, got {got}")

    def __str__(self) -> str:
        """Return the whole specification but `rows`, which do not change what a row is."""
        settings = (
            f"{field.name}={getattr(self, field.name)}" for field in fields(self) if field.name != "rows"
        )
        return f"{self.name}:{','.join(sorted(settings))}"


def _in_validation(row: Row) -> bool:
    """Tell by a hash of the question, the words without a final answer."""
    question = row.words[:-1]
    return hashlib.sha256(" ".join(question).encode()).digest()[0] % VALIDATION_SHARE == 0
