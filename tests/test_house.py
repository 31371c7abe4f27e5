"""Rules that a reader of a diff would miss: private names of dependencies stay theirs."""

import ast
from importlib import import_module
from inspect import isclass
from pathlib import Path
from pkgutil import walk_packages

import iiad

DEPENDENCIES = {"transformers", "accelerate", "tokenizers", "huggingface_hub"}
# Private names by which transformers has a model class describe itself.
OF_A_MODEL = """
_auto_class _can_compile_fullgraph _can_record_outputs _init_weights _no_split_modules _skip_keys_device_placement
_supports_attention_backend _supports_flash_attn _supports_flex_attn _supports_sdpa _tied_weights_keys _tp_plan
""".split()
# Read and never set: there is no public name. _replace is a named tuple's.
READ = {"_attn_implementation", "_replace"}
# Not yet without.
TO_GO = {"_local_mapping"}


def is_private(name):
    return name.startswith("_") and not name.endswith("__")


def own_names(tree):
    """Names that a module, a class or an instance of its classes defines."""
    for node in ast.walk(tree):
        match node:
            case (
                ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AnnAssign(target=ast.Name(id=name))
            ):
                yield name
            case ast.Assign(targets=[ast.Name(id=name)]):
                yield name
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name


def foreign_names(tree):
    """Names that a module imports from a dependency, or reads of an object."""
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module), names=names) if module.split(".")[0] in DEPENDENCIES:
                yield from (*module.split("."), *(alias.name for alias in names))
            case ast.Attribute(attr=name):
                yield name


def test_no_private_name_of_a_dependency_is_read_or_imported():
    found, root = {}, Path(iiad.__file__).parent
    trees = {path: ast.parse(path.read_text()) for path in root.rglob("*.py")}
    ours = {name for tree in trees.values() for name in own_names(tree)}
    for path, tree in trees.items():
        names = {name for name in foreign_names(tree) if is_private(name)} - ours - READ - TO_GO
        if names:
            found[str(path.relative_to(root))] = names
    assert not found


def test_no_private_name_of_a_dependencys_class_is_overridden():
    found = set()
    for module in walk_packages(iiad.__path__, "iiad."):
        for kind in vars(import_module(module.name)).values():
            if isclass(kind) and kind.__module__.startswith("iiad."):
                foreign = [base for base in kind.__mro__ if base.__module__.split(".")[0] in DEPENDENCIES]
                inherited = {name for base in foreign for name in vars(base) if is_private(name)}
                found |= {(kind.__name__, name) for name in vars(kind).keys() & inherited}
    assert {name for _, name in found} <= {*OF_A_MODEL, *TO_GO}, sorted(found)
