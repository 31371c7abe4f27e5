"""Every field of every artefact: what is wrong is refused by file and field, what is accepted can be shown."""

import copy
import json
import random
from enum import Enum

import pytest

from cli.show import load_folder, load_report
from iiad import files
from iiad.artefacts import Artefact
from iiad.distillation import ShardRecord, SignalLayout, SignalRecord
from iiad.errors import InputError
from iiad.evaluation.bench_artefact import PARTS, Bench, BenchResult, BenchSettings, Breakdown, Phase, Spread
from iiad.evaluation.check_artefact import Check, CheckResult, CheckSettings
from iiad.evaluation.quality_artefact import Evaluation, EvaluationResult, EvaluationSettings
from iiad.generation.beam_record import BeamRecord
from iiad.planning import Bounds, Plan, Targets, make_family, plan_by_target, plan_by_threshold
from iiad.studies.estimation import Estimate
from iiad.studies.study_artefact import ArmResult, SeedFigures, StudentResult, StudyResult
from iiad.training import RunRecord, TrainRecipe
from tests.helpers import make_profile, make_table, printed, refused
from tests.planning.test_pair_costs import EQUAL, make_pair_table
from tests.reporting.test_verification_report import make_verification

NAN, INF = float("nan"), float("inf")
GONE, EXTRA, DEEP, DEEPER = Enum(
    "Change", "GONE EXTRA DEEP DEEPER"
)  # whose repr, by which values are drawn, stays

REFUSED = {
    bool: ["true", 1, 0, 1.0, NAN, [], {}],
    int: [True, False, "1", 0.5, 1.0, NAN, INF, -1, -(10**30), 10**30, 10**400, [], {}],
    float: [True, "1", "nan", NAN, INF, -INF, 10**400, [], {}],
    str: [1, True, 0.5, NAN, [], {}, "\x1b[2J", "\ud800", "\0"],
    list: [1, True, "x", {}, {"0": 1}],
    dict: [1, True, "x", [], EXTRA],
    type(None): [True, "\x1b", NAN],
}
"""Type of a JSON value -> values that are never right in its place."""
MAYBE = [
    None,
    GONE,
    0,
    1,
    -1.0,
    1e100,
    1e308,
    5e-324,
    2**62,
    "",
    "x" * 5000,
    "[red]",
    [None],
    {"x": 1},
    DEEP,
    DEEPER,
]
"""Values that are right in some places: refused, or accepted and shown."""


def make_phase():
    spread = Spread.of([1.0, 2.0])
    breakdown = Breakdown(seconds=dict.fromkeys(PARTS, 0.1), host_share=0.5)
    return Phase(
        evaluations_per_token=8,
        predicted_speedup=1.5,
        tokens_per_second=spread,
        speedup=spread,
        expected_speedup=1.1,
        kept=0.9,
        peak_bytes=1,
        breakdown=breakdown,
    )


def make_bench(model):
    settings = BenchSettings(
        batch_size=[1], prompt_tokens=[8], new_tokens=2, repeats=1, seed=0, dtype="float32", device="cpu",
        device_name="a CPU", num_threads=1, torch_version="2.13",
    )  # fmt: skip
    results = [
        BenchResult(
            label=label, model=model, quantization=None, perplexity=20.0, accuracy=0.4, batch_size=1, prompt_tokens=8,
            prefill=make_phase(), decode=make_phase(), weight_bytes=9,
            cache_bytes_per_token=800, cache_bytes=8000, cache_ratio=0.5,
        )
        for label in ("teacher", "student")
    ]  # fmt: skip
    return Bench(settings=settings, results=results)


def make_evaluation(profile):
    result = EvaluationResult(
        label="teacher", model=profile.model, data=profile.data[0].fingerprint, tokens=100, nll=3.0, perplexity=20.0,
        bits_per_byte=1.2, accuracy=0.4, evaluations_per_token=8, cache_bytes_per_token=800, overhead_cut=0.5,
        compute_cut=0.4, retained=0.9,
    )  # fmt: skip
    settings = EvaluationSettings(block_size=8, batch_size=1, max_tokens=101, dtype="float32", device="cpu")
    return Evaluation(settings=settings, data=profile.data, results=[result, result])


def make_check(model):
    settings = CheckSettings(
        prompt_tokens=4, new_tokens=2, seed=0, dtype="float32", device="cpu", device_name="a CPU",
        rounding_bound=0.001, compile=False, torch_version="2.13", transformers_version="5.23",
    )  # fmt: skip
    shared = {"name": "a = b", "bound": 0.5, "unit": "tokens"}
    results = [
        CheckResult(**shared, outcome="passed", figure=0.25),
        CheckResult(**shared, outcome="skipped", note="no b"),
    ]
    return Check(model=model, teacher=model, plan_fingerprint="a" * 64, settings=settings, results=results)


