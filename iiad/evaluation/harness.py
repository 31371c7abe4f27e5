"""Tasks of lm-evaluation-harness (the extra `eval`), run in this process on a model in memory.

The harness builds requests, scores answers and takes standard errors, and its own HFLM runs the model, so that the
figures are those of `lm_eval run --model hf`; progress and remarks are ours. Importing this loads neither torch nor
lm_eval.
"""

from __future__ import annotations

import logging
import math
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from iiad.errors import InputError, one_line, require_least
from iiad.memory import memory_explained
from iiad.progress import print_status, progress, silenced

from .quality_artefact import EvaluationSettings, TaskMetric, TaskResult

__all__ = ["TaskSet", "Tasks", "require_harness"]

# Seeds of the harness's command line: for its random, numpy and torch, and for the choice of examples.
_RANDOM_SEED, _SEED = 0, 1234


@dataclass(frozen=True)
class Tasks:
    """Tasks to run, and how.

    names: tasks, groups, tags and patterns of the harness, YAML files, folders of them, or tasks that ship with iiad
        (piqa, blimp) where `data` names their file. The Python that a task names is run.
    num_fewshot: examples before a question; default: the task's; a task that says 0 keeps it.
    limit: documents of each task, or a share of them where it is below 1; default: all.
    data: NAME -> file, for tasks that ask for it (the harness calls it metadata).
    """

    names: Sequence[str]
    num_fewshot: int | None = None
    limit: float | None = None
    data: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise InputError for no names, or numbers that the harness does not take."""
        if not self.names:
            raise InputError("tasks: expected at least one name or folder, got none")
        require_least(0, num_fewshot=self.num_fewshot)
        if self.limit is not None and not self.limit > 0:
            raise InputError(f"limit: expected above 0, got {self.limit}")


def require_harness() -> str:
    """Return the version of lm-evaluation-harness. Raises InputError where it is not installed."""
    try:
        import lm_eval
    except ImportError as error:
        raise InputError(
            f"tasks: expected lm-eval (pip install 'iiad[eval]'), got {one_line(error)}"
        ) from None
    return str(lm_eval.__version__)


class TaskSet:
    """Tasks that are loaded, with their documents: `run` gives the scores of a model."""

    def __init__(self, tasks: Tasks) -> None:
        """Load tasks, and build a request of each. Raises InputError, naming the task that cannot be used."""
        self.settings, self.version = tasks, require_harness()
        self.loaded: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}}
        for name in tasks.names:
            with _harness_alone() as remarks:
                self._add(name, remarks)

    def describe(self) -> dict[str, Any]:
        """Return the fields of an evaluation's settings."""
        return {
            "harness": self.version,
            "num_fewshot": self.settings.num_fewshot,
            "limit": self.settings.limit,
        }

    def _add(self, name: str, remarks: _Remarks) -> None:
        try:
            found = _load(name, self.settings.data)
            for task in found["tasks"].values():
                shots, own = self.settings.num_fewshot, task.get_config("num_fewshot")
                if own is None or (shots is not None and own != 0):
                    task.set_config("num_fewshot", shots or 0)
                task.set_fewshot_seed(seed=_SEED)
                task.build_all_requests(limit=1)
        except InputError:
            raise
        except Exception as error:  # YAML, templates, Python and data of others may raise anything
            ships = name not in self.settings.data and _shipped(name) is not None
            advice = f"; --task-data {name}=FILE reads a file" if ships else ""
            raise InputError(f"tasks: {name}: {remarks.explain(error)}{advice}") from error
        for kind, loaded in self.loaded.items():
            for twice in loaded.keys() & found[kind].keys():
                raise InputError(f"tasks: expected each task once, got {twice} twice")
            loaded.update(found[kind])

    def run(
        self, model: Any, tokenizer: Any, name: str, settings: EvaluationSettings, share: float = 1.0
    ) -> dict[str, TaskResult]:
        """Run the tasks on a model of transformers, on its device. Return the scores of each task and group.

        name: of the model, in progress and errors. settings: batch size, and dtype for autocast. share: of all work
        left. Raises InputError: a task fails, a request does not fit the model's context, memory runs out.
        """
        import numpy as np
        import torch
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        random.seed(_RANDOM_SEED)
        np.random.seed(_SEED)
        torch.manual_seed(_SEED)
        for task in self.loaded["tasks"].values():
            task.set_fewshot_seed(seed=_SEED)
        autocast = None if settings.dtype == "float32" else settings.dtype
        options = {"batch_size": settings.batch_size, "mixed_precision_dtype": autocast}
        with _harness_alone() as remarks:
            shown = _ShownModel(HFLM(pretrained=model, tokenizer=tokenizer, **options), name, share)
            limit = shown.max_length
            with (
                memory_explained(f"{name}: tasks", model, settings.batch_size, limit, cached=False),
                shown.faults_explained(remarks),
            ):
                scores = evaluate(
                    lm=shown, task_dict=self.loaded, limit=self.settings.limit, log_samples=False
                )
        if remarks.truncated:
            print_status(f"{name}: requests of more than its context of {limit} tokens lost their beginning")
        return {task: _describe(scores, task) for task in scores["results"]}


class _Remarks(logging.Handler):
    """Remarks of the harness for the user: its last error, and whether requests were cut."""

    error, truncated = "", False

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        self.truncated |= "runcat" in message
        if record.levelno >= logging.ERROR:
            self.error = message

    def explain(self, error: Exception) -> str:
        """Return an error in one line: with its cause, or what was logged where it says nothing itself."""
        if self.error and str(error) in ("", "None"):
            return self.error
        return ": ".join(one_line(each) for each in (error, error.__cause__) if each is not None)


