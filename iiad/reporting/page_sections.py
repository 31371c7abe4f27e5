"""Sections of a page: its story in the order of the pipeline, from what the sources hold."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from iiad.distillation.signal_record import SignalRecord
from iiad.evaluation.bench_artefact import Bench
from iiad.evaluation.check_artefact import Check
from iiad.evaluation.quality_artefact import Evaluation
from iiad.influence.profile import METRICS, Profile
from iiad.planning import LatencyTable, Plan, Verification, trade_off
from iiad.planning.family import Family
from iiad.planning.trust import assess_trust
from iiad.studies.study_artefact import StudyResult

from .artefact_tables import artefact_table
from .folder_tables import describe_state
from .page_charts import (
    bench_chart,
    curve_chart,
    evaluation_charts,
    loss_chart,
    study_charts,
    verification_chart,
)
from .page_maps import influence_map, plan_grid
from .page_parts import WIDTH, Cell, Code, Details, Grid, Part, Prose, Section, make_table, parts_of
from .plan_tables import CurveReport
from .profile_tables import profile_verdict
from .provenance import artefact_list, command_lines, data_table, versions
from .sources import Run, Source, Sources
from .tables import format_share
from .verification_tables import verification_verdict

__all__ = ["tell"]

MOST_OF_A_KIND = 12
"""Artefacts of a kind that are shown in full; the list of artefacts names all."""


def tell(sources: Sources) -> list[Section]:
    """Return the page's sections; one without anything to show is left out."""
    sections = [
        _study(sources),
        _influence(sources),
        _trade_off(sources),
        _plans(sources),
        _families(sources),
        _verification(sources),
        _training(sources),
        _quality(sources),
        _speed(sources),
        _latency(sources),
        _checks(sources),
        _signals(sources),
        _usage(sources),
        _provenance(sources),
    ]
    return [section for section in sections if section.parts]


def _sentence(text: str) -> Prose:
    return Prose(f"{text[:1].upper()}{text[1:]}")


def _map(profile: Profile, metric: str) -> list[Part]:
    return [influence_map(profile, metric), Prose(f"{metric}: {METRICS[metric]}.", "note")]


def _report(artefact: Any, details: bool = True) -> list[Part]:
    return parts_of(artefact_table(artefact, WIDTH, details))


def _titled(found: list[tuple[Source, Any]], of: Any) -> Iterator[Part]:
    """Yield what `of` makes of each artefact, under its file's name where there are several."""
    for number, (source, artefact) in enumerate(found[:MOST_OF_A_KIND]):
        if len(found) > 1:
            yield Prose(str(source.path), "heading")
        yield from of(number, source, artefact)
    if len(found) > MOST_OF_A_KIND:
        yield Prose(f"{len(found) - MOST_OF_A_KIND} more are in the list of artefacts.", "note")


def _influence(sources: Sources) -> Section:
    def parts(number: int, source: Source, profile: Profile) -> Iterator[Part]:
        trust = assess_trust(profile)
        yield _sentence(profile_verdict(profile, trust))
        first, *others = sorted(profile.scores, key=lambda metric: metric != trust.reference)
        yield from _map(profile, first)
        if others:
            yield Details("The other metrics", [part for metric in others for part in _map(profile, metric)])
        yield Details("Trust: errors, agreement of the metrics, fixed points, stability", _report(profile))

    lead = "How much each iteration of each layer contributes to the output."
    return Section("influence", "Influence", list(_titled(sources.of(Profile), parts)), lead)


def _trade_off(sources: Sources) -> Section:
    plans = [(source.path.name.removesuffix(".json"), plan) for source, plan in sources.of(Plan)]

    def parts(number: int, source: Source, profile: Profile) -> Iterator[Part]:
        curves = trade_off(profile, assess_trust(profile).reference)
        own = [(name, plan) for name, plan in plans if plan.profile_fingerprint == source.sha256]
        yield curve_chart(f"curve{number}", curves, own[:5])
        yield Details("All points", parts_of(CurveReport(curves, details=True)))

    lead = "What dropping iterations is predicted to cost."
    return Section("trade-off", "Trade-off", list(_titled(sources.of(Profile), parts)), lead)


