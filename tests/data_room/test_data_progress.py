from __future__ import annotations

import sys

import pytest

from iiad.data.progress import report_progress


def test_elsewhere_than_on_a_terminal_there_are_two_plain_lines(capsys):
    with report_progress("tokenizing", 2_000_000, True) as advance:
        for done in range(0, 2_000_000, 100_000):
            advance(done)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "tokenizing: 2.0 MB"
    assert lines[1].startswith("tokenizing: done in")
    assert len(lines) == 2


def test_on_a_terminal_there_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with report_progress("tokenizing", 100, True) as advance:
        advance(100)
    assert "tokenizing" in capsys.readouterr().err


def test_a_function_is_told_bytes_done_and_bytes_in_all(packed, tmp_path, code):
    (tmp_path / "a.txt").write_text(code)
    (tmp_path / "b.txt").write_text(code)
    calls: list[tuple[int, int]] = []
    packed(tmp_path / "*.txt", progress=lambda done, total: calls.append((done, total)))
    total = 2 * len(code.encode())
    assert calls == sorted(calls)
    assert calls[-1] == (total, total)


def test_nothing_is_said_when_not_asked(packed, tmp_path, code, capsys):
    (tmp_path / "a.txt").write_text(code)
    packed(tmp_path / "a.txt")
    assert capsys.readouterr() == ("", "")


def test_an_error_passes_through(capsys):
    with pytest.raises(RuntimeError, match="stop"), report_progress("tokenizing", 1, True):
        raise RuntimeError("stop")
    assert len(capsys.readouterr().err.splitlines()) == 1
