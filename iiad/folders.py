"""Model folders before anything loads them: find or download them, and refuse those that ask for code or other files.

Needs neither torch nor transformers. What is promised, and what a hostile folder can still do: docs/security.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from .errors import InputError, one_line, shorten
from .files import read_json

__all__ = [
    "check_tokenizer_files",
    "explain_loading",
    "find_folder",
    "has_trust",
    "read_config",
    "require_gguf",
    "require_model",
    "trust_remote_code",
    "weight_files",
    "weight_shapes",
]

_DOWNLOADS = "*.json *.safetensors *.txt *.jinja *.tiktoken tokenizer.model* README* LICENSE* NOTICE*".split()
_ATTENTION, _EXPERTS = ("eager", "sdpa", "flex_attention"), ("eager", "grouped_mm", "batched_mm")

# Fields of a config.json, at any depth, by which transformers imports, downloads or runs something or reads other
# files, and the values by which it does not. Empty values never do.
_REQUESTS: dict[str, tuple[str, ...]] = {
    "attn_implementation": _ATTENTION,  # "owner/name", and flash_attention_2 without its package, are hub kernels
    "_attn_implementation": _ATTENTION,
    "experts_implementation": _EXPERTS,
    "_experts_implementation": _EXPERTS,
    "quantization_config": (),
    "fusion_config": (),
    "distributed_config": (),
    "configuration_files": (),  # another config.json than the one that was checked
    "transformers_weights": (),
}
# The same of a tokenizer_config.json, at its top: arguments by position, another tokenizer.json.
_TOKENIZER_REQUESTS = ("init_inputs", "fast_tokenizer_files")
_TOKENIZER_FILES = "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json".split()
_GGUF = b"GGUF"
_MOST = 1 << 12
_COUNTS = re.compile(r"num_labels|(n|num|encoder|decoder)_(\w+_)?layers?")

_trusted: ContextVar[bool] = ContextVar("trusted", default=False)


@contextmanager
def trust_remote_code(trusted: bool = True) -> Iterator[None]:
    """Let models that are loaded in the block run the Python code that their folders bring or name (auto_map)."""
    token = _trusted.set(trusted)
    try:
        yield
    finally:
        _trusted.reset(token)


def has_trust() -> bool:
    """Return whether remote code may run: inside `trust_remote_code`."""
    return _trusted.get()


def find_folder(model: str | Path) -> Path:
    """Return a model's folder: itself, or where the files of a hub name, owner/name, have been downloaded to.

    A name is the hub's where no folder `owner` is here. No code (but where it is trusted) and no pickle is
    downloaded. Raises InputError: no such folder, or a download that fails.
    """
    name, folder = str(model), Path(model).expanduser()
    if folder.is_dir():
        return folder
    if not _may_be_at_hub(name):
        raise InputError(f"{name}: no such model folder")
    from huggingface_hub import snapshot_download

    wanted = [*_DOWNLOADS, "*.py"] if has_trust() else _DOWNLOADS
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*", "consolidated*"]))
    except Exception as error:  # the hub's, the network's and the disk's errors are of many kinds
        raise InputError(f"{name}: cannot be loaded: {one_line(error)}") from error


def _may_be_at_hub(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).parent.exists()


def require_model(model: str | Path) -> None:
    """Raise InputError as `read_config` and `weight_files` do, unless this may be a hub name. Downloads nothing."""
    if Path(model).expanduser().is_dir() or not _may_be_at_hub(str(model)):
        read_config(find_folder(model))
        weight_files(find_folder(model))


def require_gguf(path: str | Path) -> None:
    """Raise InputError unless the file says that it is GGUF, and the gguf package is installed."""
    try:
        with open(path, "rb") as file:
            found = file.read(len(_GGUF))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if found != _GGUF:
        raise InputError(f"{path}: expected a model folder or a GGUF file, got another file")
    try:
        import gguf  # noqa: F401  (only whether it is there)
    except ImportError as error:
        raise InputError(f"{path}: expected gguf (pip install 'iiad[gguf]'), got {one_line(error)}") from None


def read_config(folder: str | Path) -> dict[str, Any]:
    """Read a model folder's config.json.

    Raises InputError where there is none that can be read, it asks for what `docs/security.md` rules out, or the
    folder is an adapter.
    """
    folder = Path(folder)
    path = folder / "config.json"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such model folder")
    if not path.exists():
        raise InputError(f"{folder}: expected a model folder, got one with no config.json")
    if (folder / "adapter_config.json").exists():
        raise InputError(
            f"{folder}: expected whole weights, got an adapter (adapter_config.json): merge it first"
        )
    fields = read_json(path)
    names = fields.get("architectures")
    if isinstance(names, list) and any(isinstance(name, str) and "Classification" in name for name in names):
        got = shorten(names)
        raise InputError(f"{path}: architectures: expected a causal language model, got {got}")
    _require_harmless(path, fields)
    return fields


def _require_harmless(path: Path, fields: dict[str, Any]) -> None:
    """Raise InputError for a config.json by which transformers would run code, read other files or loop for hours."""
    for name, value, nested in _walk(fields):
        if name in _REQUESTS and value and value not in _REQUESTS[name]:
            accepted = " or ".join(("none", *_REQUESTS[name]))
            raise InputError(f"{path}: {name}: expected {accepted}, got {shorten(value)}")
        if name == "auto_map" and nested and value and not has_trust():
            raise InputError(f"{path}: auto_map: expected none in a part of the model, got {shorten(value)}")
        if isinstance(value, int) and abs(value) >= 1 << 63:
            raise InputError(f"{path}: {name}: expected a number of 64 bits, got {shorten(value)}")
        if isinstance(value, int | float) and value > _MOST and _COUNTS.fullmatch(name):
            raise InputError(f"{path}: {name}: expected at most {_MOST}, got {shorten(value)}")


def _walk(fields: dict[str, Any]) -> Iterator[tuple[str, Any, bool]]:
    """Yield name and value of every field at any depth, and True below the top."""
    left: list[tuple[Any, bool]] = [(fields, False)]
    while left:  # no recursion: files are nested as deeply as their authors like
        place, nested = left.pop()
        for name, value in place.items() if isinstance(place, dict) else ((None, each) for each in place):
            if name is not None:
                yield name, value, nested
            if isinstance(value, dict | list):
                left.append((value, True))


def check_tokenizer_files(folder: Path) -> None:
    """Raise InputError for a tokenizer's JSON that cannot be read, asks for other files, or would end the process."""
    files = {name: read_json(folder / name) for name in _TOKENIZER_FILES if (folder / name).exists()}
    if (folder / "config.json").exists():  # which AutoTokenizer reads too
        _require_harmless(folder / "config.json", read_json(folder / "config.json"))
    for request in _TOKENIZER_REQUESTS:
        if got := files.get("tokenizer_config.json", {}).get(request):
            raise InputError(
                f"{folder / 'tokenizer_config.json'}: {request}: expected none, got {shorten(got)}"
            )
    model = files.get("tokenizer.json", {}).get("model")
    model = model if isinstance(model, dict) else {}
    prefix = model.get("continuing_subword_prefix") or ""
    for merge in model.get("merges") or () if isinstance(prefix, str) and prefix else ():
        # The library cuts so many bytes off the second part, be they the prefix or half a character, and aborts.
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or not str(parts[-1] if parts else "").startswith(prefix):
            got = f"{shorten(merge)} with the prefix {shorten(prefix)}"
            raise InputError(
                f"{folder / 'tokenizer.json'}: merges: expected parts with their prefix, got {got}"
            )


