"""Planning stays light: what its modules import, directly and through others, when they are imported."""

import ast
from pathlib import Path

import iiad

ROOT = Path(iiad.__file__).parents[1]


def imported(module):
    """Names of the modules that a module of iiad imports at its top level, parents' `__init__` included."""
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = package.rsplit(".", node.level - 1)[0] + "." if node.level else ""
            base = (parent + (node.module or "")).rstrip(".")
            yield base
            names = [ROOT.joinpath(*base.split("."), alias.name) for alias in node.names]
            yield from (
                f"{base}.{path.name}" for path in names if path.is_dir() or path.with_suffix(".py").exists()
            )
    if module != "iiad" and "." in module:
        yield module.rpartition(".")[0]


def reached(module):
    found, left = set(), [module]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += imported(name) if name.partition(".")[0] == "iiad" and name != "iiad" else []
    return found


def test_planning_imports_neither_torch_nor_the_half_of_influence_that_measures():
    names = reached("iiad.planning")
    assert not {
        name for name in names if name.split(".")[0] in ("torch", "transformers", "scipy", "safetensors")
    }
    assert {name for name in names if name.startswith("iiad.influence.")} == {
        "iiad.influence.diagnostics",
        "iiad.influence.profile",
    }


def test_loading_a_model_does_not_import_planning():
    names = reached("iiad.checkpoints") | reached("iiad.models")
    assert "torch" in names
    assert not {name for name in names if name.startswith("iiad.planning")}
