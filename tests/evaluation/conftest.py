"""Model folders of several kinds, and checks that take a second."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from iiad.checkpoints import identify_model, save_checkpoint
from iiad.evaluation.check_artefact import Check
from iiad.evaluation.checks import CLAIMS, check_model
from iiad.planning import Plan
from tests.helpers import VARIANTS, Folders, make_iiet, make_llama, stir, write_folders

IN_PROCESS = tuple(claim for claim in CLAIMS if claim.name != "remote code = native")
"""All claims but the one that takes a process of its own, and seconds."""
QUICK = {"prompt_tokens": 8, "new_tokens": 5, "compile": False}
BUDGET = [0, 2, 1]
_CHOSEN = "history plain relaxed shared pcformer-rk2".split()
KINDS = {**{kind: VARIANTS[kind] for kind in _CHOSEN}, "llama": make_llama}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Callable:
    """The folder of one of KINDS, saved when it is first asked for."""
    root = tmp_path_factory.mktemp("checked")

    def folder(kind):
        if not (root / kind).exists():
            with torch.random.fork_rng():
                torch.manual_seed(0)
                save_checkpoint(KINDS[kind](), root / kind)
        return root / kind

    return folder


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """A folder with a teacher, its plan.json and a student that was trained under that plan."""
    root = tmp_path_factory.mktemp("pair")
    teacher = make_iiet(num_iterations=3)
    save_checkpoint(teacher, root / "teacher")
    Plan.explicit(BUDGET, identify_model(teacher, root / "teacher")).save(root / "plan.json")
    teacher.set_num_iterations(BUDGET)
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


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> Folders:
    return write_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Tokenized text goes to a folder of the test's own, and tables are wide enough to be read."""
    monkeypatch.setenv("IIAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "240")
