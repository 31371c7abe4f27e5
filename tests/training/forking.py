"""`iiad` in processes of its own that start at once: forked from one that has imported everything already.

As a script: for each line of stdin, {"arguments", "errors", "file_bytes"}, a child runs that command line; its
process id is printed when it starts and its exit code, negative for a signal, when it has ended.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Commands:
    """Runs `iiad`, one command at a time. errors: the file in which its stderr goes."""

    def __init__(self, errors: Path):
        self.errors = errors
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.training.forking"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, *arguments: object, file_bytes: int | None = None) -> int:
        """Begin; the process id. file_bytes: no file may be longer, as if the disk were full."""
        request = {"arguments": [str(argument) for argument in arguments], "errors": str(self.errors)}
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps({**request, "file_bytes": file_bytes}) + "\n")
        self.server.stdin.flush()
        return self._read()

    def wait(self) -> int:
        """The exit code of the command that runs, once it has ended."""
        return self._read()

    def run(self, *arguments: object, file_bytes: int | None = None) -> int:
        """From start to end; the exit code."""
        self.start(*arguments, file_bytes=file_bytes)
        return self.wait()

    def last_line(self) -> str:
        """What the last command said last."""
        return self.errors.read_text().splitlines()[-1]

    def _read(self) -> int:
        assert self.server.stdout is not None
        return int(self.server.stdout.readline())

    def close(self) -> None:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.close()
        self.server.stdout.close()
        self.server.wait()


def wait_until(happens: Callable[[], bool], pid: int, seconds: float = 60) -> None:
    """Look very often, so as to be there at once; gives up when the process is gone."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not _is_over(pid):
        with contextlib.suppress(FileNotFoundError):  # what is looked at may be removed just now
            if happens():
                return
        time.sleep(0.0005)


def _is_over(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def _serve() -> None:
    os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    import iiad.distillation.stages
    import iiad.training.teacher  # noqa: F401  # for the children
    from cli import main

    gc.freeze()  # or each child's first collection would look at, and so copy, all that is here
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            # Where the tests were started in a shell's background, Ctrl-C is ignored from the shell on down.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for stream in (1, 2):
                os.dup2(
                    os.open(request["errors"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), stream
                )
            if request["file_bytes"]:
                limit = request["file_bytes"]
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            sys.argv = ["iiad", *request["arguments"]]
            main.run()
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
