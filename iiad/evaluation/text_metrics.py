"""BLEU, chrF and ROUGE of generated texts (the extra `eval`), with intervals and tests against the first model.

BLEU and chrF are sacrebleu's, ROUGE is rouge-score's. Importing this loads neither, nor torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from iiad.errors import InputError, one_line

from .quality_artefact import TextMetric

__all__ = ["TEXT_METRICS", "TextMetrics", "require_metrics", "require_several", "score_texts"]

TEXT_METRICS = {"bleu": "sacrebleu", "chrf": "sacrebleu", "rouge": "rouge_score"}
"""Metrics by name, and the module that computes each."""

_ROUGE = ("rouge1", "rouge2", "rougeL")
_RESAMPLES = 1000  # of the bootstrap, for intervals
_TRIALS = 2000  # of the test
_SEED = 12345  # sacrebleu's own


@dataclass(frozen=True)
class TextMetrics:
    """Scores of several models' texts.

    signatures: by metric: the settings and versions that decide its figures.
    by_model: for each model, in the order given, its scores by metric: bleu, chrf, rouge1, rouge2, rougeL.
    """

    signatures: dict[str, str]
    by_model: list[dict[str, TextMetric]]


def require_metrics(names: Sequence[str]) -> list[str]:
    """Return the names of metrics, each once. Raises InputError: another name, or its package is not installed."""
    for name in names:
        if name not in TEXT_METRICS:
            raise InputError(f"metrics: expected {', '.join(TEXT_METRICS)}, got {name}")
        try:
            import_module(TEXT_METRICS[name])
        except ImportError as error:
            package = TEXT_METRICS[name].replace("_", "-")
            raise InputError(
                f"metrics: expected {package} for {name} (pip install 'iiad[eval]'), got {one_line(error)}"
            ) from None
    return list(dict.fromkeys(names))


def require_several(num_texts: int) -> None:
    """Raise InputError for fewer texts than have an interval."""
    if num_texts < 2:
        raise InputError(f"metrics: expected at least 2 texts for an interval, got {num_texts}")


def score_texts(
    systems: Sequence[Sequence[str]], references: Sequence[str], metrics: Sequence[str]
) -> TextMetrics:
    """Score the texts of several models against one reference each, and test each model against the first.

    Scores are 0 to 100. Intervals hold the middle 95 % of 1,000 bootstrap resamples of the texts. p-values are those
    of the paired, two-sided approximate randomization test (Riezler and Maxwell 2005): how often a difference as
    large comes about where each text is either model's by chance. sacrebleu's paired bootstrap calls twice as many
    chance differences significant (tests/evaluation/test_text_metrics.py).

    systems: a list of texts for each model, as long as `references`.
    Raises InputError for fewer than two texts, and as `require_metrics`.
    """
    names = require_metrics(metrics)
    require_several(len(references))
    assert all(len(texts) == len(references) for texts in systems)
    found = TextMetrics({}, [{} for _ in systems])
    for name in names:
        (_add_rouge if name == "rouge" else _add_sacrebleu)(found, name, systems, references)
    return found


def _add_sacrebleu(
    found: TextMetrics, name: str, systems: Sequence[Sequence[str]], references: Sequence[str]
) -> None:
    """Add BLEU or chrF, with sacrebleu's intervals, p-values and signature."""
    from sacrebleu.metrics import BLEU, CHRF
    from sacrebleu.significance import PairedTest

    # Forced: no advice of many lines where texts look tokenized.
    metric = BLEU(force=True) if name == "bleu" else CHRF()
    named = [(str(number), texts) for number, texts in enumerate(systems)]
    test = PairedTest(
        named, {name: metric}, [references], test_type="ar", n_samples=_TRIALS, n_ar_confidence=_RESAMPLES
    )
    signatures, scores = test()
    ((label, signature),) = signatures.items()
    found.signatures[name] = str(signature)
    for number, result in enumerate(scores[label]):
        # Resamples of sums in float32 may leave 0 to 100 by a rounding.
        low, high = np.clip([result.mean - result.ci, result.mean + result.ci], 0, 100).tolist()
        p_value = None if number == 0 else _p_value(systems, number, result.p_value)
        value = min(float(result.score), 100.0)
        found.by_model[number][name] = TextMetric(value=value, low=low, high=high, p_value=p_value)


def _add_rouge(
    found: TextMetrics, name: str, systems: Sequence[Sequence[str]], references: Sequence[str]
) -> None:
    """Add ROUGE-1, ROUGE-2 and ROUGE-L: mean F1 with Porter's stemmer."""
    from importlib.metadata import version

    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(_ROUGE, use_stemmer=True)
    f1 = np.array(
        [
            [
                [score.fmeasure for score in scorer.score(reference, text).values()]
                for reference, text in zip(references, texts, strict=True)
            ]
            for texts in systems
        ]
    )  # (models, texts, 3)
    signature = (
        f"f1|stemmer:porter|bs:{_RESAMPLES}|ar:{_TRIALS}|seed:{_SEED}|version:{version('rouge-score')}"
    )
    for column, kind in enumerate(_ROUGE):
        found.signatures[kind] = signature
        for number in range(len(systems)):
            own, first = 100 * f1[number, :, column], 100 * f1[0, :, column]
            low, high = np.percentile(_resampled_means(own), [2.5, 97.5]).tolist()
            p_value = None if number == 0 else _p_value(systems, number, _test_means(own, first))
            found.by_model[number][kind] = TextMetric(value=own.mean(), low=low, high=high, p_value=p_value)


def _resampled_means(values: np.ndarray) -> np.ndarray:
    """Means of bootstrap resamples, (1000,): (n,) -> the same resamples for the same n."""
    from scipy.stats import bootstrap

    options: dict[str, Any] = {"method": "percentile", "n_resamples": _RESAMPLES, "batch": 100}
    return bootstrap((values,), np.mean, rng=np.random.default_rng(_SEED), **options).bootstrap_distribution


def _test_means(own: np.ndarray, first: np.ndarray) -> float:
    """Return the p-value of the difference of two models' means, (n,) each, paired."""
    from scipy.stats import permutation_test

    def difference(own: np.ndarray, first: np.ndarray, axis: int) -> np.ndarray:
        return own.mean(axis) - first.mean(axis)

    options: dict[str, Any] = {"permutation_type": "samples", "n_resamples": _TRIALS, "batch": 100}
    return float(
        permutation_test((own, first), difference, rng=np.random.default_rng(_SEED), **options).pvalue
    )


def _p_value(systems: Sequence[Sequence[str]], number: int, tested: float) -> float:
    """Return the test's p-value; 1 for the first model's own texts, which the test holds to differ."""
    return 1.0 if list(systems[number]) == list(systems[0]) else tested