@contextmanager
def _harness_alone() -> Iterator[_Remarks]:
    """Keep what the harness prints and logs to itself while the block runs; yield what is worth saying."""
    remarks, log = _Remarks(), logging.getLogger("lm_eval")
    log.addHandler(remarks)
    try:
        with silenced():
            yield remarks
    finally:
        log.removeHandler(remarks)


class _ShownModel:
    """An HFLM whose progress is shown as ours; all else is the HFLM's."""

    def __init__(self, lm: Any, name: str, share: float) -> None:
        self._lm, self._name, self._share = lm, name, share
        self._answering = False
        self._done = 0  # requests or windows that are answered and not yet shown
        lm.set_cache_hook(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lm, name)

    @contextmanager
    def faults_explained(self, remarks: _Remarks) -> Iterator[None]:
        """Turn a fault that is not the model's own into an InputError."""
        try:
            yield
        except InputError:
            raise
        except AssertionError as error:  # so the harness refuses requests
            limit = f"requests that fit a context of {self.max_length} tokens"
            got = one_line(error) if str(error) else "a longer or an empty answer"
            raise InputError(f"tasks: {self._name}: expected {limit}, got {got}") from error
        except Exception as error:
            if self._answering:
                raise
            raise InputError(f"tasks: {remarks.explain(error)}") from error

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests, each batch shown as it is done."""
        return self._answer("loglikelihood", requests, len(requests), "requests")

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests, each batch shown as it is done."""
        return self._answer("generate_until", requests, len(requests), "requests")

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests, each window of context shown as it is done: there may be few requests, and long ones."""
        lengths = (len(self.tok_encode(request.args[0])) for request in requests)
        windows = sum(math.ceil(length / self.max_length) for length in lengths)

        def count(_: Any, given: Any, __: Any) -> None:
            self._done += len(given[0])

        with self.model.register_forward_hook(count):
            return self._answer("loglikelihood_rolling", requests, windows, "windows")

    def add_partial(self, kind: str, request: Iterable[Any], answer: Any) -> None:
        """Count an answer: the hook that the harness calls with each, to keep it."""
        self._done += kind != "loglikelihood_rolling"

    def _answer(self, kind: str, requests: Sequence[Any], total: int, unit: str) -> list[Any]:
        def show(*_: Any) -> None:
            """Show what is done: before each pass, since a batch's answers come all at once after it."""
            done, self._done = self._done, 0
            if done:
                advance(done)

        self._answering = True
        with (
            progress(f"{self._name}: {kind}", total, unit, self._share) as advance,
            self.model.register_forward_pre_hook(show),
            # Again: a bar on a terminal shows what is printed meanwhile.
            open(os.devnull, "w") as nowhere,
            redirect_stdout(nowhere),
            redirect_stderr(nowhere),
        ):
            answers: list[Any] = getattr(self._lm, kind)(requests, disable_tqdm=True)
            show()
        self._answering = False
        return answers


def _load(name: str, data: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the tasks and groups of a name, a YAML file or a folder. Raises whatever their code does."""
    from lm_eval.tasks import TaskManager

    place = Path(name)
    if name in data and not place.exists():
        place = _shipped(name) or place
    if place.is_dir() or place.is_file():
        folder = place if place.is_dir() else place.parent
        manager = TaskManager(include_path=str(folder), include_defaults=False, metadata=dict(data))
        names = _list_roots(manager) if place.is_dir() else [str(place)]
        expected = "a folder with tasks (*.yaml)"
    else:
        expected, names = "a task of lm-eval, a YAML file or a folder", []
        if os.sep not in name:
            print_status("reading the list of the harness's tasks (about 20 s)")
            manager = TaskManager(metadata=dict(data))
            names = manager.match_tasks([name])
    if not names:
        raise InputError(f"tasks: expected {expected}, got {name}")
    loaded = manager.load(names)
    return {"tasks": loaded["tasks"], "groups": loaded.get("groups", {})}


def _shipped(name: str) -> Path | None:
    """Return the folder of a task that ships with iiad."""
    folder = Path(str(resources.files("iiad_recipes") / "tasks")) / Path(name).name
    return folder if folder.is_dir() and name == folder.name else None


def _list_roots(manager: Any) -> list[str]:
    """Return the groups and tasks of a manager that are in no group of its."""
    members: set[str] = set()
    for group in manager.all_groups:
        for member in manager.task_index[group].cfg.get("task") or ():
            members.add(member if isinstance(member, str) else member.get("task") or member.get("group"))
    return [name for name in (*manager.all_groups, *manager.all_subtasks) if name not in members]


def _describe(scores: Mapping[str, Any], task: str) -> TaskResult:
    """Return the entry of a task or group. The harness's keys are METRIC,FILTER and METRIC_stderr,FILTER."""
    found, better = scores["results"][task], scores["higher_is_better"].get(task, {})
    metrics = {}
    for key, value in found.items():
        metric, _, kind = key.partition(",")
        if kind and not metric.endswith("_stderr"):
            metrics[metric if kind == "none" else key] = TaskMetric(
                value=_finite(value),
                standard_error=_finite(found.get(f"{metric}_stderr,{kind}")),
                higher_is_better=better.get(metric),
            )
    counts = scores["n-samples"].get(task, {})
    return TaskResult(
        version=str(scores["versions"].get(task)),
        num_fewshot=scores["n-shot"].get(task),
        num_documents=counts.get("effective"),
        metrics=metrics,
    )


def _finite(value: Any) -> float | None:
    """Return a number that an artefact holds; None for another one, or none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if abs(number) <= 1e100 else None
