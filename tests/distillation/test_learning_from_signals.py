"""Learning from what a teacher said once: the same losses as from the live one, and nothing that does not fit."""

import pytest

from iiad import InputError
from iiad.checkpoints import load_identified, load_model, save_checkpoint
from iiad.data import load_tokenizer
from iiad.distillation import LiveTeacher
from iiad.distillation.capture import capture_signals
from iiad.planning import Plan
from iiad.training import RunRecord
from tests.helpers import log_of

TEMPERATURE = 2.0


@pytest.fixture(scope="module")
def capture(teacher_folder, little_text, recipe_fields, tmp_path_factory):
    """The teacher's signals of the little text, by these settings."""

    def run(**settings):
        folder = tmp_path_factory.mktemp("signals") / "signals"
        usual = {"top_k": 300, "temperature": TEMPERATURE, "block_size": 32, "device": "cpu"}
        usual |= {"cache_dir": recipe_fields["data"]["cache_dir"], "check_teacher": False}
        capture_signals(teacher_folder, [str(little_text)], folder, **{**usual, **settings})
        return folder

    return run


@pytest.fixture(scope="module")
def everything(capture):
    """All probabilities and all hidden states."""
    return capture(hidden_layers=[0, 1, 2], compression="bfloat16")


def parts_of(folder, stage="distill"):
    return [
        {name: entry[name] for name in ("loss", "ce", "kl", "hidden") if name in entry}
        for entry in log_of(folder, stage)
    ]


@pytest.mark.parametrize(
    ("divergence", "hidden_loss"), [("forward", "mse"), ("reverse", "smooth_l1"), ("jsd", "cosine")]
)
def test_all_signals_stored_teach_what_the_live_teacher_does(divergence, hidden_loss, everything, distilled):
    changes = {"temperature": TEMPERATURE, "hidden_weight": 0.5, "distill": 2}
    changes |= {"divergence": divergence, "hidden_loss": hidden_loss}
    live, stored = distilled("live", **changes), distilled("stored", signals=str(everything), **changes)
    assert len(parts_of(live)) == 2
    for one, other in zip(parts_of(live), parts_of(stored), strict=True):
        assert set(one) == {"loss", "ce", "kl", "hidden"}
        assert other == pytest.approx(one, rel=2e-3, abs=1e-4)


def test_some_hidden_states_are_learnt_from_by_themselves(everything, distilled):
    changes = {"ce_weight": 0.0, "kl_weight": 0.0, "hidden_weight": 0.5, "hidden_layers": [2], "distill": 2}
    live = parts_of(distilled("live", **changes))
    stored = parts_of(distilled("stored", signals=str(everything), **changes))
    assert all("kl" not in each and each["loss"] == pytest.approx(0.5 * each["hidden"]) for each in live)
    assert stored[0] == pytest.approx(live[0], rel=1e-3, abs=1e-5)  # the square of bfloat16's rounding
    # Adam's first step takes tiny gradients for large ones.
    assert stored[1] == pytest.approx(live[1], rel=2e-2)


def test_the_likeliest_tokens_alone_show_less_of_the_divergence(capture, distilled):
    changes = {"temperature": TEMPERATURE, "distill": 1}
    live = parts_of(distilled("live", **changes))[0]["kl"]
    found = [
        parts_of(distilled(f"top-{k}", signals=str(capture(top_k=k)), **changes))[0]["kl"] for k in (2, 20)
    ]
    assert 0 < found[0] < found[1] < live  # what is put together can only hide


def test_no_teacher_is_run_for_its_signals_when_they_are_stored(everything, distilled, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a live teacher")

    with monkeypatch.context() as patch:
        patch.setattr(LiveTeacher, "__init__", refuse)
        distilled(temperature=TEMPERATURE, distill=1, recover=1, signals=str(everything))
    # Stage layerwise runs it all the same.
    folder = distilled("layers", temperature=TEMPERATURE, layerwise=1, distill=1, signals=str(everything))
    assert [entry["stage"] for entry in log_of(folder)] == ["layerwise", "distill"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"temperature: expected 2\.0, as captured, got 1\.0"),
        ({"temperature": TEMPERATURE, "hidden_weight": 1.0}, r"hidden_layers: .* of \[0\], got \[1, 2\]"),
        ({"temperature": TEMPERATURE, "signals": "/nowhere"}, r"/nowhere: no such folder of signals"),
    ],
)
def test_signals_that_do_not_fit_are_refused_by_name(changes, message, capture, distilled, tmp_path):
    stored = str(capture(top_k=4, hidden_layers=[0]))
    with pytest.raises(InputError, match=message):
        distilled(distill=1, **{"signals": stored, **changes})
    assert not (tmp_path / "run").exists()


def test_signals_of_another_text_or_another_teacher_are_refused(
    capture, teacher_folder, text_file, distilled, tmp_path
):
    other_text = str(capture(top_k=4, max_tokens=64, block_size=16))
    with pytest.raises(InputError, match="block_size: expected 16, as captured, got 32"):
        distilled(distill=1, temperature=TEMPERATURE, signals=other_text)
    (tmp_path / "other.jsonl").write_text(
        text_file.read_text()[: len(text_file.read_text()) // 9].rpartition("\n")[0]
    )
    stored = tmp_path / "signals"
    capture_signals(
        teacher_folder,
        [str(tmp_path / "other.jsonl")],
        stored,
        top_k=4,
        temperature=TEMPERATURE,
        block_size=32,
        cache_dir=tmp_path / "cache",
        check_teacher=False,
    )
    with pytest.raises(InputError, match="data: expected"):
        distilled(distill=1, temperature=TEMPERATURE, signals=str(stored))
    # The teacher's weights at another plan say something else.
    truncated = load_model(teacher_folder, num_iterations=[2, 1])
    save_checkpoint(truncated, tmp_path / "teacher", tokenizer=load_tokenizer(teacher_folder))
    identity = load_identified(tmp_path / "teacher", "cpu", "float32", cast=True)[1]
    Plan.explicit([1, 0], identity).save(tmp_path / "plan.json")
    stored = str(capture(top_k=4))
    with pytest.raises(InputError, match=r"num_iterations: expected \[2, 2\], as captured, got \[2, 1\]"):
        distilled(
            teacher=tmp_path / "teacher",
            plan=tmp_path / "plan.json",
            distill=1,
            temperature=TEMPERATURE,
            signals=stored,
        )
    assert not (tmp_path / "run").exists()


def test_signals_too_few_for_a_step_are_refused_before_anything_is_written(capture, distilled, tmp_path):
    few = str(capture(top_k=4, max_tokens=64))
    with pytest.raises(InputError, match="expected at least 4 blocks, for one step"):
        distilled(layerwise=1, distill=1, temperature=TEMPERATURE, signals=few)
    assert not (tmp_path / "run").exists()


def test_signals_that_were_damaged_are_noticed_before_anything_is_learnt(capture, distilled, tmp_path):
    folder = capture(top_k=4)
    learnt = {"distill": 1, "temperature": TEMPERATURE, "signals": str(folder)}
    finished = distilled("finished", **learnt)
    shard = next(path for path in folder.iterdir() if path.name.startswith("shard"))
    data = bytearray(shard.read_bytes())
    data[7] ^= 1
    shard.write_bytes(data)
    with pytest.raises(InputError, match="is damaged"):
        distilled(**learnt)
    assert not (tmp_path / "run").exists()
    record = RunRecord.load(finished / "run.json").model_copy(update={"finished": False, "results": {}})
    record.save(finished / "run.json")
    with pytest.raises(InputError, match="is damaged"):
        distilled("finished", resume=True, **learnt)
