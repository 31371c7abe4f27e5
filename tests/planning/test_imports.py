"""Planning stays light: what its modules may import of the package."""

import re
from pathlib import Path

import iiad

PACKAGE = Path(iiad.__file__).parent


def imported(*patterns):
    """Modules that files of the package import, relative names left out."""
    texts = [path.read_text(encoding="utf-8") for pattern in patterns for path in PACKAGE.glob(pattern)]
    assert texts
    return {
        name for text in texts for name in re.findall(r"^ *(?:from|import) +(\w[\w.]*)", text, re.MULTILINE)
    }


def test_planning_imports_neither_torch_nor_the_half_of_influence_that_measures():
    names = imported("planning/*.py")
    assert not {name for name in names if name.split(".")[0] in ("torch", "transformers", "safetensors")}
    ours = {name for name in names if name.startswith("iiad.")}
    light = {
        "averages",
        "convergence",
        "diagnostics",
        "profile",
    }  # no torch: tests/models/test_registration.py
    assert ours == {
        "iiad.artefacts",
        "iiad.errors",
        "iiad.files",
        "iiad.identities",
        *(f"iiad.influence.{name}" for name in light),
    }


def test_loading_a_model_does_not_import_planning():
    assert not {
        name for name in imported("checkpoints/*.py", "memory.py", "models/*.py") if "planning" in name
    }
