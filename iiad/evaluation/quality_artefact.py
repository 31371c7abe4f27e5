"""evaluation.json: quality and cost of models on a text and on tasks. Needs no torch."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from pydantic import Field

from iiad.artefacts import Amount, Artefact, Count, Number, Record, Share, Size
from iiad.errors import InputError
from iiad.identities import DataIdentity, ModelIdentity

__all__ = [
    "Evaluation",
    "EvaluationResult",
    "EvaluationSettings",
    "TaskMetric",
    "TaskResult",
    "TextMetric",
    "TextScore",
    "TextSettings",
    "bits_per_byte",
    "perplexity",
]


class TextSettings(Record):
    """Settings of texts that were generated from sources and scored against targets."""

    num_texts: Size
    num_beams: Size
    length_penalty: Number | None = Field(description="beams are compared by log likelihood / length ** this")
    max_new_tokens: Size
    signatures: dict[str, str] = Field(
        description="of each metric: all that decides its figures, and versions, resamples and seed"
    )


class EvaluationSettings(Record):
    """Settings of an evaluation, beside models and text."""

    block_size: Size | None = Field(
        description="most tokens of context that a prediction had; None without text"
    )
    batch_size: Size = Field(
        description="windows, requests or texts at a time; the results do not depend on it"
    )
    max_tokens: Size | None = Field(ge=2, description="tokens used, from the start of the text; None: all")
    dtype: Literal["float32", "bfloat16"] = Field(
        description="precision of the blocks; bfloat16 is autocast, with head and loss in the weights' precision"
    )
    device: str
    harness: str | None = Field(
        default=None, description="version of lm-evaluation-harness; None without tasks"
    )
    num_fewshot: Count | None = Field(
        default=None, description="examples before a question; None: each task's own"
    )
    limit: Amount | None = Field(
        default=None, description="documents of each task, a share below 1; None: all"
    )
    texts: TextSettings | None = Field(default=None, description="of texts generated from pairs' sources")


class TaskMetric(Record):
    """A figure of a task, as lm-evaluation-harness gives it."""

    value: Number | None = Field(default=None, description="None where it is not finite")
    standard_error: Amount | None = Field(default=None, description="None where the harness has none")
    higher_is_better: bool | None = None


class TaskResult(Record):
    """A task, or a group of tasks, of lm-evaluation-harness."""

    version: str = Field(description="of the task")
    num_fewshot: Count | None = Field(default=None, description="examples before a question")
    num_documents: Count | None = Field(default=None, description="documents that were scored")
    metrics: dict[str, TaskMetric] = Field(
        description="by the harness's name, with the filter if there is one"
    )


class TextMetric(Record):
    """A score of generated texts, 0 to 100."""

    value: Amount
    low: Amount = Field(description="of the 95 % interval by bootstrap")
    high: Amount
    p_value: Share | None = Field(
        description="paired, two-sided approximate randomization test against the first model; None for that model"
    )


class EvaluationResult(Record):
    """One model under one plan. The comparisons are with the first model of the evaluation."""

    label: str = Field(description="short name, unique in the evaluation")
    model: ModelIdentity = Field(
        description="the model and the plan it ran; cache bytes in the settings' dtype"
    )
    quantization: Literal["int8", "int4"] | None = Field(
        default=None, description="of the weights of its blocks"
    )
    data: str | None = Field(
        default=None,
        description="fingerprint of the evaluation's data that it read; None, as below, without text",
    )
    tokens: Size | None = Field(
        default=None, description="predicted tokens: all that were used but the first, or all asked for"
    )
    nll: Number | None = Field(default=None, description="mean negative log likelihood of a token, in nats")
    perplexity: Amount | None = Field(default=None, description="exp(nll); depends on the tokenizer")
    bits_per_byte: Number | None = Field(
        default=None,
        description="nll / ln 2 times the text's tokens per UTF-8 byte; compares models of different tokenizers; "
        "None for labelled rows",
    )
    accuracy: Share | None = Field(default=None, description="share of tokens that the model ranked first")
    accuracy_by_group: dict[str, Share] = Field(
        default={}, description="of generated tasks: accuracy by length, operations or hops"
    )
    tasks: dict[str, TaskResult] = Field(default={}, description="scores of the harness's tasks, by name")
    text_metrics: dict[str, TextMetric] = Field(
        default={}, description="scores of its generated texts: bleu, chrf, rouge1, rouge2, rougeL"
    )
    evaluations_per_token: Count = Field(
        description="block evaluations, sum over t of (start evaluations + r_t)"
    )
    mean_evaluations: Amount | None = Field(
        default=None,
        description="measured on the text, mean of a token asked for; None where all run all iterations",
    )
    evaluations_by_layer: list[Amount] = Field(default=[], description="likewise: each layer's, in their sum")
    evaluations_by_class: dict[str, Amount] = Field(
        default={},
        description="likewise, of the last stack's layers together: by the token that is read, a word, number, sign, "
        "space or special one, or by the group of the row",
    )
    cache_bytes_per_token: Count = Field(description="keys and values of all evaluations, bytes per token")
    overhead_cut: Number | None = Field(
        description="1 - sum r / sum r of the first; None where the first has no iterations or the two differ in "
        "more than their iterations"
    )
    compute_cut: Number | None = Field(
        description="1 - evaluations, measured where they are, / those of the first; None where the blocks differ in "
        "shape"
    )
    retained: Amount | None = Field(
        description="accuracy / accuracy of the first; None where the tokenizers differ or the first has none"
    )

    @property
    def evaluations(self) -> float:
        """Evaluations of a token: measured, else those of the plan."""
        return self.evaluations_per_token if self.mean_evaluations is None else self.mean_evaluations

    @property
    def on_text(self) -> TextScore:
        """Loss and accuracy on the text. Raises InputError for a model that read none."""
        if self.nll is None or self.accuracy is None:
            raise InputError(f"evaluation of {self.label}: expected one on a text, got one on tasks alone")
        return TextScore(self.nll, self.accuracy)


class TextScore(NamedTuple):
    """Loss in nats and accuracy of a token."""

    nll: float
    accuracy: float


class Evaluation(Artefact):
    """Results of one or more models on one text, or tasks, the first of which the others are compared with."""

    kind: Literal["evaluation"] = "evaluation"
    settings: EvaluationSettings
    data: list[DataIdentity] = Field(description="the text as tokens, one entry for each tokenizer")
    results: list[EvaluationResult] = Field(min_length=1, description="one per model, in the order given")


def perplexity(nll: float) -> float:
    """exp(nll), at most 1e100, the most that artefacts hold: a broken model may exceed it."""
    return min(math.exp(min(nll, 709.0)), 1e100)


def bits_per_byte(nll: float, tokens_per_byte: float | None) -> float | None:
    """nll / ln 2 * tokens per byte; None without bytes.

    nll: nats per token. tokens_per_byte: of the whole text, so that of a part of it the bytes are prorated.
    """
    return None if tokens_per_byte is None else nll / math.log(2) * tokens_per_byte
