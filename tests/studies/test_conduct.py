"""Studies run for real: other processes, ordinary run folders; killed, resumed, and with runs that fail."""

import json
import signal
import subprocess
import sys
import time

import pytest
import yaml

from cli.study import write_study_page
from iiad.evaluation import Evaluation
from iiad.planning import Plan
from iiad.reporting.study_pictures import draw_study
from iiad.reporting.study_tables import study_table
from iiad.studies.conduct import Conduct, conduct_study
from iiad.studies.definition import load_study
from iiad.studies.estimates import estimate_runs
from iiad.studies.results import Model
from iiad.studies.study_artefact import StudyResult
from tests.helpers import make_profile, make_table, printed, refused

SPEC = "states:length=4"
FIELDS = {
    "train": "task",
    "settings": {
        "data.train": [SPEC],
        "data.validation": [f"{SPEC},rows=32"],
        "model.hidden_size": 16,
        "model.intermediate_size": 24,
        "training.max_steps": 3,
        "training.warmup_steps": 0,
        "training.logging_steps": 1,
        "training.per_device_train_batch_size": 4,
    },
    "arms": {"r0": {"model.num_iterations": 0}, "r2": {"model.num_iterations": 2}},
    "reference": "r0",
    "seeds": [0],
}
STUDENTS = {
    "teacher": "r2",
    "cuts": [0.5, 1.0],
    "distill": "task-distill",
    "settings": {
        "distillation.distill.max_steps": 2,
        "distillation.distill.warmup_steps": 0,
        "training.per_device_train_batch_size": 4,
    },
    "calibration_tokens": 100,
    "baselines": ["uniform"],
    "from_scratch": True,
}


def write(folder, **changes):
    path = folder / "a.yaml"
    path.write_text(yaml.safe_dump({**FIELDS, **changes}))
    return path


PAIRS = {
    "train": "docstrings",
    "settings": {
        "model.hidden_size": 12,
        "model.intermediate_size": 16,
        "model.num_encoder_layers": 1,
        "model.num_layers": 1,
        "tokenizer.vocab_size": 270,
        "data.max_batch_tokens": 200,
        "data.max_source_tokens": 20,
        "data.max_target_tokens": 10,
        "data.long_sources": "drop",
        "training.max_steps": 2,
        "training.warmup_steps": 0,
    },
    "arms": {"r0": {"model.solver": "transformer"}, "r1": {"model.num_iterations": 1}},
    "reference": "r0",
    "seeds": [0],
}