def _plans(sources: Sources) -> Section:
    found = sources.of(Plan)

    def parts(number: int, source: Source, plan: Plan) -> Iterator[Part]:
        yield plan_grid(plan, "Iterations that each layer keeps")
        # The picture stands for the report's table of budgets. Of several plans, the costs are folded away.
        rest = [p for p in _report(plan) if not (isinstance(p, Grid) and p.headings[0] == "layer")]
        yield from rest if len(found) == 1 else [rest[0], Details("Costs", rest[1:])]

    lead = "Iterations per layer that the student runs."
    return Section("plan", "Plan", list(_titled(found, parts)), lead)


def _families(sources: Sources) -> Section:
    def parts(number: int, source: Source, family: Family) -> Iterator[Part]:
        yield from _report(family)

    lead = "Nested plans that one elastic student learns at once."
    return Section("family", "Plans for every budget", list(_titled(sources.of(Family), parts)), lead)


def _verification(sources: Sources) -> Section:
    def parts(number: int, source: Source, verification: Verification) -> Iterator[Part]:
        yield _sentence(verification_verdict(verification))
        yield verification_chart(f"verification{number}", verification)
        yield Details("All plans", _report(verification))

    lead = "Plans run on the untrained teacher: do the scores predict what they lose?"
    return Section(
        "verification", "Predicted against true", list(_titled(sources.of(Verification), parts)), lead
    )


def _training(sources: Sources) -> Section:
    parts: list[Part] = []
    runs = sources.runs
    if runs:
        headings = ["run", "command", "state", "step", "loss", "validation", "parameters", "plan"]
        parts.append(make_table("Runs", headings, [_run_row(run) for run in runs]))
        parts += [_elastic_table(run) for run in runs if run.status.model and run.status.model.plans]
    by_command: dict[str, list[Run]] = {}
    for run in runs:
        by_command.setdefault(run.record.command, []).append(run)
    for command, own in by_command.items():
        logs = [("" if len(own) == 1 else f"{run.folder.name}: ", run.log) for run in own if run.log]
        if logs:
            title = {"train": "Training", "distill": "Distillation"}.get(command, command)
            parts.append(loss_chart(f"losses-{command}", f"{title}: loss by stage", logs[:MOST_OF_A_KIND]))
    return Section("training", "Training and distillation", parts, "Losses of the runs, stage by stage.")


def _run_row(run: Run) -> list[Any]:
    stage, model = run.status.stage, run.status.model
    figures: dict[str, Any] = stage.figures if stage else {}

    def number(name: str) -> str:
        value = figures.get(name)
        return f"{value:.4f}" if isinstance(value, int | float) else "-"

    state = describe_state(run.status.finished, run.status.running)
    step = f"{stage.step:,} of {stage.max_steps:,}" if stage else "-"
    parameters = f"{model.num_parameters:,}" if model else "-"
    losses = (number("loss"), number("eval_loss"))
    plan = " ".join(map(str, model.num_iterations or [])) if model else ""
    return [str(run.folder), run.record.command, state, step, *losses, parameters, Cell(plan or "-")]


def _elastic_table(run: Run) -> Part:
    """Make the table of an elastic student's plans, each with its validation figures."""
    assert run.status.model is not None
    rows = [
        [
            plan.name,
            Cell(" ".join(map(str, plan.num_iterations))),
            "-" if plan.nll is None else f"{plan.nll:.4f}",
            "-" if plan.accuracy is None else format_share(plan.accuracy),
        ]
        for plan in run.status.model.plans
    ]
    headings = ["plan", "iterations per layer", "validation, nats per token", "accuracy"]
    return make_table(f"{run.folder.name}: one student for every budget", headings, rows)


