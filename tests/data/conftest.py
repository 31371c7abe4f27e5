import pytest

from iiad.data import pack, resolve_inputs, train_tokenizer
from iiad.data.sources import AnySource

CODE = '''class Stack:
    """Last in, first out."""

    def __init__(self, items=()):
        self._items = list(items)

    def push(self, item):
        self._items.append(item)
        return len(self._items) + 100


# Ünïcödé, 漢字 and 🙂
'''


@pytest.fixture(scope="session")
def code():
    return CODE


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer([CODE], vocab_size=320)


@pytest.fixture
def packed(tokenizer, tmp_path):
    """Pack files, patterns or sources in the test's own cache; `packed.tokenized`: the last call did tokenize."""

    def run(*inputs, tokenizer=tokenizer, **options):
        paths = [str(item) for item in inputs if not isinstance(item, AnySource)]
        sources = [item for item in inputs if isinstance(item, AnySource)]
        sources += resolve_inputs(paths) if paths else []
        run.tokenized = False

        def progress(done, total):
            run.tokenized = True

        return pack(sources, tokenizer, **{"cache_dir": tmp_path / "cache", "progress": progress, **options})

    return run


@pytest.fixture
def file(tmp_path):
    """A text file."""
    path = tmp_path / "a.txt"
    path.write_text(CODE)
    return path
