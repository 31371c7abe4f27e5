"""Recipe files: found by path or name, read as YAML, changed by settings. Nothing is checked here."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from iiad.errors import InputError, one_line, require_printable, shorten
from iiad.files import read_whole

__all__ = ["MOST_BYTES", "change_fields", "find_recipe", "read_fields", "read_yaml"]

MOST_BYTES = 1 << 18
"""Of a recipe: so many are read in three seconds at most."""


class _Loader(yaml.SafeLoader):
    """YAML with the scalars of JSON: 1e-3 is a number; 010, 1:30 and dates are text. No key stands twice."""

    yaml_implicit_resolvers = {
        first: [
            (tag, pattern) for tag, pattern in resolvers if not tag.endswith((":int", ":float", ":timestamp"))
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping; ConstructorError for a key that stands twice."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                break  # refused below, with its place
            if key in seen:
                problem = f"{shorten(key)} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*)$")
_FLOAT = re.compile(
    r"([-+]?((0|[1-9][0-9_]*)(\.[0-9_]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def find_recipe(name: str | Path, kind: str = "recipe", within: str = "") -> Path:
    """Return the recipe file of that path, or the one of that name that ships with iiad.

    kind: what errors call it. within: the folder of recipes/ that it ships in. Raises InputError for neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    folder = Path(str(import_module("iiad_recipes").__file__)).parent / within
    shipped = {recipe.stem: recipe for recipe in sorted(folder.glob("*.yaml"))}
    if str(name) not in shipped:
        raise InputError(f"{kind}: expected a file or one of {', '.join(shipped)}, got {name}")
    return shipped[str(name)]


def read_fields(path: str | Path | None) -> dict[str, Any]:
    """Return the nested fields of a recipe, not checked.

    path: a YAML file, the name of a recipe that ships with iiad, or None for no fields. Raises InputError for a file
    that cannot be read.
    """
    return {} if path is None else read_yaml(find_recipe(path))


def change_fields(
    fields: dict[str, Any], settings: Sequence[str] = (), overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Put overrides and then `section.field=value` settings over the fields, in place; return them.

    Raises InputError for a setting that cannot be read.
    """
    _merge(fields, overrides or {})
    for setting in settings:
        _apply(fields, setting)
    return fields


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file of nested fields. Raises InputError for anything else."""
    text = read_whole(path, MOST_BYTES)
    try:
        fields = yaml.load(text, _Loader)
    except Exception as error:  # YAMLError, and whatever the constructors of values raise
        raise InputError(f"{path}: expected YAML, got {one_line(error)}") from None
    if not isinstance(fields, dict):
        raise InputError(f"{path}: expected sections (model, tokenizer, data, ...), got {shorten(fields)}")
    require_printable(fields, path)
    return fields


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for name, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(name), dict):
            _merge(below[name], value)
        else:
            below[name] = dict(value) if isinstance(value, dict) else value


def _apply(fields: dict[str, Any], setting: str) -> None:
    name, equals, text = setting.partition("=")
    parts = name.strip().split(".")
    if not equals or len(parts) < 2 or not all(parts):
        raise InputError(f"--set {setting}: expected section.field=value, as in training.max_steps=100")
    for part in parts[:-1]:
        fields = fields.setdefault(part, {})
        if not isinstance(fields, dict):
            raise InputError(f"--set {setting}: expected a section before the last dot, got field {part}")
    try:
        fields[parts[-1]] = yaml.load(text, _Loader)
    except Exception:  # as above
        hint = "quote a name that begins with *" if "*" in text else "put it in quotes"
        raise InputError(f"--set {setting}: expected YAML after =, got {text}; {hint}") from None
    require_printable(fields[parts[-1]], f"--set {setting}")
