"""Conduct a study: learning rates, arms, then students; every run is an ordinary run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from iiad import __version__
from iiad.errors import InputError
from iiad.evaluation.quality_artefact import Evaluation
from iiad.files import write_text
from iiad.influence.profile import Profile
from iiad.outputs import lock_folder
from iiad.planning import LatencyTable, Plan, Targets, baseline_plans, plan_by_target
from iiad.progress import print_status
from iiad.training.estimates import USUAL_VOCABULARY, training_flops
from iiad.training.recipe_files import find_recipe
from iiad.training.recipes import TrainRecipe, require_inputs

from .definition import Study
from .jobs import Job, Step, run_jobs
from .results import Model, collect, student_name
from .study_artefact import PlanKind, StudyResult

__all__ = ["RESULT", "STUDY", "Conduct", "claim_folder", "conduct_study"]

STUDY = "study.yaml"
RESULT = "study.json"


def conduct_study(
    study: Study,
    output_dir: str | Path,
    *,
    resume: bool = False,
    num_processes: int = 1,
    show: Callable[[Any], None] | None = None,
) -> StudyResult:
    """Run what is not finished of a study in output_dir; write and return study.json.

    num_processes: runs at a time, of one thread each. show: called with profile and plans as they are made.
    Raises InputError for data that is not here, and for a folder that holds another study or is not to be resumed,
    and Unfinished after SIGTERM. Runs that fail are listed in the result; the others go on.
    """
    for arm in study.arms:
        require_inputs(study.recipe_of(arm))
    folder = Path(output_dir)
    with lock_folder(folder):
        claim_folder(folder, study, resume)
        result = Conduct(study, folder, num_processes, show or (lambda made: None)).run()
        result.save(folder / RESULT)
    return result


def claim_folder(folder: Path, study: Study, resume: bool) -> None:
    """Write the study's file. Raises InputError where another one lies there, or it must be resumed."""
    text = yaml.safe_dump(study.model_dump(mode="json", exclude_unset=True), sort_keys=False)
    path = folder / STUDY
    if not path.exists():
        if any(not file.name.startswith(".") for file in folder.iterdir()):
            raise InputError(f"{folder}: is not empty and holds no study; name another folder")
        write_text(path, text)
    elif path.read_text(encoding="utf-8") != text:
        raise InputError(f"{folder}: holds another study ({path} differs); name another folder")
    elif not resume:
        raise InputError(f"{folder}: holds this study; continue it with --resume")


