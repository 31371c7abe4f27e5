"""A page holds what its artefacts say, escaped and bounded, and nothing that reaches out of it."""

import base64
import hashlib
import os
import re
import shlex
from contextlib import suppress
from html.parser import HTMLParser
from itertools import product

import pytest
import typer

from cli.main import app
from iiad.errors import InputError
from iiad.planning import Plan, plan_by_threshold
from iiad.reporting import page as page_module
from iiad.reporting.page import MOST_BYTES, render_page, write_page
from iiad.reporting.page_colours import LEVELS, THEMES, contrast
from iiad.reporting.page_parts import make_table, parts_of, sort_key
from iiad.reporting.provenance import command_lines
from iiad.reporting.sources import gather
from iiad.reporting.tables import filled_table
from iiad.studies.estimation import estimate
from iiad.studies.study_artefact import ArmResult, SeedFigures, StudentResult, StudyResult
from tests.cli.test_hostile_artefacts import FIELDS, MAYBE, SAMPLES, changed, chosen, places
from tests.helpers import make_profile, refused
from tests.helpers import make_table as make_latency
from tests.reporting.test_verification_report import make_verification

HOSTILE = '<script>alert("x")</script>\'"&${{ 7 * 7 }}'


class Page(HTMLParser):
    """Parts of a page that tests look at: its text, ids, and elements by name with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.elements = [], [], []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in ("style", "script"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open and tag == self.open[-1]:
            self.open.pop()

    def handle_data(self, data):
        if not self.open:
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def save(folder, *artefacts):
    for number, artefact in enumerate(artefacts):
        artefact.save(folder / f"{artefact.kind}-{number}.json")
    return folder


@pytest.fixture
def experiment(tmp_path):
    """A folder with a profile, a plan by it, a verification and a latency table of one teacher."""
    profile = make_profile()
    folder = tmp_path / "experiment"
    verification = make_verification()
    verification = verification.model_copy(update={"model": profile.model})
    return save(folder, profile, plan_by_threshold(profile, 0.1), verification, make_latency(profile.model))


def test_a_page_tells_the_story_of_its_artefacts(experiment, tmp_path):
    write_page([experiment], tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    headings = [
        "Influence",
        "Trade-off",
        "Plan",
        "Predicted against true",
        "Latency by layer",
        "What was done",
    ]
    places = [page.text.index(heading) for heading in headings]
    assert places == sorted(places)
    for words in (
        "layer 3",
        "kept",
        "dropped",
        "predicted loss",
        "iiad profile teacher",
        "a CPU",
        "aaaaaaaaaaaa",
    ):
        assert words in page.text
    assert [tag for tag, _ in page.elements].count("h1") == 1


def test_scores_are_in_the_map_as_text_and_with_their_error_on_hover(experiment):
    page = Page(render_page(gather([experiment])))
    tips = [cell.get("data-tip") for cell in page.all("td") if "level" in (cell.get("class") or "")]
    assert "layer 3, iteration 1: 0.3 ± 0.03 nats per token" in tips
    assert "0.30" in page.text


def test_every_mark_of_a_chart_has_its_value_and_every_chart_a_text_and_a_table(experiment):
    page = Page(render_page(gather([experiment])))
    pictures = page.all("svg")
    assert len(pictures) >= 2
    assert all(picture["role"] == "img" and len(picture["aria-label"]) > 20 for picture in pictures)
    marks = [each for each in page.all("use") if each.get("class") == "mark"]
    assert marks
    assert all("nats per token" in mark["data-tip"] or "true" in mark["data-tip"] for mark in marks)


def test_a_page_reaches_nothing_outside_and_runs_no_script_but_its_own(experiment):
    text = render_page(gather([experiment]))
    page = Page(text)
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "action", "srcset", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:,")), attributes
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"url\((?!#)|@import", text)
    [policy] = [each["content"] for each in page.all("meta") if each.get("http-equiv")]
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "script-src 'unsafe" not in policy


def test_ids_are_unique_and_links_within_the_page_lead_somewhere(experiment):
    page = Page(render_page(gather([experiment])))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    links = [each.get("href") or each.get("xlink:href") for tag in ("a", "use") for each in page.all(tag)]
    assert {link.removeprefix("#") for link in links} <= set(ids)


def test_names_with_markup_are_shown_as_they_are_and_never_become_elements(tmp_path):
    profile = make_profile()
    model = profile.model.model_copy(update={"name": HOSTILE})
    data = [profile.data[0].model_copy(update={"names": [HOSTILE]})]
    profile = profile.model_copy(update={"model": model, "data": data})
    save(tmp_path, profile, Plan.explicit([1, 0, 0], model))
    page = Page(render_page(gather([tmp_path])))
    assert HOSTILE in page.text
    assert len(page.all("script")) == 1
    assert "49" not in re.findall(r"\$\S+", page.text)


def test_layers_of_an_encoder_decoder_go_by_the_names_of_their_halves(tmp_path):
    model = make_profile().model.model_copy(update={"model_type": "iiet_seq2seq", "num_encoder_layers": 2})
    profile = make_profile(model=model)
    page = Page(render_page(gather([save(tmp_path, profile, plan_by_threshold(profile, 0.1))])))
    words = [
        "embedding of the source",
        "encoder 1",
        "encoder 2",
        "embedding of the target",
        "decoder 1",
        "norm and head",
    ]
    plan = page.text[page.text.index("Iterations that each layer keeps") :]
    places = [plan.index(word) for word in words]
    assert places == sorted(places)
    assert any("decoder 1, iteration 1: 0.3" in (cell.get("data-tip") or "") for cell in page.all("td"))


def test_every_artefact_can_be_on_a_page_and_quality_has_a_chart_for_text_texts_and_tasks(tmp_path):
    for name, sample in SAMPLES.items():
        if name != "run":
            sample.save(tmp_path / f"{name}.json")
            page = Page(render_page(gather([tmp_path / f"{name}.json"])))
            assert page.text.count("against cost") >= 2 or name != "evaluation"


def test_the_commands_of_a_page_are_commands_with_options_that_exist(tmp_path):
    commands, found = typer.main.get_command(app).commands, {}
    for name, sample in SAMPLES.items():
        if name != "run":
            sample.save(tmp_path / f"{name}.json")
            for line in command_lines(gather([tmp_path / f"{name}.json"])).text.splitlines():
                program, command, *words = shlex.split(line)
                parameters = commands[command].params
                assert program == "iiad"
                assert {word for word in words if word.startswith("--")} <= {
                    option for each in parameters for option in each.opts
                }, line
                found[name] = command
    assert set(found.values()) == {"profile", "plan", "bench", "check"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "run"])
def test_whatever_value_an_artefact_may_hold_its_page_can_be_drawn(name, tmp_path):
    file, num_drawn = tmp_path / "file.json", 0
    for path in places(name):
        for value in chosen(MAYBE, path, 0.3):
            file.write_text(changed(FIELDS[name], path, value))
            with suppress(InputError):
                assert len(render_page(gather([file])).encode()) <= MOST_BYTES
                num_drawn += 1
    assert num_drawn


def make_study(num_students):
    runs = [SeedFigures(seed=0, nll=1.0, accuracy=0.5, seconds=1.0)]
    figures = {"runs": runs, "nll": estimate([1.0]), "accuracy": estimate([0.5])}
    arm = {"learning_rate": 0.1, "tried": {}, "parameters": 10, "evaluations_per_token": 4, "tokens": 9}
    nothing = {"training_flops": 1.0, "nll_difference": None, "accuracy_difference": None}
    student = StudentResult(
        cut=0.5,
        plan="influence",
        training="none",
        overhead_cut=0.5,
        evaluations_per_token=3.0,
        retained=estimate([0.9]),
        **figures,
    )
    return StudyResult(
        definition={},
        iiad_version="0",
        reference="arm",
        arms=[ArmResult(name="arm", **arm, **figures, **nothing)],
        students=[student] * num_students,
        failed={f"run{n}": HOSTILE for n in range(num_students)},
        answer="Nothing.",
        num_runs=1,
    )


def test_a_study_of_a_hundred_thousand_rows_is_a_page_of_bounded_size_that_says_what_it_leaves_out(tmp_path):
    sources = gather([save(tmp_path, make_study(1))])
    [source] = sources.files
    sources.files[:] = [type(source)(source.path, make_study(100_000), source.sha256)]
    text = render_page(sources)
    assert len(text.encode()) <= MOST_BYTES
    assert "99,800 more rows are in the file" in text


def test_a_file_whose_name_is_no_utf8_is_named_in_escapes(tmp_path):
    make_profile().save(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.json"))
    assert r"\udcff.json" in render_page(gather([tmp_path]))


def test_a_plan_of_absurd_sizes_is_drawn_in_part(tmp_path):
    sizes = {"num_layers": 300, "num_iterations": [1000] * 300, "num_start_evaluations": 2**62}
    plan = Plan.explicit([7] * 300, make_profile().model.model_copy(update=sizes))
    page = Page(render_page(gather([save(tmp_path, plan)])))
    assert "7 of 1000" in page.text
    assert "layer 190" in page.text
    assert "layer 290" not in page.text
    assert "more rows are in the file" in page.text


def test_a_page_too_large_shows_fewer_rows(experiment, monkeypatch):
    whole = render_page(gather([experiment]))
    monkeypatch.setattr(page_module, "MOST_BYTES", len(whole.encode()) - 1)
    assert "more rows are in the file" in render_page(gather([experiment]))


def test_artefacts_of_different_teachers_are_refused_by_name(experiment):
    other = make_profile()
    other = other.model_copy(update={"model": other.model.model_copy(update={"fingerprint": "b" * 64})})
    other.save(experiment / "second.json")
    with refused(
        "expected an artefact of teacher (aaaaaaaaaaaa)", "got one of teacher (bbbbbbbbbbbb)", ".json"
    ):
        gather([experiment])


def test_a_folder_without_artefacts_other_files_and_broken_ones_are_refused(tmp_path):
    (tmp_path / "notes.json").write_text('{"kind": "plan of ours"}')
    with refused(tmp_path, "expected a folder with artefacts of iiad, got none"):
        gather([tmp_path])
    with refused("notes.json: kind: expected beams, bench"):
        gather([tmp_path / "notes.json"])
    with refused("nowhere.json: no such file"):
        gather([tmp_path / "nowhere.json"])
    (tmp_path / "plan.json").write_text('{"kind": "plan", "format_version": 1}')
    with refused("plan.json: teacher: is missing"):
        gather([tmp_path])


def test_of_a_study_the_page_shows_the_profile_and_plans_of_the_first_seed(tmp_path):
    make_study(1).save(tmp_path / "study.json")
    for seed in (0, 1, 10):
        profile = make_profile()
        teacher = profile.model.model_copy(update={"fingerprint": f"{seed:064}"})
        profile.model_copy(update={"model": teacher}).save(tmp_path / "runs" / f"arm-seed{seed}.profile.json")
        Plan.explicit([1, 0, 0], teacher).save(tmp_path / "runs" / f"arm-seed{seed}-cut0.5.plan.json")
    names = [source.path.name for source in gather([tmp_path]).files]
    assert names == ["arm-seed0.profile.json", "arm-seed0-cut0.5.plan.json", "study.json"]


def test_what_lies_beside_artefacts_is_passed_over(experiment):
    (experiment / "config.json").write_text('{"model_type": "of a data set"}')
    (experiment / "tokenizer.json").write_text("{}")
    (experiment / "checkpoint-3").mkdir()
    make_profile().save(experiment / "checkpoint-3" / "profile.json")
    sources = gather([experiment])
    assert (len(sources.files), sources.models) == (4, [])


def test_a_file_that_two_paths_name_is_there_once(experiment):
    assert len(gather([experiment, experiment / "profile-0.json"]).files) == len(gather([experiment]).files)


def test_without_matplotlib_the_page_has_its_tables(experiment, monkeypatch):
    monkeypatch.setattr("iiad.reporting.charts.has_charts", lambda: False)
    page = Page(render_page(gather([experiment])))
    assert not page.all("svg")
    assert "predicted loss (nats per token)" in page.text


def test_the_command_writes_a_page_and_refuses_bad_output_without_leaving_anything(
    iiad, experiment, tmp_path
):
    code, out, _ = iiad("report", experiment, "--output", tmp_path / "report.html")
    assert code == 0
    assert "4 artefacts" in out
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for output in (
        tmp_path / "report.html",
        experiment / "plan-1.json",
        experiment,
        experiment / "plan-1.json/x",
    ):
        code, out, err = iiad("report", experiment, "--output", output)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
    for name in ("plan-1.json", "profile-0.json"):
        code, _, err = iiad("report", experiment, "--output", experiment / name, "--overwrite")
        assert (code, len(err.splitlines())) == (2, 1)
        assert "which is an input" in err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert iiad("report", experiment, "--output", tmp_path / "report.html", "--overwrite")[0] == 0


def test_text_and_marks_stand_out_from_their_ground_in_both_themes():
    for theme in THEMES.values():
        for ground, ink in product(("ground", "raised"), ("ink", "muted", "link")):
            assert contrast(theme[ground], theme[ink]) >= 4.5, (ground, ink)
        for ink in ("good", "bad"):
            assert contrast(theme["ground"], theme[ink]) >= 4.5
        assert contrast(theme["kept"], theme["on-kept"]) >= 4.5
        assert contrast(theme["line"], theme["ink"]) >= 4.5
        for number in range(7):
            assert contrast(theme["ground"], theme[f"series-{number}"]) >= 3, number
    assert all(contrast(ground, ink) >= 4.5 for ground, ink in LEVELS)
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("55.0 %", 55),
        ("1.52x (1.40-1.60)", 1.52),
        ("1,234", 1234),
        ("1.5 KiB", 1536),
        ("-0.5 ± 0.1", -0.5),
        ("\N{MINUS SIGN}0.5", -0.5),
        ("1.2e-5", 1.2e-5),
        ("-", None),
        ("", None),
        ("plan", None),
    ],
)
def test_cells_sort_by_the_number_that_they_begin_with(text, key):
    assert sort_key(text) == key


def test_a_table_of_the_terminal_becomes_one_of_the_page():
    [grid] = parts_of(filled_table(["model", "speed\nup"], [["a", "2.0x"], ["b", "-"]]))
    assert grid == make_table("", ["model", "speed up"], [["a", "2.0x"], ["b", "-"]])
