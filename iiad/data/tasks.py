"""Tasks that need depth: `states`, `expressions`, `hops`, generated rows whose uniform answers are asked for."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import permutations
from typing import Any, ClassVar

from iiad.errors import InputError

from .task_base import END, Row, Task

__all__ = ["TASKS", "Expressions", "Hops", "States", "parse_task"]


@dataclass(frozen=True)
class States(Task):
    """Running product in a group, asked for at every position: after g_1 ... g_t, g_1 * ... * g_t.

    Depth: log2(length) layers by products of neighbours. A fixed number serves every length in s3 and z2 to z60,
    which are solvable (Liu et al. 2023), and none does in s5 (Barrington 1989; Merrill et al. 2024).

    steps: "all" draws every g_t from the whole group. "swaps", of s3 and s5, draws the identity or a swap of
    neighbours: a table of 120 x 5 products to learn in s5, not 120 x 120. Its early products are not uniform.
    """

    group: str = "s3"
    length: int = 24
    steps: str = "all"

    name: ClassVar[str] = "states"
    grouped_by: ClassVar[str] = "length"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("length", 1, 4096)
        known = ["s3", "s5", *(f"z{n}" for n in range(2, 61))]
        if self.group not in known:
            raise InputError(f"{self.name}: group: expected s3, s5, or z2 to z60, got {self.group!r}")
        known = ["all"] if self.group[0] == "z" else ["all", "swaps"]
        if self.steps not in known:
            raise InputError(
                f"{self.name}: steps: expected {' or '.join(known)} in {self.group}, got {self.steps!r}"
            )

    @property
    def vocabulary(self) -> list[str]:
        """The elements: of s3 and s5 as the images of 0, 1, ...; of z_n as numbers."""
        return list(_elements(self.group))

    @property
    def longest(self) -> int:
        """The elements and the end."""
        return self.length + 1

    def multiply(self, left: str, right: str) -> str:
        """Return left * right: of permutations, right first and then left; of numbers, their sum modulo n."""
        if self.group[0] == "z":
            return str((int(left) + int(right)) % int(self.group[1:]))
        return "".join(left[int(image)] for image in right)

    def draw(self, rng: random.Random) -> Row:
        """Draw the elements, each uniformly from all that a step may be."""
        steps = _elements(self.group) if self.steps == "all" else _swaps(int(self.group[1:]))
        elements = rng.choices(steps, k=self.length)
        products = [elements[0]]
        for element in elements[1:]:
            products.append(self.multiply(products[-1], element))
        return Row([*elements, END], [None, *products], list(range(self.length + 1)))


@dataclass(frozen=True)
class Expressions(Task):
    """Prefix trees of +, - and x modulo a prime, with 1 to `operations` operations; the value is asked at the end.

    Depth: that of the tree, up to `operations`. The task is Mano (Allen-Zhu 2025), on which Ouro (Zhu et al. 2025)
    compares loops. Values are drawn from the root down, uniform among the pairs that give the value above (ours):
    so is the answer.
    """

    operations: int = 8
    modulus: int = 23

    name: ClassVar[str] = "expressions"
    grouped_by: ClassVar[str] = "operations"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("operations", 1, 256)
        self.require("modulus", 2, 997)
        if any(self.modulus % divisor == 0 for divisor in range(2, int(self.modulus**0.5) + 1)):
            raise InputError(f"{self.name}: modulus: expected a prime number, got {self.modulus}")

    @property
    def vocabulary(self) -> list[str]:
        """Numbers and signs."""
        return [*map(str, range(self.modulus)), "+", "-", "x", "="]

    @property
    def longest(self) -> int:
        """Signs, one number more, `=` and the answer."""
        return 2 * self.operations + 3

    def draw(self, rng: random.Random) -> Row:
        """Draw the number of operations, the answer and a tree that has both."""
        count, value = rng.randint(1, self.operations), rng.randrange(self.modulus)
        return Row.of_answer([*self._tree(rng, count, value), "=", str(value)], count)

    def _tree(self, rng: random.Random, count: int, value: int) -> list[str]:
        if count == 0:
            return [str(value)]
        sign, of_left, m = rng.choice("+-x"), rng.randrange(count), self.modulus
        left = rng.randrange(m)
        if sign == "+":
            right = (value - left) % m
        elif sign == "-":
            right = (left - value) % m
        elif value:
            left = rng.randrange(1, m)
            right = value * pow(left, -1, m) % m
        else:  # the 2 m - 1 pairs with a zero
            pair = rng.randrange(2 * m - 1)
            left, right = (0, pair) if pair < m else (pair - m + 1, 0)
        return [sign, *self._tree(rng, of_left, left), *self._tree(rng, count - 1 - of_left, right)]


@dataclass(frozen=True)
class Hops(Task):
    """Follow 1 to `hops` edges of a cycle of `nodes` nodes, whose edges stand in random order; the end is asked for.

    Depth: log2(hops) layers by doubling, else a layer a hop (Sanford et al. 2024, k-hop induction).
    questions: of a row, all different, each a number of hops, a start and its end; more give more to learn a token.
    """

    nodes: int = 16
    hops: int = 8
    questions: int = 1

    name: ClassVar[str] = "hops"
    grouped_by: ClassVar[str] = "hops"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("nodes", 2, 1024)
        self.require("hops", 1, self.nodes - 1)
        self.require("questions", 1, self.nodes * self.hops)

    @property
    def vocabulary(self) -> list[str]:
        """Nodes and numbers of hops."""
        return [f"n{node}" for node in range(self.nodes)] + [f"h{hops}" for hops in range(1, self.hops + 1)]

    @property
    def longest(self) -> int:
        """Two nodes an edge; hops, start and answer a question."""
        return 2 * self.nodes + 3 * self.questions

    def draw(self, rng: random.Random) -> Row:
        """Draw the cycle, and starts and numbers of hops."""
        cycle = [f"n{node}" for node in rng.sample(range(self.nodes), self.nodes)]
        edges = list(zip(cycle, [*cycle[1:], cycle[0]], strict=True))
        rng.shuffle(edges)
        words = [node for edge in edges for node in edge]
        labels: list[str | None] = [None] * len(words)
        groups = [0] * len(words)
        for question in rng.sample(range(self.nodes * self.hops), self.questions):
            start, more = divmod(question, self.hops)
            answer = cycle[(start + more + 1) % self.nodes]
            words += [f"h{more + 1}", cycle[start], answer]
            labels += [None, None, answer]
            groups += [0, 0, more + 1]
        return Row(words, labels, groups)


TASKS: dict[str, Callable[..., Task]] = {kind.name: kind for kind in (States, Expressions, Hops)}
"""The tasks by name."""


def parse_task(text: str) -> Task | None:
    """Return the task that a data source `NAME` or `NAME:SETTING=VALUE,...` names, None for any other text.

    Raises InputError for an unknown setting, one given twice, and a value that is not accepted.
    """
    name, _, rest = text.partition(":")
    if name not in TASKS:
        return None
    kind: Any = TASKS[name]
    known = {field.name: field.default for field in fields(kind)}
    settings: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or key not in known or key in settings:
            expected = f"some of {', '.join(f'{key}=VALUE' for key in sorted(known))}, each once"
            raise InputError(f"{name}: expected {expected}, got {part!r}")
        settings[key] = value if isinstance(known[key], str) else _number(f"{name}: {key}", value)
    task: Task = kind(**settings)
    return task


@lru_cache
def _elements(group: str) -> tuple[str, ...]:
    size = int(group[1:])
    if group[0] == "z":
        return tuple(map(str, range(size)))
    return tuple("".join(map(str, images)) for images in permutations(range(size)))


@lru_cache
def _swaps(size: int) -> tuple[str, ...]:
    """Return the identity and the swaps of neighbours, as the images of 0, 1, ..."""
    same = "".join(map(str, range(size)))
    return same, *(same[:i] + same[i + 1] + same[i] + same[i + 2 :] for i in range(size - 1))


def _number(field: str, value: str) -> int:
    if not (value.isascii() and value.isdigit()) or len(value) > 10:
        raise InputError(f"{field}: expected a whole number, got {value!r}")
    return int(value)