def make_beams(profile):
    return BeamRecord(
        teacher=profile.model, tokenizer_fingerprint="a" * 64, data=profile.data[0], dtype="float32", num_beams=2,
        length_penalty=1.0, max_new_tokens=8, num_pairs=3, num_left_out=1, num_empty=0, num_unfinished=1,
        sha256="b" * 64,
    )  # fmt: skip


def make_signals(profile):
    layout = SignalLayout(
        block_size=16, vocab_size=97, top_k=8, hidden_layers=[0, 2], hidden_size=32, compression="int8",
        blocks_per_shard=4,
    )  # fmt: skip
    shards = [ShardRecord(index=index, sha256="a" * 64, kept_mass=0.9) for index in range(2)]
    return SignalRecord(
        teacher=profile.model, tokenizer_fingerprint="a" * 64, data=profile.data[0], layout=layout, num_blocks=6,
        temperature=1.0, dtype="float32", shards=shards,
    )  # fmt: skip


def make_study():
    numbers = Estimate(mean=1.5, deviation=0.1, low=1.4, high=1.6, num_seeds=2)
    runs = [SeedFigures(seed=seed, nll=1.5, accuracy=0.5, seconds=9.0) for seed in range(2)]
    shared = {"runs": runs, "nll": numbers, "accuracy": numbers}
    arm = ArmResult(
        **shared, name="r3", learning_rate=0.001, tried={"0.001": 1.5}, parameters=100, evaluations_per_token=8,
        tokens=1000, training_flops=1e9, nll_difference=numbers, accuracy_difference=None,
    )  # fmt: skip
    student = StudentResult(
        **shared, cut=0.5, plan="uniform", training="none", overhead_cut=0.5, evaluations_per_token=5.5,
        retained=numbers,
    )  # fmt: skip
    return StudyResult(
        definition={"train": "task", "seeds": [0, 1]}, iiad_version="0.1.0", reference="r3", arms=[arm, arm],
        students=[student], failed={"r0-1": "exit code 1"}, answer="None.", num_runs=4,
    )  # fmt: skip


RECIPE = {"tokenizer": {"vocab_size": 300}, "data": {"train": ["a"]}, "training": {"max_steps": 3}}


def make_samples():
    profile = make_profile(num_sets=2)
    table = make_table(profile.model)
    bounds = Bounds(max_iterations=3, pins={1: 1})
    return {
        "profile": profile,
        "profile-of-one-batch": make_profile(errors=False),
        "plan": plan_by_threshold(profile, 0.05, normalize="layer"),
        "plan-by-target": plan_by_target(profile, Targets(speedup=1.1), bounds=bounds, latency=table),
        "family": make_family(profile, [0, 0.5, 1]),
        "latency": table,
        "plan-of-pairs": plan_by_target(
            EQUAL, Targets(speedup=1.1, phase="sentence"), latency=make_pair_table(4, 8)
        ),
        "latency-of-pairs": make_pair_table(4, 8),
        "verification": make_verification(),
        "evaluation": make_evaluation(profile),
        "bench": make_bench(profile.model),
        "check": make_check(profile.model),
        "signals": make_signals(profile),
        "beams": make_beams(profile),
        "study": make_study(),
        "run": RunRecord(
            command="train",
            settings={**TrainRecipe.model_validate(RECIPE).model_dump(mode="json"), "blocks_per_step": 8},
            inputs={"data": "a"},
            results={"nll": 1.5},
        ),
    }


SAMPLES = make_samples()
FIELDS = {name: json.loads(sample.model_dump_json()) for name, sample in SAMPLES.items()}
FREE = {"run": [("settings",), ("results",)], "study": [("definition",)]}
"""Fields that hold any fields."""
OPEN = {"settings", "results", "definition", "tried", "accuracy_by_group", "texts", "evaluations_by_class"}
"""Fields whose names are free."""
KINDS = pytest.mark.parametrize("name", SAMPLES)
SHARES = pytest.mark.parametrize("share", [0.03, pytest.param(1.0, marks=pytest.mark.slow)])
"""Share of the values that are tried in each place."""


def places(name):
    """Paths of all values in a sample's file, but not in FREE ones; of a list's items the first and the last."""

    def walk(value, path):
        if path:
            yield path
        if path in FREE.get(name, ()):
            return
        keys = (
            list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
        )
        for key in {keys[0], keys[-1]} if isinstance(value, list) and value else keys:
            yield from walk(value[key], (*path, key))

    return list(walk(FIELDS[name], ()))


def look_up(fields, path):
    for step in path:
        fields = fields[step]
    return fields