@dataclass
class Conduct:
    """A study under way in its folder. show: called with profile and plans of the first seed."""

    study: Study
    folder: Path
    num_processes: int
    show: Callable[[Any], None]

    def __post_init__(self) -> None:
        self.failed: dict[str, str] = {}
        self.models: list[Model] = []
        self.num_runs = 0

    def run(self) -> StudyResult:
        """Run all phases and collect the result."""
        study = self.study
        rates: dict[str, float | None] = dict.fromkeys(study.arms)
        tried: dict[str, dict[str, float]] = {arm: {} for arm in study.arms}
        if study.learning_rates:
            jobs = {
                (arm, rate): self.training_job(arm, study.seeds[0], rate, tuning=True)
                for arm in study.arms
                for rate in study.learning_rates
            }
            self.run_all("learning rates", list(jobs.values()))
            for arm in study.arms:
                found = {rate: self.nll_of(jobs[arm, rate]) for rate in study.learning_rates}
                known = {rate: nll for rate, nll in found.items() if nll is not None}
                tried[arm] = {f"{rate:g}": nll for rate, nll in known.items()}
                if known:
                    rates[arm] = min(known, key=lambda rate: known[rate])
                    print_status(f"{arm}: learning rate {rates[arm]:g} of {', '.join(tried[arm])}")
        arms = [arm for arm in study.arms if rates[arm] is not None or not study.learning_rates]
        jobs_of_arms = {
            (arm, seed): self.training_job(arm, seed, rates[arm]) for arm in arms for seed in study.seeds
        }
        self.run_all("arms", list(jobs_of_arms.values()))
        self.models = [
            Model(arm=arm, seed=seed, run=job.steps[0].output, evaluation=job.steps[-1].output)
            for (arm, seed), job in jobs_of_arms.items()
            if job.is_done
        ]
        if study.students is not None:
            teachers = [model for model in self.models if model.arm == study.students.teacher]
            self.models += self.run_students(teachers, rates.get(study.students.teacher))
        return collect(study, rates, tried, self.models, self.failed, self.num_runs, __version__)

    def run_all(self, phase: str, jobs: list[Job]) -> None:
        """Run jobs and note what failed."""
        self.num_runs += len(jobs)
        missing = sum(not job.is_done for job in jobs)
        print_status(f"\n{phase}: {len(jobs)} runs, {len(jobs) - missing} of them finished before")
        self.failed |= run_jobs(jobs, self.folder / "logs", self.num_processes)

    def training_job(
        self,
        arm: str,
        seed: int,
        rate: float | None,
        plan: list[int] | None = None,
        name: str | None = None,
        tuning: bool = False,
    ) -> Job:
        """Train one model of an arm, under a plan if one is given, and evaluate it; tuning: by its loss alone."""
        name = name or f"{arm}{'' if rate is None else f'-lr{rate:g}'}-seed{seed}"
        settings = self.study.settings_of(arm, seed, rate)
        if plan is not None:
            split = self.study.recipe_of(arm).model.num_encoder_layers or 0
            settings.append(f"model.num_iterations={plan[split:]}")
            settings += [f"model.num_encoder_iterations={plan[:split]}"] if split else []
        run = self.folder / "runs" / name
        train = ["train", _recipe(self.study.train), *_set(settings), "--output-dir", str(run), "--resume"]
        texts = self.study.texts is not None and not tuning
        output = None if texts or self.study.texts is None else run.with_name(f"{run.name}.loss.json")
        steps = (Step(tuple(train), run), self.evaluation_of(run, output=output, texts=texts))
        return Job(name, steps, cost_of(self.study.recipe_of(arm)))

    def evaluation_of(
        self, run: Path, plan: Path | None = None, output: Path | None = None, texts: bool = True
    ) -> Step:
        """Evaluate a model on the validation data of the reference, so that all are measured alike.

        texts: score its texts too, if the study does.
        """
        output = output or run.with_name(f"{run.name}.evaluation.json")
        recipe = self.study.recipe_of(self.study.reference)
        options = ["--data", *recipe.data.validation, "--text-field", recipe.data.text_field]
        options += ["--block-size", str(max(recipe.batch.lengths))]
        for side in ("source", "target"):
            if (most := getattr(recipe.data, f"max_{side}_tokens")) is not None:
                options += [f"--max-{side}-tokens", str(most)]
        options += ["--cut-sources"] * (recipe.data.long_sources == "cut")
        batch_size, made = recipe.training.per_device_train_batch_size, self.study.texts
        if made is not None and texts:
            batch_size = made.batch_size
            options += made.options
        options += ["--batch-size", str(batch_size), "--dtype", "float32"]
        if self.study.evaluation_tokens is not None:
            options += ["--max-tokens", str(self.study.evaluation_tokens)]
        if plan is not None:
            options += ["--plan", str(plan)]
        return Step(("evaluate", str(run), *options, "--output", str(output)), output)

    def nll_of(self, job: Job) -> float | None:
        """Return the loss of a model that was evaluated."""
        return Evaluation.load(job.steps[-1].output).results[0].on_text.nll if job.is_done else None

    def run_students(self, teachers: list[Model], rate: float | None) -> list[Model]:
        """Profile each teacher, plan the cuts, measure them untrained, distil, and train from scratch."""
        jobs = {teacher.seed: self.profile_job(teacher) for teacher in teachers}
        self.run_all("profiles", list(jobs.values()))
        made: list[tuple[Model, Job]] = []
        for teacher in teachers:
            if not jobs[teacher.seed].is_done:
                continue
            profile = Profile.load(jobs[teacher.seed].steps[0].output)
            if teacher is teachers[0]:
                self.show(profile)
            for cut, kind, plan in self.make_plans(teacher, profile):
                made += self.student_jobs(teacher, cut, kind, plan, rate)
        self.run_all("students", [job for _, job in made])
        return [model for model, job in made if job.is_done]

    def profile_job(self, teacher: Model) -> Job:
        """Profile a teacher on its training data and, where a plan needs it, time its layers."""
        section, recipe = self.study.students, self.study.recipe_of(teacher.arm)
        assert section is not None
        output = teacher.run.with_name(f"{teacher.run.name}.profile.json")
        lengths = recipe.batch.lengths
        metrics = sorted({section.metric, "kl"})
        options = [part for metric in metrics for part in ("--metric", metric)]
        options += ["--max-tokens", str(max(sum(lengths), section.calibration_tokens))]
        options += ["--block-size", str(max(lengths))]
        options += ["--data", *recipe.data.train, "--text-field", recipe.data.text_field, "--resume"]
        steps = [Step(("profile", str(teacher.run), *options, "--output", str(output)), output)]
        if "latency" in section.baselines:
            steps.append(_timing_of(teacher, lengths))
        return Job(f"{teacher.run.name}-profile", tuple(steps), 0.1 * cost_of(recipe))

    def make_plans(self, teacher: Model, profile: Profile) -> Iterator[tuple[float, PlanKind, Path]]:
        """Write the plans of all cuts that are not there; yield each with its cut and kind."""
        section = self.study.students
        assert section is not None
        for cut in section.cuts:
            by_influence = plan_by_target(profile, Targets(overhead_cut=cut), section.metric)
            drawn = dict(
                baseline_plans(
                    profile.model, sum(by_influence.num_iterations), 1, self.study.seeds[0] + teacher.seed
                )
            )
            plans: dict[PlanKind, Plan] = {"influence": by_influence}
            for baseline in section.baselines:
                if baseline == "latency":
                    plan = _as_fast(
                        by_influence, profile, section.metric, LatencyTable.load(_latency_of(teacher))
                    )
                else:
                    budget = drawn["uniform" if baseline == "uniform" else "random 1"]
                    plan = Plan.explicit(budget, profile.model)
                if plan.num_iterations != by_influence.num_iterations:
                    plans[baseline] = plan
            for kind, plan in plans.items():
                path = teacher.run.with_name(f"{student_name(teacher.run.name, cut, kind)}.plan.json")
                if not path.exists():
                    plan.save(path)
                if kind == "influence" and teacher.seed == self.study.seeds[0]:
                    self.show(plan)
                yield cut, kind, path

    def student_jobs(
        self, teacher: Model, cut: float, kind: PlanKind, plan: Path, rate: float | None
    ) -> Iterator[tuple[Model, Job]]:
        """Yield the jobs of one plan: the truncated teacher, distilled and, where asked, from scratch."""
        study, section = self.study, self.study.students
        assert section is not None
        name = student_name(teacher.run.name, cut, kind)
        cost = cost_of(study.recipe_of(teacher.arm))
        budget = Plan.load(plan).num_iterations

        def model(training: Any, run: Path, evaluation: Path) -> Model:
            return Model(
                teacher.arm, teacher.seed, run, evaluation, cut, kind, training, plan, teacher.evaluation
            )

        untrained = teacher.run.with_name(f"{name}.untrained.json")
        step = self.evaluation_of(teacher.run, plan, untrained)
        yield model("none", teacher.run, untrained), Job(f"{name}-untrained", (step,), 0.02 * cost)
        run = self.folder / "runs" / f"{name}-distilled"
        lesson = ["distill", str(teacher.run), str(plan), "--recipe", _recipe(section.distill)]
        lesson += [*_set(study.lesson_settings(teacher.seed)), "--output-dir", str(run), "--resume"]
        steps = (Step(tuple(lesson), run), self.evaluation_of(run))
        yield model("distilled", run, steps[1].output), Job(f"{name}-distilled", steps, 0.5 * cost)
        if section.from_scratch and kind == "influence":
            job = self.training_job(teacher.arm, teacher.seed, rate, budget, f"{name}-scratch")
            yield model("from scratch", job.steps[0].output, job.steps[1].output), job


