"""Profiles of made-up models, for whatever reads profiles."""

from iiad.artefacts import DataIdentity, ModelIdentity, ModelShape
from iiad.influence.profile import BatchRecord, FixedPoint, Profile, ProfileSettings

SHAPE = ModelShape(
    hidden_size=32,
    intermediate_size=56,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=97,
    history=True,
    relaxation=False,
)


def make_profile(scores=None, num_iterations=(2, 0, 3), errors=True, num_sets=1, **fields):
    """A profile of a made-up model; `scores` by metric, or numbers that fall with the iteration.

    errors: 8 batches of 512 tokens that lie 10 % apart, in turns from num_sets data sets; False: one batch.
    """
    if scores is None:
        scores = {
            "kl": [[0.1 * (t + 1) / 4**i for i in range(r)] for t, r in enumerate(num_iterations)],
            "cosine": [[0.2 * (t + 1) / 3**i for i in range(r)] for t, r in enumerate(num_iterations)],
        }
    model = ModelIdentity(
        name="teacher",
        fingerprint="a" * 64,
        model_type="iiet",
        num_layers=len(num_iterations),
        num_iterations=list(num_iterations),
        num_start_evaluations=1,
        cache_bytes_per_slot=100,
        shape=SHAPE,
    )
    fixed_point = [make_fixed_point(r) for r in num_iterations]
    steps = [0.9, 1.1] * 4 if errors else [1.0]
    batches = [
        BatchRecord(
            data=number % num_sets,
            num_tokens=512,
            loss=3.0,
            scores={
                metric: [[step * score for score in layer] for layer in layers]
                for metric, layers in scores.items()
            },
            fixed_point=fixed_point,
        )
        for number, step in enumerate(steps)
    ]
    sets = [
        DataIdentity(names=[f"set{n}"], fingerprint=f"{n:x}" * 64, num_tokens=4096 // num_sets)
        for n in range(num_sets)
    ]
    defaults = {
        "model": model,
        "data": sets,
        "settings": ProfileSettings(block_size=64, batch_size=8, max_tokens=4096, seed=0, dtype="float32"),
        "loss": 3.0,
        "scores": scores,
        "standard_errors": {
            metric: [[abs(score) / 10 for score in layer] for layer in layers]
            for metric, layers in scores.items()
        }
        if errors
        else None,
        "fixed_point": fixed_point,
        "batches": batches,
    }
    return Profile(**{**defaults, **fields})


def make_fixed_point(r, contraction=0.5, turn=0.2):
    """A layer of r iterations, each changing the state `contraction` times as much as the one before."""
    return FixedPoint(
        residuals=[0.4 * contraction**i for i in range(r)],
        contractions=[contraction] * max(r - 1, 0),
        turns=[turn] * max(r - 1, 0),
    )
