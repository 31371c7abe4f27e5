"""The moving average of the weights: what it is an average of, where it is used, how it goes on."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import set_seed

from iiad.data import load_tokenizer
from iiad.training import TrainRecipe, train
from iiad.training import teacher as teacher_module

DECAY, STEPS, SWITCH = 0.7, 6, 3


@pytest.fixture(scope="module")
def settings():
    """Of a run that keeps every step."""
    return {
        "max_steps": STEPS,
        "save_steps": 1,
        "save_total_limit": None,
        "ema_decay": DECAY,
        "eval_steps": 2,
    }


@pytest.fixture(scope="module")
def averaged(quick, settings, tmp_path_factory):
    """A finished run, and the weights with which each validation was made."""
    folder, seen = tmp_path_factory.mktemp("averaged") / "run", []
    original = teacher_module.Corpora.score_validation

    def score(self, model, *task):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return original(self, model, *task)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher_module.Corpora, "score_validation", score)
        train(TrainRecipe.model_validate(quick(**settings)), folder)
    return folder, seen


def raw(folder, step):
    return load_file(folder / f"checkpoint-{step}" / "model.safetensors")


def average_at(folder, step):
    return load_file(folder / f"checkpoint-{step}" / "average.safetensors")


def follow(values, start):
    """average <- decay average + (1 - decay) value, from the start."""
    average = start
    for value in values:
        average = DECAY * average + (1 - DECAY) * value
    return average


def only_iterations_use(name):
    return ".corrector.update_" in name


def test_the_result_is_the_average_of_the_weights_after_each_step(averaged, quick):
    folder, _ = averaged
    steps = [raw(folder, step) for step in range(1, STEPS + 1)]
    result, start = load_file(folder / "model.safetensors"), first_weights(quick())
    for name, value in result.items():
        if not only_iterations_use(name):
            torch.testing.assert_close(value, follow([step[name] for step in steps], start[name]), msg=name)
    assert any(not torch.equal(result[name], steps[-1][name]) for name in result)


def first_weights(fields):
    """The weights before the first step, as the recipe's seed makes them."""
    recipe = TrainRecipe.model_validate(fields)
    set_seed(recipe.training.seed)
    model = teacher_module.build_model(recipe.model, load_tokenizer(recipe.tokenizer.path))
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_what_the_smooth_start_sets_is_averaged_from_there_on(averaged):
    """With its initial values in it, the average would jump where the weights do not."""
    folder, _ = averaged
    before, after = raw(folder, SWITCH), average_at(folder, SWITCH + 1)
    for layer in (0, 1):
        norm = f"model.layers.{layer}.corrector."
        start = before[norm + "start_norm.weight"]  # to which the smooth start sets the other norm
        wanted = follow([raw(folder, SWITCH + 1)[norm + "update_norm.weight"]], start)
        torch.testing.assert_close(after[norm + "update_norm.weight"], wanted)


def test_validation_is_done_with_the_average(averaged):
    folder, seen = averaged
    assert len(seen) == 4  # at 2, 4 and 6, and at the end
    for step, weights in zip((2, 4, 6), seen, strict=False):
        for name, value in average_at(folder, step).items():
            assert torch.equal(weights[name], value), name
    final = load_file(folder / "model.safetensors")
    assert all(torch.equal(seen[-1][name], value) for name, value in final.items())


def test_checkpoints_hold_the_weights_and_the_average_apart(averaged):
    folder, _ = averaged
    weights, average = raw(folder, STEPS), average_at(folder, STEPS)
    assert set(average) == set(weights)
    assert any(not torch.equal(weights[name], average[name]) for name in average)


# At the switch, and when nothing but the end is left.
@pytest.mark.parametrize("step", [SWITCH, STEPS])
def test_a_resumed_run_ends_with_the_same_average(step, averaged, settings, trained, monkeypatch):
    with monkeypatch.context() as patch:
        if step == STEPS:
            patch.setattr(teacher_module.RunFolder, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            trained(**settings, on_step=lambda number: stop() if number == step + 1 else None)
    run = trained(**settings, resume=True)
    for file in ("model.safetensors", f"checkpoint-{STEPS}/average.safetensors"):
        assert (run / file).read_bytes() == (averaged[0] / file).read_bytes()


def stop(*args):
    raise KeyboardInterrupt
