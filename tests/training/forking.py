"""`iiad` in processes of its own that start at once: forked from one that has imported everything already.

As a script: for each line of stdin, the arguments of `_fork`, `processes` children run the command line; it prints
their process ids when they start, and their exit codes, negative for signals, when all have ended.
"""

from __future__ import annotations

import gc
import importlib
import itertools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.distributed.tensor import DTensor

ROOT = Path(__file__).parents[2]
MOMENTS = {
    "step": "iiad.training.loop.seed_step",
    "save": "torch.save",
    "loss": "iiad.training.learner.head_loss",
}
"""Called once in each step, save and loss."""


class Commands:
    """Runs `iiad`, one command at a time. folder: for what its processes write."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.training.forking"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, *arguments: object, processes: int = 1, **options: Any) -> list[int]:
        """Begin; the process ids. options: those of `_run`."""
        request = {"arguments": [str(argument) for argument in arguments], "folder": str(self.folder)}
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps({**request, "processes": processes, **options}) + "\n")
        self.server.stdin.flush()
        return self.read()

    def read(self) -> list[int]:
        """The exit codes of the command that runs, once it has ended."""
        assert self.server.stdout is not None
        return json.loads(self.server.stdout.readline())

    def run(self, *arguments: object, **options: Any) -> int:
        """From start to end; the exit code, which all processes have."""
        self.start(*arguments, **options)
        [code] = set(self.read())
        return code

    def errors(self, rank: int = 0) -> list[str]:
        """The lines that a process of the last command said."""
        return (self.folder / f"stderr-{rank}").read_text().splitlines()

    def found(self, rank: int = 0) -> dict[str, Any]:
        """Notes of a process of the last command on its models (see _watch)."""
        return json.loads((self.folder / f"found-{rank}").read_text())

    def close(self) -> None:
        """End the server."""
        self.server.communicate()


def _serve() -> None:
    for module in ("cli.main", "iiad.distillation.stages", "iiad.training.teacher"):
        importlib.import_module(module)
    gc.freeze()  # or each child's first collection would look at, and so copy, all that is here
    for line in sys.stdin:
        children = _fork(**json.loads(line))
        print(children, flush=True)
        print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children], flush=True)


def _fork(processes: int, joined: bool = True, **request: Any) -> list[int]:
    """joined: as ranks of one command; False: each by itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        children.append(os.fork())
        if children[-1] == 0:
            if processes > 1 and joined:
                ranks = {
                    "RANK": rank,
                    "LOCAL_RANK": rank,
                    "WORLD_SIZE": processes,
                    "LOCAL_WORLD_SIZE": processes,
                }
                address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                os.environ.update({name: str(value) for name, value in {**ranks, **address}.items()})
                importlib.reload(sys.modules["iiad.progress"])  # which looks at RANK as it is imported
            _run(rank, is_last=rank == processes - 1, **request)
    return children


def _run(
    rank: int,
    is_last: bool,
    arguments: list[str],
    folder: str,
    file_bytes: int | None = None,
    faults: Sequence[tuple[str, int, int]] = (),
) -> None:
    """Run a command line, here.

    file_bytes: no file may be longer, as if the disk were full. faults: moment, which one of its kind (from 1) and
    signal; at a loss 0, for NaN instead. They happen in the last process.
    """
    # Where the tests were started in a shell's background, Ctrl-C is ignored from the shell on down.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (1, 2):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        os.dup2(os.open(f"{folder}/stderr-{rank}", flags), stream)
    if file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    for fault in faults if is_last else ():
        _plant(*fault)
    _watch(Path(folder) / f"found-{rank}")
    sys.argv = ["iiad", *arguments]
    from cli import main

    main.run()


def _plant(moment: str, wanted: int, number: int) -> None:
    path, _, name = MOMENTS[moment].rpartition(".")
    module, calls = importlib.import_module(path), itertools.count(1)
    original = getattr(module, name)

    def function(*args: Any, **kwargs: Any) -> Any:
        is_due = next(calls) == wanted
        if is_due and number:
            os.kill(os.getpid(), number)
        found = original(*args, **kwargs)
        return found._replace(loss=found.loss * float("nan")) if is_due and not number else found

    setattr(module, name, function)


def _watch(path: Path) -> None:
    """Note sums of the weights that this process ends with, and parameters of a live teacher that are not sharded."""
    from iiad.distillation import LiveTeacher
    from iiad.training import RunFolder

    found: dict[str, Any] = {}
    finish, make = RunFolder.finish, LiveTeacher.__init__

    def watched_finish(self: RunFolder, model: Any, *args: Any) -> None:
        found["weights"] = [float(value.double().sum()) for value in model.state_dict().values()]
        path.write_text(json.dumps(found))
        finish(self, model, *args)

    def watched_make(self: LiveTeacher, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        parameters = dict(self.learner.model.named_parameters())
        found["whole"] = [name for name, value in parameters.items() if not isinstance(value, DTensor)]

    RunFolder.finish, LiveTeacher.__init__ = watched_finish, watched_make  # type: ignore[method-assign]


if __name__ == "__main__":
    _serve()
