"""vLLM's OpenAI-compatible server in another environment: start it on a model, ask it, end it.

The server is a process of the given interpreter: vLLM replaces classes of transformers, and its environment has other
versions. Nothing here imports vLLM.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iiad.errors import InputError, one_line

__all__ = ["Completion", "Engine", "EngineError", "engine_version", "free_port", "serving"]

HOST = "127.0.0.1"
SERVER = "vllm.entrypoints.openai.api_server"
"""`vllm serve` as a module: the command itself fails where the distribution is not called vllm, as the CPU's."""
MOST_SECONDS = 900  # to start on a busy machine, compiled
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # bound threads of a busy machine wait for each other
}
"""Defaults for the server; those of the caller's environment win."""

_VERSION = """
import importlib.util
if importlib.util.find_spec("vllm") is None:
    raise SystemExit("no module called vllm")
from importlib import metadata
names = metadata.packages_distributions().get("vllm") or ["vllm"]  # the CPU's has a name of its own
print(metadata.version(names[0]))
"""
_FAULT = re.compile(r"\b(?:[A-Za-z_]+\.)*[A-Z][A-Za-z]*(?:Error|Exception): (?!.*[Ss]ee (?:root|stack)).+")


class EngineError(InputError):
    """vLLM is not there, does not start, or fails on the model."""


@dataclass(frozen=True)
class Completion:
    """Greedy tokens after a prompt, and the log-probability of each (nats)."""

    tokens: list[int]
    log_probabilities: list[float]


@dataclass(frozen=True)
class Engine:
    """A running server.

    Attributes:
        url: where its API begins, as "http://127.0.0.1:8000/v1".
        log: the file of its messages.
    """

    url: str
    log: Path

    def complete_all(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, concurrency: int
    ) -> list[Completion]:
        """Complete prompts in order, so many at a time."""
        threads = ThreadPoolExecutor(concurrency)
        try:
            return list(threads.map(lambda prompt: self.complete(prompt, new_tokens), prompts))
        finally:  # after ^C no answer is waited for, so that the server ends at once
            threads.shutdown(wait=False, cancel_futures=True)

    def complete(self, prompt: Sequence[int], new_tokens: int) -> Completion:
        """Decode so many tokens greedily after a prompt of tokens, past any end of the text. Raises EngineError."""
        question = {
            "prompt": list(prompt),
            "max_tokens": new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "logprobs": 0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,  # which needs no tokenizer
        }
        try:
            (choice,) = _ask(f"{self.url}/completions", question)["choices"]
            return Completion(choice["token_ids"], choice["logprobs"]["token_logprobs"])
        except urllib.error.HTTPError as error:
            reason = read_fault(self.log) or one_line(error)
        except (OSError, ValueError, LookupError) as error:
            reason = read_fault(self.log) or f"{type(error).__name__}: {one_line(error)}"
        raise EngineError(f"engine: expected an answer, got {reason}")


def engine_version(python: str | Path) -> str:
    """Return the version of vLLM in an interpreter's environment. Raises EngineError where there is none."""
    wanted = f"served: expected an interpreter with vLLM, got {python}"
    try:
        done = subprocess.run(
            [_find(python), "-c", _VERSION], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"{wanted}: {one_line(error)}") from None
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise EngineError(f"{wanted}: {reason}")
    return done.stdout.strip()


def _find(python: str | Path) -> str:
    """Return the absolute path of an interpreter, links kept: a virtual environment is found by them."""
    found = shutil.which(str(python))
    if found is None:
        raise EngineError(f"served: expected an interpreter with vLLM, got {python}, no program")
    return os.path.abspath(found)


def free_port(port: int | None = None) -> int:
    """Return a port that nothing listens on: the given one, or any. Raises InputError for one in use."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port or 0))
        except (OSError, OverflowError) as error:
            raise InputError(f"port: expected a free one, got {port}: {one_line(error)}") from None
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    python: str | Path,
    model: str | Path,
    folder: str | Path,
    *options: str,
    port: int | None = None,
) -> Iterator[Engine]:
    """Serve a model folder until the block ends, by whatever: no process outlives it.

    Args:
        python: interpreter of the environment with vLLM.
        model: folder. The code that its configuration names is run.
        folder: for the server's log, engine.log, and the modules of the model.
        options: of vLLM's server; they win over those set here, as 1 GiB for its cache.
        port: default: any free one.

    Raises:
        EngineError: the server ends or does not answer in time; the message has its reason.
        InputError: the port is in use.
    """
    folder, port = Path(folder).resolve(), free_port(port)
    command = [_find(python), "-m", SERVER, "--model", str(Path(model).resolve()), "--trust-remote-code"]
    command += ["--served-model-name", "model", "--host", HOST, "--port", str(port)]
    # Of a device's memory vLLM takes most by default, and does not start where others hold it.
    command += ["--gpu-memory-utilization", "0.1", "--kv-cache-memory-bytes", "1G"]
    environment = {**ENVIRONMENT, "HF_MODULES_CACHE": str(folder / "modules"), **os.environ}
    log = folder / "engine.log"
    with log.open("w") as messages:
        server = subprocess.Popen(
            [*command, *options],
            stdin=subprocess.DEVNULL,
            stdout=messages,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,  # one group to end, and ^C reaches us alone
        )
    try:
        engine = Engine(f"http://{HOST}:{port}/v1", log)
        _wait(server, engine)
        yield engine
    finally:
        _end(server)


def read_fault(log: Path) -> str | None:
    """Return the first error in a server's log, in one line, warnings and what only points to it left out."""
    lines = log.read_text(errors="replace").splitlines()
    for number, line in enumerate(lines):
        found = None if " WARNING " in line else _FAULT.search(line)
        if found:
            reason = found[0]
            if "validation error" in reason:  # pydantic's, whose words come next
                reason = " ".join(lines[number + 1 : number + 2]).partition("[type=")[0]
            return reason.strip()
    return None


def _ask(url: str, question: dict[str, Any]) -> Any:
    body = json.dumps({"model": "model", **question}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=MOST_SECONDS) as answer:
        return json.load(answer)


def _wait(server: subprocess.Popen[bytes], engine: Engine) -> None:
    """Wait until the server answers."""
    started = time.monotonic()
    while time.monotonic() < started + MOST_SECONDS:
        if server.poll() is not None:
            reason = read_fault(engine.log) or f"exit code {server.returncode}"
            raise EngineError(f"engine: expected one that starts, got {reason}")
        try:
            with urllib.request.urlopen(engine.url.removesuffix("v1") + "health", timeout=10):
                return
        except OSError:
            time.sleep(0.5)
    raise EngineError(f"engine: expected one that starts, got no answer in {MOST_SECONDS} s")


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and its processes."""
    for number, seconds in ((signal.SIGTERM, 20), (signal.SIGKILL, 20)):
        try:
            os.killpg(server.pid, number)
            server.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            break
    server.wait()
