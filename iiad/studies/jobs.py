"""Jobs of a study: commands of `iiad`, one after another in a process of one thread, several jobs at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from iiad.errors import Unfinished
from iiad.files import read_json
from iiad.progress import format_duration, print_status

__all__ = ["Job", "Step", "run_jobs"]

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
UNFINISHED = 75
KNOWN_FROM = 0.2
"""Share of the work after which the time left is said: the first jobs may be the cheapest."""


@dataclass(frozen=True)
class Step:
    """One command. arguments: of `iiad`. output: the file or run folder that it makes."""

    arguments: tuple[str, ...]
    output: Path

    @property
    def is_done(self) -> bool:
        """True where the output is there; of a run where its record says so."""
        if not self.output.is_dir():
            return self.output.is_file()
        record = self.output / "run.json"
        return record.is_file() and bool(read_json(record).get("finished"))


@dataclass(frozen=True)
class Job:
    """Steps, in order. cost: of all of them, in any unit that is one for all jobs."""

    name: str
    steps: tuple[Step, ...]
    cost: float = 1.0

    @property
    def is_done(self) -> bool:
        """True where every step is."""
        return all(step.is_done for step in self.steps)


class _Workers:
    """The processes that run, to be ended together; each with a log of its own."""

    def __init__(self) -> None:
        self.running: set[subprocess.Popen[bytes]] = set()
        self.ending = False
        self.lock = threading.Lock()

    def run(self, job: Job, logs: Path) -> str:
        """Run the steps that are not done; return "" or, where one fails, its last line."""
        log = logs / f"{job.name}.log"
        with open(log, "ab") as file:
            with self.lock:
                if self.ending:
                    return "not run"
                worker = _start(job, file.fileno())
                self.running.add(worker)
            code = worker.wait()
            with self.lock:
                self.running.remove(worker)
        if code == UNFINISHED or self.ending:
            return "not finished"
        if code:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return f"exit code {code}: {lines[-1] if lines else 'no output'}"
        return ""

    def end(self) -> None:
        """Ask all to save and leave."""
        with self.lock:
            self.ending = True
            for worker in self.running:
                worker.terminate()


def _start(job: Job, log: int) -> subprocess.Popen[bytes]:
    """Start the steps that are not done, in a process of one thread."""
    steps = json.dumps([step.arguments for step in job.steps if not step.is_done])
    command = [sys.executable, "-m", "iiad_cli.worker", steps]
    environment = {**os.environ, **dict.fromkeys(THREADS, "1")}
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)


def run_jobs(jobs: Sequence[Job], logs: Path, num_processes: int, left_after: float = 0.0) -> dict[str, str]:
    """Run the jobs that are not done, `num_processes` at a time; return the reason for each that failed, by name.

    left_after: cost of what comes after these jobs, for the time left. Raises Unfinished after SIGTERM, and lets
    Ctrl-C through, with all processes ended.
    """
    waiting = [job for job in jobs if not job.is_done]
    logs.mkdir(parents=True, exist_ok=True)
    workers, failed = _Workers(), {}
    started, done, total = time.monotonic(), 0.0, sum(job.cost for job in waiting)
    with _ended_together(workers), ThreadPoolExecutor(num_processes) as pool:
        try:
            futures = {pool.submit(workers.run, job, logs): job for job in waiting}
            for future in as_completed(futures):
                job, problem = futures[future], future.result()
                if workers.ending:
                    continue
                done += job.cost
                seconds = (time.monotonic() - started) * (total - done + left_after) / done
                known = done >= KNOWN_FROM * total and total - done + left_after > 0
                left = f"; about {format_duration(seconds)} left" if known else ""
                if problem:
                    failed[job.name] = problem
                print_status(f"{job.name}: {problem or 'done'}{left}")
        except KeyboardInterrupt:
            workers.end()
            raise
    if workers.ending:
        raise Unfinished("the study was ended; its runs are saved: continue with --resume")
    return failed


@contextmanager
def _ended_together(workers: _Workers) -> Iterator[None]:
    """End the workers on SIGTERM, too, where signals can be handled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: workers.end())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
