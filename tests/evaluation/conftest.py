"""Model folders of several kinds, and checks that take a second."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from iiad.checkpoints import identify_model, save_checkpoint
from iiad.evaluation.check_artefact import Check
from iiad.evaluation.checks import CLAIMS, check_model
from iiad.evaluation.served_claims import SERVED
from iiad.planning import Plan
from tests.helpers import make_iiet, make_llama, make_pcformer, make_pcformer_seq2seq, make_seq2seq, stir

IN_PROCESS = tuple(claim for claim in CLAIMS if claim not in SERVED and claim.name != "remote code = native")
"""All claims but those that take a process of their own, and seconds."""
QUICK = {"prompt_tokens": 8, "new_tokens": 5, "compile": False}
PLAN = [0, 2]
KINDS = {
    "history": partial(make_iiet, num_layers=2, num_iterations=PLAN, max_num_iterations=3),
    "plain": partial(make_iiet, num_layers=2, num_iterations=[1, 0], history=False),
    "relaxed": partial(make_iiet, num_layers=2, num_iterations=PLAN, history=False, relaxation=True),
    "shared": partial(make_iiet, num_layers=2, num_iterations=PLAN, cache_policy="shared"),
    "adaptive": partial(make_iiet, num_layers=2, num_iterations=3, cache_policy="shared", tolerance=0.3),
    "pcformer-rk2": partial(make_pcformer, num_layers=2),
    "llama": partial(make_llama, num_hidden_layers=2),
    "seq2seq": partial(
        make_seq2seq, num_encoder_layers=2, num_encoder_iterations=[1, 0], num_iterations=PLAN
    ),
    "seq2seq-pcformer": partial(make_pcformer_seq2seq, num_layers=1, num_encoder_layers=1),
}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Callable:
    """The folder of one of KINDS, saved when it is first asked for."""
    root = tmp_path_factory.mktemp("checked")

    def folder(kind):
        if not (root / kind).exists():
            save_checkpoint(KINDS[kind](), root / kind)
        return root / kind

    return folder


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """A folder with a teacher, its plan.json and a student that was trained under that plan."""
    root = tmp_path_factory.mktemp("pair")
    teacher = make_iiet(num_layers=2, num_iterations=2)
    save_checkpoint(teacher, root / "teacher")
    Plan.explicit(PLAN, identify_model(teacher, root / "teacher")).save(root / "plan.json")
    teacher.set_num_iterations(PLAN)
    save_checkpoint(stir(teacher, scale=0.01), root / "student")
    return root


def quick_check(*args, only=(), **options) -> Check:
    """Check the claims of these names, or all IN_PROCESS, on short sequences and without a compiler."""
    claims = [claim for claim in CLAIMS if claim.name in only] if only else IN_PROCESS
    assert not only or len(claims) == len(only)
    return check_model(*args, **{"claims": claims, **QUICK, **options})


def outcomes(check: Check) -> dict[str, str]:
    return {result.name: result.outcome for result in check.results}


def failed(check: Check) -> set[str]:
    return {result.name for result in check.results if result.outcome == "failed"}


def note(check: Check, name: str) -> str:
    return next(result.note or "" for result in check.results if result.name == name)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Tokenized text goes to a folder of the test's own, and tables are wide enough to be read."""
    monkeypatch.setenv("IIAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "240")
