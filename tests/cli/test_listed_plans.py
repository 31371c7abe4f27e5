"""`--plan NAME|CUT|FILE`: plans that an elastic student lists, in every command that takes one."""

import json
import shutil

import pytest
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from cli.listed_plans import resolve_plan
from iiad.checkpoints import identify_model, load_config, load_model, save_checkpoint
from iiad.evaluation.checks import CLAIMS, check_model
from iiad.generation.drafts import candidate_plans, load_draft
from iiad.models import IIETConfig
from iiad.planning import Plan
from iiad.planning.binding import OwnPlan
from tests.helpers import make_seq2seq, refused

PLANS = [
    {"name": "full", "num_iterations": [3, 3, 3], "nll": 2.5, "accuracy": 0.25},
    {"name": "cut-30", "num_iterations": [2, 2, 2], "nll": 2.6, "accuracy": 0.2},
    {"name": "cut-75", "num_iterations": [1, 1, 0]},
]
ROWS = [[[0.1], [0.4]], [[0.2], [0.5]], [[0.3], [0.6]]]


@pytest.fixture(scope="module")
def elastic(folders, tmp_path_factory):
    """The teacher of all tests, which says that it is elastic."""
    folder = tmp_path_factory.mktemp("listed") / "elastic"
    model = load_model(folders.teacher)
    model.reconfigure(plans=PLANS, extrapolation=ROWS)
    save_checkpoint(model, folder, files_from=folders.teacher)
    return folder


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("cut-30", [2, 2, 2]),
        ("full", [3, 3, 3]),
        ("0", [3, 3, 3]),
        ("0.3", [2, 2, 2]),
        ("0.34", [1, 1, 0]),
        ("0.75", [1, 1, 0]),
    ],
)
def test_a_plan_is_found_by_its_name_or_by_the_cut_that_it_reaches(text, wanted, elastic):
    assert resolve_plan(text, str(elastic)).num_iterations == wanted


def test_a_listed_plan_brings_its_own_coefficients(elastic):
    assert resolve_plan("cut-30", str(elastic)) == OwnPlan("cut-30", [2, 2, 2], [[0.4], [0.5], [0.6]])
    assert resolve_plan("cut-75", str(elastic)).extrapolation == [[0.1], [0.2], []]


@pytest.mark.parametrize("text", ["cut-31", "0.8", "-0.1", "nan", "1e400", "nowhere/plan.json", ""])
def test_another_word_is_refused_with_what_there_is(text, elastic):
    with refused("plan: expected a file, or one of full, cut-30, cut-75, or a cut up to 0.7778, got"):
        resolve_plan(text, str(elastic))


def test_of_other_models_a_file_alone_will_do(folders):
    with refused("plan: expected a file, got '0.5'"):
        resolve_plan("0.5", str(folders.teacher))
    assert resolve_plan(str(folders.plan), str(folders.teacher)).num_iterations == [0, 2, 1]


def test_a_file_outside_the_family_is_said_to_be_and_works(elastic, folders, iiad, tmp_path):
    plan = tmp_path / "plan.json"
    Plan.explicit([0, 2, 1], identify_model(load_model(elastic), elastic)).save(plan)
    code, _, error = iiad("evaluate", elastic, "--data", folders.text, "--max-tokens", 60, "--plan", plan)
    assert code == 0
    assert f"plan: none of those that {elastic} was trained for, full, cut-30, cut-75" in " ".join(
        error.split()
    )


def test_commands_run_the_plan_that_they_are_given(elastic, folders, iiad, tmp_path):
    text = ["--data", folders.text, "--max-tokens", 60, "--json"]
    code, out, _ = iiad("evaluate", elastic, *text, "--plan", "0.3")
    rows = json.loads(out)["results"]
    assert (code, [row["label"] for row in rows]) == (0, ["elastic", "elastic, cut-30"])
    assert rows[1]["model"]["num_iterations"] == [2, 2, 2]
    assert rows[1]["model"]["extrapolation"] == [[0.4], [0.5], [0.6]]
    code, out, _ = iiad(
        "generate", elastic, "--prompt", "class", "--max-new-tokens", 4, "--plan", "cut-75", "--json"
    )
    assert code == 0
    assert len(json.loads(out)["texts"]) == 1
    sizes = ["--prompt-tokens", 4, "--new-tokens", 2, "--repeats", 1, "--json"]
    code, out, _ = iiad("bench", elastic, *sizes, "--plan", "cut-75")
    assert code == 0
    assert [row["model"]["num_iterations"] for row in json.loads(out)["results"]] == [[3, 3, 3], [1, 1, 0]]