def explain_loading(error: BaseException) -> str:
    """Return an error of transformers' about a folder, in one line that can be read without knowing it."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    line = one_line(error)
    if "trust_remote_code" in line:
        return (
            "expected what transformers or iiad knows, got what needs code of the folder or of another repository "
            "(auto_map); evaluate, generate and bench run that with --trust-remote-code"
        )
    spoken = ValueError | OSError | ImportError | SafetensorError | StrictDataclassError
    if isinstance(error, spoken) or type(error) is Exception:  # the last: of the tokenizers library
        return line if len(line) <= 400 else f"{line[:400]} ..."
    return f"its values are not such as transformers can load ({type(error).__name__}: {line[:80]})"


def weight_files(folder: str | Path) -> list[Path]:
    """Safetensors files of a model folder, sorted: those that transformers reads, else all there are.

    Some folders hold the same weights a second time under other names (`consolidated.safetensors`).
    Raises InputError for none, for pickles alone, for an index that is none or names a file which is not there, and
    for shards of a distributed checkpoint, which transformers would read instead.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if shards := sorted(folder.glob("shard-*-model-*.safetensors")):
        raise InputError(
            f"{folder}: expected a model, got a shard of a distributed checkpoint, {shards[0].name}"
        )
    if folder / "model.safetensors" in files:
        return [folder / "model.safetensors"]
    if index.exists():
        named = read_json(index).get("weight_map")
        if (
            not isinstance(named, dict)
            or not named
            or not all(isinstance(name, str) for name in named.values())
        ):
            raise InputError(f"{index}: weight_map: expected a file for each tensor, got {shorten(named)}")
        for name in sorted(set(named.values())):
            if folder / name not in files:
                raise InputError(f"{index}: names {shorten(name)}, which is not there")
        return [folder / name for name in sorted(set(named.values()))]
    if not files:
        pickles = sorted(path.name for end in ("bin", "pt", "pth") for path in folder.glob(f"*.{end}"))
        got = f"a pickle ({pickles[0]}), which can run code when loaded" if pickles else "no weights"
        raise InputError(f"{folder}: expected weights in *.safetensors, got {got}")
    return files


def weight_shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Read the names and shapes of a model folder's tensors. Raises InputError for files that cannot be read."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="numpy") as file:
                names = file.keys()
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in names}
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: cannot be read as safetensors: {one_line(error)}") from None
    return shapes