def _latency_of(teacher: Model) -> Path:
    return teacher.run.with_name(f"{teacher.run.name}.latency.json")


def _timing_of(teacher: Model, lengths: Sequence[int]) -> Step:
    """Time a teacher's layers; lengths: as in `BatchShape`. Of a block one half is read and the other made."""
    read, made = lengths if len(lengths) > 1 else (lengths[0] // 2, lengths[0] // 2)
    table = _latency_of(teacher)
    sizes = ("--prompt-tokens", str(read), "--new-tokens", str(made))
    options = (*sizes, "--dtype", "float32", "--output", str(table))
    return Step(("bench", str(teacher.run), "--layers", *options), table)


def _as_fast(plan: Plan, profile: Profile, metric: str, table: LatencyTable) -> Plan:
    """Return the plan of least predicted loss that takes no longer: of a sentence where the table has one."""
    phase = table.phases[-1]
    most = 1000 * table.phase(phase).seconds(plan.num_iterations)
    return plan_by_target(profile, Targets(max_latency_ms=most, phase=phase), metric, latency=table)


def _recipe(name: str) -> str:
    return str(find_recipe(name))


def _set(settings: list[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def cost_of(recipe: TrainRecipe) -> float:
    """Return the training's floating-point operations, estimated; 1 for a model that is trained on."""
    model = recipe.model
    if model.path is not None:
        return 1.0
    return training_flops(model, recipe.training, recipe.vocab_size or USUAL_VOCABULARY, recipe.batch)