def _quality(sources: Sources) -> Section:
    def parts(number: int, source: Source, evaluation: Evaluation) -> Iterator[Part]:
        yield from evaluation_charts(f"quality{number}", evaluation)
        yield from _report(evaluation)

    lead = "How good each model is, beside what it costs."
    return Section("quality", "Quality against cost", list(_titled(sources.of(Evaluation), parts)), lead)


def _speed(sources: Sources) -> Section:
    def parts(number: int, source: Source, bench: Bench) -> Iterator[Part]:
        chart = bench_chart(f"speed{number}", bench)
        yield from [chart] if chart else []
        # The settings and the first point of the grid; what takes the time, and the other points, are folded away.
        settings, first, *rest = _report(bench)
        yield from (settings, first, Details("Shares of the time, and all points", rest))

    lead = "Measured speed and memory beside what the evaluations predict."
    return Section("speed", "Speed", list(_titled(sources.of(Bench), parts)), lead)


def _latency(sources: Sources) -> Section:
    def parts(number: int, source: Source, table: LatencyTable) -> Iterator[Part]:
        yield from _report(table)

    lead = "Milliseconds of each layer by its iterations."
    return Section("latency", "Latency by layer", list(_titled(sources.of(LatencyTable), parts)), lead)


def _checks(sources: Sources) -> Section:
    def parts(number: int, source: Source, check: Check) -> Iterator[Part]:
        yield from _report(check)

    lead = "Claims about the model, each with the figure that decides it."
    return Section("checks", "Checks", list(_titled(sources.of(Check), parts)), lead)


def _signals(sources: Sources) -> Section:
    def parts(number: int, source: Source, record: SignalRecord) -> Iterator[Part]:
        yield from _report(record)

    lead = "Outputs of the teacher, stored to distil from."
    return Section("signals", "Stored signals", list(_titled(sources.of(SignalRecord), parts)), lead)


def _study(sources: Sources) -> Section:
    def parts(number: int, source: Source, result: StudyResult) -> Iterator[Part]:
        yield Prose(result.answer)
        yield from study_charts(f"study{number}", result)
        yield from (part for part in _report(result) if part != Prose(result.answer))

    found = sources.of(StudyResult)
    lead = "Arms, seeds and students; profile, plans and runs below are those of the first seed."
    return Section("study", "Study", list(_titled(found, parts)), lead)


_LOAD = """\
import iiad.models  # or pass trust_remote_code=True below, without iiad
from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained({folder!r})
tokenizer = AutoTokenizer.from_pretrained({folder!r})
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32)[0]))"""


def _usage(sources: Sources) -> Section:
    """Say how to load and serve the result: the last student, else the last model."""
    finished = [run for run in sources.runs if run.record.finished]
    students = [run for run in finished if run.record.command == "distill"]
    folders = [str(run.folder) for run in students or finished] or [model.folder for model in sources.models]
    if not folders:
        return Section("use", "Load and serve")
    folder = folders[-1]
    pairs = any(
        run.status.model is not None and "seq2seq" in run.status.model.model_type
        for run in finished
        if str(run.folder) == folder
    )
    auto = "AutoModelForSeq2SeqLM" if pairs else "AutoModelForCausalLM"
    quoted = shlex.quote(folder)
    commands = f"iiad generate {quoted} --prompt 'Once upon a time'\niiad check {quoted}"
    parts: list[Part] = [
        Code(_LOAD.format(auto=auto, folder=folder), "Python, with transformers"),
        Code(commands, "Command line"),
    ]
    if not pairs:
        serve = f"python -m vllm.entrypoints.openai.api_server --model {quoted} --trust-remote-code"
        parts.append(Code(serve, "vLLM's server; see docs/serving.md for its environment and options"))
    return Section("use", "Load and serve", parts, "The result is an ordinary Hugging Face model.")


def _provenance(sources: Sources) -> Section:
    commands, data = command_lines(sources), data_table(sources)
    parts: list[Part] = [artefact_list(sources)]
    parts += [data] if data else []
    parts += [commands] if commands.text else []
    parts.append(Prose(f"Versions: {versions(sources)}.", "note"))
    return Section("provenance", "What was done", parts, "Files, data, hashes, commands and versions.")
