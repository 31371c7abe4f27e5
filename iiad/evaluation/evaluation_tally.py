"""Block evaluations that tokens took where they stop by themselves: by layer, and by class of token. Ours.

Legend: B windows of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from iiad.data import Window, stack_inputs
from iiad.models import EvaluationCounts

__all__ = ["TOKEN_CLASSES", "EvaluationTally", "token_classes"]

TOKEN_CLASSES = ("word", "number", "sign", "space", "special")
"""By a token's text: it has letters; digits; other signs; nothing but space; or it is the tokenizer's own."""


class EvaluationTally:
    """Sums over the tokens that are asked for, and in an encoder over those of the sources.

    classes: of each token id, (V,), its number in TOKEN_CLASSES; None: a token's class is its target's group.
    grouped_by: what groups count.
    """

    def __init__(self, model: Any, classes: Tensor | None, grouped_by: str | None = None):
        self.classes, self.grouped_by = classes, grouped_by
        self.places = [len(stack.layers) for stack in model.base_model.stacks]
        self.sums, self.tokens = Counter[int](), Counter[int]()
        self.class_sums, self.class_tokens = Counter[int](), Counter[int]()

    def watch(self, windows: Iterable[Window], counts: EvaluationCounts) -> Iterator[Window]:
        """Yield the windows, and add what the model took for each, once it has run it. counts: of that model."""
        for window in windows:
            yield window
            if all(counts.calls):
                self._add(window, [calls[-1] for calls in counts.calls])
            for calls in counts.calls:
                calls.clear()

    def _add(self, window: Window, taken: list[Tensor]) -> None:
        inputs, asked = stack_inputs(window.inputs), window.targets >= 0
        masks = [
            torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool() for ids, mask in inputs
        ]
        masks[-1] = asked
        owners = [stack for stack, size in enumerate(self.places) for _ in range(size)]
        for layer, (found, stack) in enumerate(zip(taken, owners, strict=True)):
            self.sums[layer] += int(found[masks[stack]].sum())
            self.tokens[layer] += int(masks[stack].sum())
        last = [
            found[asked].long() for found, stack in zip(taken, owners, strict=True) if stack == owners[-1]
        ]
        whole = torch.stack(last).sum(0)
        if self.classes is not None:
            kinds = self.classes[inputs[-1][0][asked]]
        elif window.groups is not None:
            kinds = window.groups[asked]
        else:
            return
        for kind in kinds.unique().tolist():
            self.class_sums[kind] += int(whole[kinds == kind].sum())
            self.class_tokens[kind] += int((kinds == kind).sum())

    def result(self) -> dict[str, Any]:
        """Return the fields of an evaluation's entry."""
        by_layer = [self.sums[layer] / max(1, self.tokens[layer]) for layer in range(sum(self.places))]
        means = {kind: self.class_sums[kind] / number for kind, number in sorted(self.class_tokens.items())}
        if self.classes is not None:
            by_class = {TOKEN_CLASSES[kind]: mean for kind, mean in means.items()}
        else:
            by_class = {f"{self.grouped_by} {group}": mean for group, mean in means.items() if group}
        parts = {"evaluations_by_layer": by_layer, "evaluations_by_class": by_class}
        return {"mean_evaluations": sum(by_layer), **parts}


def token_classes(tokenizer: Any, vocab_size: int) -> Tensor:
    """Return the class of each token id, its number in TOKEN_CLASSES, (V,); ids that it does not know are special."""
    special = set(tokenizer.all_special_ids)
    found = torch.full((vocab_size,), TOKEN_CLASSES.index("special"))
    for token in range(min(vocab_size, len(tokenizer))):
        if token not in special:
            found[token] = TOKEN_CLASSES.index(_class_of(tokenizer.decode([token])))
    return found


def _class_of(text: str) -> str:
    if not text.strip():
        return "space"
    if any(map(str.isalpha, text)):
        return "word"
    return "number" if any(map(str.isdigit, text)) else "sign"
