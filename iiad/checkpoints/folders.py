"""Model folders as files: config.json and the weights' files, found and checked without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from iiad.errors import InputError, one_line
from iiad.files import read_json

__all__ = ["read_config", "require_model", "weight_files"]


def read_config(folder: str | Path) -> dict[str, Any]:
    """Read a model folder's config.json. Raises InputError where there is none that can be read."""
    path = Path(folder) / "config.json"
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such model folder")
    if not path.exists():
        raise InputError(f"{folder}: expected a model folder, got one with no config.json")
    return read_json(path)


def weight_files(folder: str | Path) -> list[Path]:
    """Safetensors files of a model folder, sorted: those that transformers reads, else all there are.

    Some folders hold the same weights a second time under other names (`consolidated.safetensors`).
    Raises InputError for none, for pickles alone, or for an index that names a file which is not there.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if folder / "model.safetensors" in files:
        return [folder / "model.safetensors"]
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{index}: cannot be read as an index of weights: {one_line(error)}") from None
        for name in names:
            if folder / name not in files:
                raise InputError(f"{index}: names {name}, which is not there")
        return [folder / name for name in names]
    if not files:
        pickles = sorted(path.name for end in ("bin", "pt", "pth") for path in folder.glob(f"*.{end}"))
        got = f"a pickle ({pickles[0]}), which can run code when loaded" if pickles else "no weights"
        raise InputError(f"{folder}: expected weights in *.safetensors, got {got}")
    return files


def require_model(model: str | Path) -> None:
    """Raise InputError unless this is a model folder, or a hub name: owner/name, where no folder `owner` is here."""
    name = str(model)
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or Path(name).parent.exists():
        read_config(model)
        weight_files(model)
