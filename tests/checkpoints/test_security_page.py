"""docs/security.md names a test for every claim: the tests are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_the_page_names_is_there():
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    tests = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/test_*.py"))
    names = [name for name in re.findall(r"`([a-z0-9_]+)(?:\.\.\.)?`", page) if name.count("_") > 3]
    assert len(names) > 15
    assert not [name for name in names if f"def test_{name}" not in tests]
    paths = re.findall(r"`(tests/[\w/.]+|iiad/[\w/.]+)`", page)
    assert not [path for path in paths if not (ROOT / path).exists()]
