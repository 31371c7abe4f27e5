"""Learning rates follow their formulas; compiled, recomputed, split and validated steps are the same steps."""

import math

import pytest
import torch
from safetensors.torch import load_file

from iiad.training import TrainRecipe, train
from iiad.training.optimizing import make_optimizer, make_schedule
from iiad.training.sections import TrainingSection, count_warmup
from tests.helpers import half_done, log_of

STEPS, WARMUP, PEAK, LEAST = 12, 3, 0.01, 0.1
NO_DROPOUT = {"attention_dropout": 0.0}


def rates(**settings):
    """The learning rate of each step."""
    fields = {"max_steps": STEPS, "warmup_steps": WARMUP, "learning_rate": PEAK, **settings}
    section = TrainingSection(**fields)
    optimizer = make_optimizer(torch.nn.Linear(1, 1), section, PEAK)
    schedule = make_schedule(optimizer, section, section)
    found = []
    for _ in range(STEPS):
        found += schedule.get_last_lr()[:1]
        optimizer.step()
        schedule.step()
    return found


def linear(done):
    return LEAST + (1 - LEAST) * (1 - done)


def cosine(done):
    return LEAST + (1 - LEAST) * (1 + math.cos(math.pi * done)) / 2


def stable(decay_steps):
    """The peak, and a cosine in the last steps."""
    start = (STEPS - WARMUP - decay_steps) / (STEPS - WARMUP)
    return lambda done: 1.0 if done < start else cosine((done - start) / (1 - start))


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        (linear, {"lr_scheduler_type": "linear"}),
        (cosine, {"lr_scheduler_type": "cosine"}),
        (stable(4), {"lr_scheduler_type": "warmup_stable_decay", "decay_steps": 4}),
        (stable(1), {"lr_scheduler_type": "warmup_stable_decay"}),  # a tenth of the steps, at least one
        (lambda done: 1.0, {"lr_scheduler_type": "constant_with_warmup"}),
    ],
    ids=["linear", "cosine", "stable-4", "stable-default", "constant"],
)
def test_learning_rates_follow_their_schedule(shape, settings):
    least = {} if settings["lr_scheduler_type"] == "constant_with_warmup" else {"min_lr_ratio": LEAST}
    for step, rate in enumerate(rates(**settings, **least)):  # steps made before
        done = (step - WARMUP) / (STEPS - WARMUP)
        # transformers' warm-up starts from the least rate in this schedule, and from 0 in all others.
        first = LEAST if settings["lr_scheduler_type"] == "warmup_stable_decay" else 0.0
        wanted = first + (1 - first) * step / WARMUP if step < WARMUP else shape(done)
        assert rate == pytest.approx(PEAK * wanted), f"step {step + 1}"


@pytest.mark.parametrize(
    ("asked", "steps"), [(0, 0), (3, 3), (12, 12), (13, 12), (2**40, 12), (0.0, 0), (0.25, 3), (0.99, 12)]
)
def test_a_warm_up_is_steps_or_a_share_of_them_and_never_longer_than_the_stage(asked, steps):
    section = TrainingSection(max_steps=STEPS, warmup_steps=asked)
    assert count_warmup(section) == steps
    assert rates(warmup_steps=asked) == rates(warmup_steps=steps)


@pytest.mark.parametrize("decay", [9, 10, 1000])
def test_a_decay_is_never_longer_than_what_the_warm_up_leaves(decay):
    stable = {"lr_scheduler_type": "warmup_stable_decay"}
    assert rates(decay_steps=decay, **stable) == rates(decay_steps=STEPS - WARMUP, **stable)


@pytest.mark.parametrize(
    ("name", "end"), [("linear", 1 / 9), ("cosine", (1 + math.cos(math.pi * 8 / 9)) / 2)]
)
def test_without_a_least_rate_schedules_end_near_zero(name, end):
    assert rates(lr_scheduler_type=name)[-1] == pytest.approx(PEAK * end)


@pytest.fixture(scope="module")
def eager(quick, tmp_path_factory):
    """Two phases and more than an epoch, without dropout, whose random numbers a compiler draws in another order."""
    folder = tmp_path_factory.mktemp("eager") / "run"
    fields = quick(NO_DROPOUT, per_device_train_batch_size=8, save_steps=2, save_total_limit=None)
    train(TrainRecipe.model_validate(fields), folder)
    return folder


@pytest.fixture
def again(trained):
    """The run of `eager`, with these settings."""
    return lambda **changes: trained(model=NO_DROPOUT, **{"per_device_train_batch_size": 8, **changes})


@pytest.mark.parametrize(
    "settings",
    [{"gradient_checkpointing": True}, {"gradient_checkpointing": "evaluation"}, {"eval_steps": 3}],
    ids=["recomputed-layers", "recomputed-evaluations", "validated"],
)
def test_steps_are_the_same_to_the_last_bit(settings, eager, again):
    assert (again(**settings) / "model.safetensors").read_bytes() == (
        eager / "model.safetensors"
    ).read_bytes()


def assert_close(one, other):
    losses = [[entry["loss"] for entry in log_of(each)] for each in (one, other)]
    assert losses[1] == pytest.approx(losses[0], abs=2e-5)
    before, after = (load_file(folder / "model.safetensors") for folder in (one, other))
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=2e-4, msg=name)


def test_accumulation_changes_no_step_beyond_rounding(eager, again):
    assert log_of(eager)[-1]["epoch"] > 1
    assert_close(eager, again(per_device_train_batch_size=2, gradient_accumulation_steps=4))


@pytest.mark.parametrize(
    "backend", ["eager", *(pytest.param(b, marks=pytest.mark.slow) for b in ("aot_eager", "inductor"))]
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch warns against
def test_compiled_steps_are_the_same_across_the_phases(backend, eager, again):
    assert_close(eager, again(torch_compile=True, torch_compile_backend=backend))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # as above
def test_compiled_steps_are_the_same_after_a_resume(backend, eager, again, tmp_path):
    half_done(eager, 4, tmp_path / "run")
    assert_close(eager, again(resume=True, torch_compile=True, torch_compile_backend=backend))