def test_check_runs_a_model_under_a_plan_of_its_own(elastic):
    own = resolve_plan("cut-30", str(elastic))
    found = check_model(elastic, plan=own, compile=False, claims=CLAIMS[:1])
    assert (found.model.num_iterations, found.model.extrapolation) == ([2, 2, 2], [[0.4], [0.5], [0.6]])
    assert (found.teacher, found.passed) == (None, True)


def test_a_draft_of_its_own_is_the_smallest_plan_that_was_trained(elastic, folders, iiad):
    model = load_model(elastic)
    draft = load_draft("self", model, identify_model(model, elastic))
    assert draft.model.config.num_iterations == [1, 1, 0]
    assert candidate_plans(model) == [[1, 1, 0], [2, 2, 2]]
    model.set_num_iterations([2, 2, 2])
    assert candidate_plans(model) == [[1, 1, 0]]
    model.set_num_iterations([1, 1, 0])
    assert load_draft("self", model, identify_model(model, elastic)).model.config.num_iterations == [0, 0, 0]
    words = ["--prompt", "class", "--max-new-tokens", 6, "--json"]
    plain, drafted = (iiad("generate", elastic, *words, *more) for more in ([], ["--draft", "self"]))
    assert json.loads(plain[1])["texts"] == json.loads(drafted[1])["texts"]


def test_from_pretrained_takes_any_plan_and_says_which_are_none_of_the_trained(elastic, capsys, caplog):
    def remarks(plan):
        caplog.clear()
        logging.enable_propagation()
        try:
            model = AutoModelForCausalLM.from_pretrained(elastic, num_iterations=plan)
        finally:
            logging.disable_propagation()
        assert model.config.num_iterations == plan
        return [line for line in caplog.messages if "trained plans" in line]

    verbosity = logging.get_verbosity()
    logging.set_verbosity_warning()
    try:
        assert remarks([2, 2, 2]) == []
        assert set(remarks([2, 2, 0])) == {
            "num_iterations: [2, 2, 0] is none of the trained plans, full, cut-30, cut-75"
        }
    finally:
        logging.set_verbosity(verbosity)


def test_the_list_changes_no_fingerprint(elastic, folders):
    with_list, without = load_model(elastic), load_model(folders.teacher)
    assert identify_model(with_list, "a").fingerprint == identify_model(without, "a").fingerprint


GOOD = {"name": "a", "num_iterations": [1, 1, 1]}


@pytest.mark.parametrize(
    "plans",
    [
        [],
        {},
        "full",
        [1],
        [{"name": "a"}],
        [{**GOOD, "name": "../a"}],
        [{**GOOD, "name": "0.5"}],
        [{**GOOD, "name": 1}],
        [{**GOOD, "num_iterations": [1, 1]}],
        [{**GOOD, "num_iterations": [4, 1, 1]}],
        [{**GOOD, "num_iterations": [-1, 1, 1]}],
        [{**GOOD, "num_iterations": [True, 1, 1]}],
        [{**GOOD, "num_iterations": 1}],
        [{**GOOD, "nll": float("nan")}],
        [{**GOOD, "accuracy": 3}],
        [{**GOOD, "nll": "low"}],
        [{**GOOD, "more": 1}],
        [GOOD, GOOD],
        [GOOD] * 65,
    ],
)
def test_a_configuration_with_another_list_is_refused(plans, elastic, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(elastic, folder)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "plans": plans}))
    with refused("config.json", "plans: expected"):
        load_config(folder)
    with pytest.raises(ValueError, match="plans: expected"):
        IIETConfig(num_layers=3, num_iterations=3, plans=plans)


def test_an_encoder_decoder_lists_plans_of_both_halves(tmp_path):
    model = make_seq2seq(
        plans=[{"name": "full", "num_iterations": [3] * 5}, {"name": "b", "num_iterations": [1] * 5}]
    )
    model.save_pretrained(tmp_path)
    assert [plan["name"] for plan in AutoConfig.from_pretrained(tmp_path).plans] == ["full", "b"]
    assert resolve_plan("0.5", str(tmp_path)).num_iterations == [1] * 5
    with pytest.raises(ValueError, match="of 5 numbers from 0 to 3"):
        make_seq2seq(plans=[{"name": "a", "num_iterations": [1] * 2}])
