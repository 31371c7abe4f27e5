"""Artefacts, data and versions of a page, and the commands that make its artefacts again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from iiad.evaluation.bench_artefact import Bench
from iiad.evaluation.check_artefact import Check
from iiad.influence.profile import METRICS, Profile
from iiad.planning.plan import Plan

from .page_parts import Cell, Code, Grid, make_table
from .sources import Run, Sources, models_of

__all__ = ["artefact_list", "command_lines", "data_table", "versions"]


def artefact_list(sources: Sources) -> Grid:
    """List the artefacts: what each is, of which model, and the sha256 of its file."""
    rows = []
    for source in sources.files:
        artefact = source.artefact
        names = ", ".join(dict.fromkeys(model.name for model in models_of(artefact)))
        rows.append([artefact.kind, str(source.path), names or "-", _hash(source.sha256)])
    for run in sources.runs:
        state = "finished" if run.record.finished else "unfinished"
        rows.append([f"{run.record.command}, {state}", str(run.folder), "-", _hash(run.record.fingerprint)])
    rows += [[f"model, {model.model_type}", model.folder, "-", "-"] for model in sources.models]
    return make_table("Artefacts of this page", ["kind", "file or folder", "of", "sha256"], rows)


def _hash(sha256: str) -> Cell:
    return Cell(sha256[:12], tip=sha256, style="hash")


def data_table(sources: Sources) -> Grid | None:
    """List every text that was read, by what for, with its tokens and hash; None where no artefact names any."""
    rows = []
    for source in sources.files:
        found = getattr(source.artefact, "data", None) or []
        for data in found if isinstance(found, list) else [found]:
            tokens = Cell(f"{data.num_tokens:,}", data.num_tokens)
            rows.append([source.artefact.kind, ", ".join(data.names) or "-", tokens, _hash(data.fingerprint)])
    for run in sources.runs:
        section = run.record.settings.get("data")
        names: dict[str, Any] = section if isinstance(section, dict) else {}
        for name, field in (("data", "train"), ("validation", "validation")):
            if sha256 := run.record.inputs.get(name):
                words = ", ".join(map(str, names.get(field) or [])) or "-"
                rows.append([f"{run.folder.name}, {field}", words, "-", _hash(sha256)])
    return make_table("Data", ["read by", "names", "tokens", "sha256"], rows) if rows else None


def versions(sources: Sources) -> str:
    """Return the versions and machines that the artefacts name."""
    from iiad import __version__

    found = [f"page by iiad {__version__}"]
    for artefact in (source.artefact for source in sources.files):
        settings = getattr(artefact, "settings", None)
        fields = {"torch": "torch_version", "transformers": "transformers_version", "lm-eval": "harness"}
        named = {name: getattr(settings, field, None) for name, field in fields.items()}
        named[getattr(settings, "device", "")] = getattr(settings, "device_name", None)
        named[f"{artefact.kind} by iiad"] = getattr(artefact, "iiad_version", None)
        found += [f"{name} {value}" for name, value in named.items() if value]
    return ", ".join(dict.fromkeys(found))


def command_lines(sources: Sources) -> Code:
    """Return commands, in order, that make the artefacts again, from what these record."""
    lines = [shlex.join(words) for words in _commands(sources)]
    return Code("\n".join(lines), "Commands that make these again, from what the artefacts record.")


def _commands(sources: Sources) -> Iterator[list[str]]:
    yield from (_run(run) for run in sources.runs if run.record.command == "train")
    for source, profile in sources.of(Profile):
        yield [*_profile(profile), "--output", str(source.path)]
    for source, plan in sources.of(Plan):
        if plan.origin != "explicit":
            yield [*_plan(sources, plan), "--output", str(source.path)]
    yield from (_run(run) for run in sources.runs if run.record.command != "train")
    for source, bench in sources.of(Bench):
        yield [*_bench(bench), "--output", str(source.path)]
    for source, check in sources.of(Check):
        teacher = ["--teacher", check.teacher.name] if check.teacher else []
        yield ["iiad", "check", check.model.name, *teacher, "--output", str(source.path)]


def _options(**values: Any) -> list[str]:
    """Return options of these names and values; of a list one option each."""
    return [
        word
        for name, value in values.items()
        for each in (value if isinstance(value, list) else [] if value is None else [value])
        for word in (f"--{name.replace('_', '-')}", str(each))
    ]


def _run(run: Run) -> list[str]:
    settings, recipe = run.record.settings, str(run.folder / "recipe.yaml")
    again = _options(output_dir=f"{run.folder}-again")
    if run.record.command == "train":
        return ["iiad", "train", recipe, *again]
    given = [str(settings[name]) for name in ("teacher", "plan") if settings.get(name)]
    return ["iiad", "distill", *given, "--recipe", recipe, *again]


def _profile(profile: Profile) -> list[str]:
    names = ("max_tokens", "block_size", "batch_size", "seed", "dtype")
    options = {name: getattr(profile.settings, name) for name in names}
    if set(profile.scores) != set(METRICS):  # all are the default
        options["metric"] = list(profile.scores)
    data = [word for part in profile.data for word in ("--data", *part.names)]
    return ["iiad", "profile", profile.model.name, *data, *_options(**options)]


def _plan(sources: Sources, plan: Plan) -> list[str]:
    profiles = [source.path for source, _ in sources.of(Profile) if source.sha256 == plan.profile_fingerprint]
    targets = plan.targets.given if plan.targets else {}
    words = ["iiad", "plan", str(profiles[0]) if profiles else "profile.json", "--metric", str(plan.metric)]
    words += _options(threshold=plan.threshold, normalize=plan.normalize, **targets)
    if plan.targets and plan.targets.limits_latency:
        words += ["--latency", "latency.json", "--phase", plan.targets.phase]
    if plan.bounds:
        labels, bounds = plan.teacher.layer_labels(), plan.bounds
        pins = [f"{labels[layer - 1]}={r}" for layer, r in bounds.pins.items() if layer <= len(labels)]
        words += _options(
            min_iterations=bounds.min_iterations, max_iterations=bounds.max_iterations, pin=pins
        )
    return words


def _bench(bench: Bench) -> list[str]:
    settings = bench.settings
    models = dict.fromkeys(result.model.name for result in bench.results)
    names = ("batch_size", "prompt_tokens", "new_tokens", "repeats", "seed", "dtype")
    return ["iiad", "bench", *models, *_options(**{name: getattr(settings, name) for name in names})]