def changed(fields, path, value):
    """The file's text with another value in one place."""
    fields = copy.deepcopy(fields)
    place, last = look_up(fields, path[:-1]), path[-1]
    if value is GONE:
        del place[last]
    elif value is EXTRA:
        place[last]["unheard-of"] = 1
    elif value in (DEEP, DEEPER):
        place[last] = "DEEP"
    else:
        place[last] = value
    depth = 300 if value is DEEP else 50_000
    return json.dumps(fields).replace('"DEEP"', "[" * depth + "]" * depth)


def outcome(sample, text, file):
    """Return the one line by which a file of that text is refused; None where it is accepted and can be shown."""
    file.write_text(text)
    try:
        if isinstance(sample, RunRecord):
            sample.load(file)
            file = file.replace(file.with_name("run.json"))
        artefact, show = load_folder(file.parent) if isinstance(sample, RunRecord) else load_report(file)
        printed(show(100))
        assert artefact.kind.startswith(sample.kind)
    except InputError as error:
        message = str(error)
    else:
        return None
    assert message.startswith(f"{file}: ")
    assert len(message) < 1000
    assert message.isprintable()
    return message


def chosen(values, seed, share):
    return [value for value in values if random.Random(f"{seed}{value!r}").random() < share]


def test_there_is_a_sample_of_every_artefact():
    assert {type(sample) for sample in SAMPLES.values()} == set(Artefact.__subclasses__())


@KINDS
@SHARES
def test_every_wrong_value_is_refused_by_file_and_field(name, share, tmp_path):
    sample, file = SAMPLES[name], tmp_path / "file.json"
    fields = FIELDS[name]
    wrong = []
    for path in places(name):
        for value in chosen(REFUSED[type(look_up(fields, path))], path, share):
            message = outcome(sample, changed(fields, path, value), file)
            if (message is None or path[0] not in message) and not (value is EXTRA and path[-1] in OPEN):
                wrong.append((path, value, message))
    assert not wrong


@KINDS
@SHARES
def test_every_other_value_is_refused_in_one_line_or_can_be_shown(name, share, tmp_path):
    sample, file = SAMPLES[name], tmp_path / "file.json"
    fields = FIELDS[name]
    for path in places(name):
        for value in chosen(MAYBE, path, share):
            outcome(sample, changed(fields, path, value), file)


@KINDS
def test_a_file_cut_anywhere_is_refused(name, tmp_path):
    sample, file = SAMPLES[name], tmp_path / "file.json"
    text = json.dumps(FIELDS[name])
    for end in {*range(12), *random.Random(0).sample(range(len(text)), 40), len(text) - 1}:
        assert outcome(sample, text[:end], file), end


@KINDS
@SHARES
def test_a_name_that_stands_twice_is_refused_at_any_depth(name, share, tmp_path):
    sample, file = SAMPLES[name], tmp_path / "file.json"
    fields = FIELDS[name]
    for path in places(name):
        if isinstance(path[-1], str) and chosen([0], path, share):
            twice = copy.deepcopy(fields)
            place = look_up(twice, path[:-1])
            place["TWICE"] = place[path[-1]]
            message = outcome(sample, json.dumps(twice).replace('"TWICE"', json.dumps(path[-1])), file)
            assert message == f"{file}: {path[-1]!r} is there twice"


@KINDS
def test_another_format_version_is_refused(name, tmp_path):
    fields = FIELDS[name]
    for found in (0, float(fields["format_version"]), -5, 999, True, "1", None, GONE, [], 10**30):
        message = outcome(SAMPLES[name], changed(fields, ("format_version",), found), tmp_path / "file.json")
        assert f"format_version: expected {fields['format_version']}, got " in message


@pytest.mark.parametrize("found", [[], {}, ["plan"], None, True, 1, "x" * 5000, "\ud800"])
def test_a_kind_that_is_none_is_refused_by_show(found, tmp_path):
    message = outcome(SAMPLES["plan"], json.dumps({"kind": found}), tmp_path / "file.json")
    assert "kind: expected " in message


def test_an_artefact_of_more_bytes_than_any_has_is_refused_before_it_is_parsed(tmp_path, monkeypatch):
    file = tmp_path / "file.json"
    with file.open("w") as sparse:
        sparse.truncate(files.MOST_JSON_BYTES + 1)
    monkeypatch.setattr(json, "loads", lambda *args, **kwargs: pytest.fail("parsed"))
    with refused(file, "expected at most 67,108,864 bytes, got more"):
        Plan.load(file)
    for many in (",", "[", "{"):
        file.write_text(many * (files.MOST_JSON_VALUES + 1))
        with refused(file, "expected at most 4,194,304 values, got more"):
            Plan.load(file)
