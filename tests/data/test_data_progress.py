from __future__ import annotations


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
