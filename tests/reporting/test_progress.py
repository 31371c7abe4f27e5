"""Progress: a bar on a terminal, a line now and then elsewhere."""

import io

import pytest
from rich.console import Console

import iiad.progress as reporting


@pytest.fixture
def screen(monkeypatch):
    def make(terminal):
        file = io.StringIO()
        monkeypatch.setattr(
            reporting, "console", Console(file=file, force_terminal=terminal, width=100, highlight=False)
        )
        return file

    return make


def test_elsewhere_than_on_a_terminal_lines_come_seconds_apart_with_rate_and_time_left(screen, monkeypatch):
    file = screen(terminal=False)
    now = [0.0]
    monkeypatch.setattr(reporting.time, "monotonic", lambda: now[0])
    with reporting.progress("packing", 100e6, "B") as advance:
        for _ in range(10):
            now[0] += 4.0
            advance(10e6)
    assert file.getvalue().splitlines() == [
        "packing: 40 %, 2.5 MB/s, 24 s left",
        "packing: 80 %, 2.5 MB/s, 8 s left",
    ]


def test_work_that_is_done_at_once_says_nothing_elsewhere_than_on_a_terminal(screen):
    file = screen(terminal=False)
    with reporting.progress("packing", 10) as advance:
        advance(10)
    assert file.getvalue() == ""


def test_on_a_terminal_there_is_a_bar_that_goes_away(screen):
    file = screen(terminal=True)
    with reporting.progress("packing", 10, "steps") as advance:
        advance(5)
        advance(5)
    assert "packing" in file.getvalue()
    assert "100 %" in file.getvalue()


def test_an_error_inside_passes_through(screen):
    screen(terminal=True)
    with pytest.raises(RuntimeError, match="stop"), reporting.progress("packing", 1):
        raise RuntimeError("stop")


def test_remarks_keep_square_brackets(screen):
    file = screen(terminal=False)
    reporting.print_status("plan [0, 1, 2] [bold]kept[/bold]")
    assert file.getvalue() == "plan [0, 1, 2] [bold]kept[/bold]\n"