@pytest.fixture
def pair_study(tmp_path):
    rows = [json.dumps({"source": "pop " * n, "target": "out " * m}) for n in (1, 2, 99) for m in (1, 2, 3)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    data = {f"data.{split}": [str(tmp_path / "pairs.jsonl")] for split in ("train", "validation")}
    return load_study(write(tmp_path, **{**PAIRS, "settings": {**PAIRS["settings"], **data}}))


def test_an_encoder_decoder_is_trained_from_scratch_under_both_halves_of_a_plan(pair_study, tmp_path):
    job = Conduct(pair_study, tmp_path, 1, print).training_job("r1", 0, None, [2, 1])
    given = job.steps[0].arguments
    assert {"model.num_encoder_iterations=[2]", "model.num_iterations=[1]"} <= set(given)


def test_the_plan_by_latency_is_the_best_that_takes_no_longer(tmp_path):
    study = load_study(write(tmp_path, students={**STUDENTS, "cuts": [0.5], "baselines": ["latency"]}))
    conduct = Conduct(study, tmp_path, 1, lambda made: None)
    teacher = Model("r2", 0, tmp_path / "teacher", tmp_path / "teacher.evaluation.json")
    profile = make_profile({"kl": [[0.5, 0.35], [0.3, 0.1]]}, (2, 2))
    first_is_slow = [[0.003, 0.006, 0.009], [0.001, 0.002, 0.003]]
    make_table(profile.model, first_is_slow).save(tmp_path / "teacher.latency.json")
    plans = {kind: Plan.load(path).num_iterations for _, kind, path in conduct.make_plans(teacher, profile)}
    assert plans == {"influence": [2, 0], "latency": [1, 2]}


def test_layers_are_timed_at_the_lengths_of_the_data_where_a_plan_needs_it(pair_study, tmp_path):
    students = {"teacher": "r1", "cuts": [0.5], "distill": "docstrings-distill", "baselines": ["latency"]}
    of_pairs = pair_study.model_validate({**pair_study.model_dump(exclude_unset=True), "students": students})
    of_text = load_study(write(tmp_path, students={**STUDENTS, "baselines": ["latency"]}))
    for study, arm, read, made in ((of_pairs, "r1", "20", "10"), (of_text, "r2", "2", "2")):
        teacher = Model(arm, 0, tmp_path / arm, tmp_path / f"{arm}.evaluation.json")
        measure, timing = Conduct(study, tmp_path, 1, print).profile_job(teacher).steps
        assert (measure.arguments[0], timing.arguments[0]) == ("profile", "bench")
        assert ["--prompt-tokens", read, "--new-tokens", made] == list(timing.arguments)[3:7]


def test_arms_of_encoder_decoders_are_estimated(pair_study):
    estimates = estimate_runs(pair_study, 1)
    assert [run.tokens for run in estimates] == [400, 400]
    assert estimates[1].flops > estimates[0].flops


@pytest.mark.slow
def test_arms_of_encoder_decoders_are_run_and_compared_on_pairs_within_the_limits(pair_study, tmp_path):
    texts = {"metrics": ["bleu", "chrf"], "num_beams": 2, "max_new_tokens": 5}
    pair_study = pair_study.model_validate({**pair_study.model_dump(exclude_unset=True), "texts": texts})
    result = conduct_study(pair_study, tmp_path / "study")
    assert not result.failed
    assert [list(arm.texts) for arm in result.arms] == [["bleu", "chrf"]] * 2
    assert [list(arm.text_differences) for arm in result.arms] == [[], ["bleu", "chrf"]]
    assert "bleu" in printed(study_table(result, 110))
    assert [arm.evaluations_per_token for arm in result.arms] == [2, 6]
    evaluation = Evaluation.load(tmp_path / "study" / "runs" / "r1-seed0.evaluation.json")
    assert evaluation.data[0].num_tokens < 99  # the long sources are left out


def test_arms_are_run_compared_and_kept_and_what_fails_is_listed(tmp_path):
    arms = {**FIELDS["arms"], "broken": {"data.train": [f"{SPEC[:-1]}9"], "data.block_size": 5}}
    study = load_study(write(tmp_path, arms=arms))
    result = conduct_study(study, tmp_path / "study", num_processes=2)
    assert [arm.name for arm in result.arms] == ["r0", "r2"]
    assert list(result.failed) == ["broken-seed0"]
    assert "exit code 2" in result.failed["broken-seed0"]
    assert "block_size: expected at least the 10 tokens" in result.failed["broken-seed0"]
    r0, r2 = result.arms
    assert (r0.evaluations_per_token, r2.evaluations_per_token) == (2, 6)
    assert r2.accuracy_difference.mean == pytest.approx(r2.runs[0].accuracy - r0.runs[0].accuracy)
    assert r0.accuracy_difference is None
    assert r2.training_flops > 2 * r0.training_flops
    assert StudyResult.load(tmp_path / "study" / "study.json") == result
    assert (tmp_path / "study" / "runs" / "r2-seed0" / "model.safetensors").exists()
    table = printed(study_table(result, 110))
    assert "One seed, so no interval and no claim" in table
    assert "failed: broken-seed0" in table
    assert {path.name for path in draw_study(result, tmp_path / "plots")} == {"study.png", "study.svg"}
    write_study_page(tmp_path / "study")
    page = (tmp_path / "study" / "report.html").read_text()
    assert result.answer in page
    assert "r2-seed0: train" in page
    assert "broken-seed0: " in page
    with refused("holds this study; continue it with --resume"):
        conduct_study(study, tmp_path / "study")
    with refused("holds another study"):
        conduct_study(load_study(write(tmp_path)), tmp_path / "study", resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with refused("is not empty and holds no study"):
        conduct_study(study, tmp_path / "other")


def as_table(path):
    """A result without what differs from run to run: seconds."""
    fields = json.loads(path.read_text())
    for row in [*fields["arms"], *fields["students"]]:
        for run in row["runs"]:
            run["seconds"] = None
    return fields


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_study_that_is_killed_goes_on_to_the_same_table(how, tmp_path):
    path = write(tmp_path, seeds=[0, 1], learning_rates=[0.001, 0.01], students=STUDENTS)
    whole = conduct_study(load_study(path), tmp_path / "whole", num_processes=2)
    assert not whole.failed
    kinds = {(row.cut, row.plan, row.training) for row in whole.students}
    for training in ("none", "distilled", "from scratch"):
        assert {(0.5, "influence", training), (1.0, "influence", training)} <= kinds
    assert all(len(row.runs) == 2 for row in whole.students if row.plan == "influence")
    rows = {(row.plan, row.training): row for row in whole.students if row.cut == 0.5}
    influence = {run.seed: run.accuracy for run in rows["influence", "distilled"].runs}
    if uniform := rows.get(("uniform", "distilled")):
        differences = [run.accuracy - influence[run.seed] for run in uniform.runs]
        assert uniform.to_influence.mean == pytest.approx(sum(differences) / len(differences))
    assert rows["influence", "distilled"].to_influence is None
    command = [sys.executable, "-m", "iiad_cli.worker"]
    arguments = ["study", str(path), "--output-dir", str(tmp_path / "killed")]
    for part in range(3):
        resume = ["--resume"] if part else []
        process = subprocess.Popen([*command, json.dumps([[*arguments, *resume]])])
        time.sleep(12)
        process.send_signal(how)  # to the study alone: the runs leave with it
        process.wait()
        time.sleep(5)
    conduct_study(load_study(path), tmp_path / "killed", resume=True, num_processes=2)
    assert as_table(tmp_path / "killed" / "study.json") == as_table(tmp_path / "whole" / "study.json")


def test_a_study_whose_data_is_not_here_is_refused_before_any_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refused("data.train: no file pairs-train.jsonl here"):
        conduct_study(load_study("translation"), tmp_path / "study")
    assert not (tmp_path / "study").exists()
