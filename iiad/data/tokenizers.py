"""Tokenizers: load, train and fingerprint them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from iiad.errors import InputError, require_least
from iiad.folders import check_tokenizer_files, explain_loading, find_folder, has_trust

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "END_OF_TEXT",
    "MIN_VOCAB_SIZE",
    "load_tokenizer",
    "start_token_id",
    "task_tokenizer",
    "tokenizer_fingerprint",
    "tokenizing",
    "train_tokenizer",
]

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"
MIN_VOCAB_SIZE = 257  # every byte, and the end of text

# What BPE may merge within, for prose and source code alike; tried in this order at each place.
_WORD = r"[ _.]?[\p{L}\p{M}]+"  # with the space, underscore or dot before it: " name", "_name", ".name"
_NUMBER = r" ?\p{N}{1,3}"
_SIGNS = r" ?[^\s\p{L}\p{M}\p{N}]+"
_LINE_ENDS = r"\s*[\r\n](?!\s)"  # white space that ends in a newline, whole
_INDENT = r"\s+(?!\S)"  # other white space, less the last space, which goes to the word
_SPACE = r"\s+"
_PATTERN = "|".join([_WORD, _NUMBER, _SIGNS, _LINE_ENDS, _INDENT, _SPACE])


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a Hugging Face folder or of a model on the hub (`iiad.folders.find_folder`).

    Raises InputError where there is none, it needs code that is not trusted (`iiad.folders.trust_remote_code`), it is
    not backed by the `tokenizers` library, or it has no end-of-text token.
    """
    from transformers import AutoTokenizer

    import iiad.models  # noqa: F401  AutoTokenizer reads the model's configuration

    folder = find_folder(path)
    check_tokenizer_files(folder)
    with tokenizing(f"tokenizer: {path} cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=has_trust())
    if not has_trust():
        tokenizer.init_kwargs.pop("auto_map", None)  # else a tokenizer that is saved again would name it too
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"tokenizer: expected one with a tokenizer.json, got {type(tokenizer).__name__} of {path}"
        )
    if tokenizer.eos_token_id is None:
        raise InputError(f"tokenizer: expected an eos_token, to stand between documents, got none in {path}")
    for field in ("is_local", "local_files_only"):  # of this loading: would be saved with the tokenizer
        tokenizer.init_kwargs.pop(field, None)
    return tokenizer


@contextmanager
def tokenizing(problem: str) -> Iterator[None]:
    """Turn whatever a tokenizer raises into an InputError that begins with the problem."""
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # also what Rust calls a panic, which is no Exception
        raise InputError(f"{problem}: {explain_loading(error)}") from error


def task_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Make the tokenizer of generated tasks: a token a word, white space between them.

    words: different ones; the first pads and the second ends.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0])
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, pad_token=words[0], eos_token=words[1]
    )


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, context_length: int | None = None, padding: bool = False
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer. The same texts give the same tokenizer, token for token.

    Any text comes back exactly: the alphabet is all 256 bytes and nothing is normalized. `<|endoftext|>` is
    the one special token, with id 0: it begins, ends and pads, unless there is a token for padding.

    texts: documents or pieces of them; read once, not held in memory. vocab_size: the most tokens; texts that offer
    fewer merges give fewer. context_length: recorded as the tokenizer's `model_max_length`, in tokens. padding: add
    `<|pad|>`, with id 1, for models that must tell padding from an end.

    Raises InputError for a `vocab_size` below 257, a `context_length` below 1, and `texts` without text.
    """
    special_tokens = [END_OF_TEXT, PADDING] if padding else [END_OF_TEXT]
    require_least(256 + len(special_tokens), vocab_size=vocab_size)
    require_least(1, context_length=context_length)
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_with_text(texts), trainer)
    limit = {} if context_length is None else {"model_max_length": context_length}
    roles = dict.fromkeys(("bos_token", "eos_token"), END_OF_TEXT) | {"pad_token": special_tokens[-1]}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **roles, **limit
    )


def _with_text(texts: Iterable[str]) -> Iterator[str]:
    """Yield the texts that are not empty. Raises InputError where all are."""
    found = False
    for text in texts:
        if text:
            found = True
            yield text
    if not found:
        raise InputError("texts: expected at least one document with text to train on, got none")


def start_token_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the id that a decoder begins with: the padding token's or, without one, the first's or the last's."""
    ids = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    return next(number for number in ids if number is not None)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the sha256, in hexadecimal, of all that decides which ids a text gets: `tokenizer.json`, special tokens.

    Padding and truncation, which calling a tokenizer may switch, do not count, nor does the folder.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["padding"] = backend["truncation"] = None
    state = {"backend": backend, "special_tokens": tokenizer.special_tokens_map}
    return hashlib.sha256(json.dumps(state, sort_keys=True, default=str).encode()).hexdigest()
