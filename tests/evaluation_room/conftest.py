from __future__ import annotations

import pytest

from tests.evaluation_room.folders import Folders, write_folders


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> Folders:
    return write_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Tokenized text goes to a folder of the test's own, and tables are wide enough to be read."""
    monkeypatch.setenv("IIAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "240")
