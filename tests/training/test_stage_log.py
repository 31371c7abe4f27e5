"""log.jsonl and trackers."""

import json
from pathlib import Path

import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from iiad.training.checkpointing import StageState
from iiad.training.stage_log import StageLog
from tests.helpers import make_iiet, refused


class Tracker(GeneralTracker):
    name, requires_logging_directory, tracker = "list", False, None

    def __init__(self):
        super().__init__()
        self.found = []

    def store_init_configuration(self, values):
        pass

    def log(self, values, step=None, **kwargs):
        self.found.append((step, values))


@pytest.fixture
def tracker():
    return Tracker()


@pytest.fixture
def start(tmp_path, tracker):
    accelerator = Accelerator(cpu=True, log_with=tracker)
    accelerator.init_trackers("test")
    return lambda step=0, logged=0: StageLog(
        tmp_path / "log.jsonl", "distill", StageState(step=step, logged=logged), 64, accelerator
    )


def test_a_tracker_gets_the_numbers_of_each_line_under_the_stages_name(start, tracker):
    start().write(2, {"loss": None, "learning_rate": 0.25}, make_iiet(num_iterations=1))
    step, values = tracker.found[0]
    assert step == 2
    assert values["distill/learning_rate"] == 0.25
    assert values["distill/evaluations_per_token"] == 6
    assert "distill/loss" not in values


def test_a_resumed_log_loses_what_will_be_logged_again_and_half_a_line(start, tmp_path):
    log, path, model = start(), tmp_path / "log.jsonl", make_iiet()
    path.write_text('{"stage": "layerwise", "step": 9}\n')
    for step in (2, 4, 6):
        log.write(step, {"loss": 1.0}, model)
    with path.open("a") as file:
        file.write('{"stage": "dis')
    start(4).write(6, {"eval_loss": 2.0}, model)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [
        ("layerwise", 9),
        *(("distill", step) for step in (2, 4, 6)),
    ]
    assert lines[-1]["eval_loss"] == 2.0


@pytest.mark.parametrize(
    "content", [None, b"", b"\xff\x00 binary", b"[" * 9999, b'{"stage": "distill", "step": 2}\n{"stage": "d']
)
def test_lost_lines_of_a_resumed_log_are_counted_in_a_remark(content, start, tmp_path, capsys):
    path = tmp_path / "log.jsonl"
    if content is not None:
        path.write_bytes(content)
    log = start(4, logged=2)
    lost = 1 if content and b"step" in content else 2
    assert capsys.readouterr().err == f"{path}: {lost} lines of distill are lost; going on\n"
    log.write(6, {"loss": 1.0}, make_iiet())
    assert log.state.logged == 3 - lost
    assert json.loads(path.read_text().splitlines()[-1])["step"] == 6


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_a_log_that_is_no_file_is_refused(make, start, tmp_path):
    make(tmp_path / "log.jsonl")
    with refused("log.jsonl: expected a file"):
        start()
