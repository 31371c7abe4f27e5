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


@pytest.fixture
def clock(monkeypatch):
    """The time, in a list of one number."""
    now = [0.0]
    monkeypatch.setattr(reporting.time, "monotonic", lambda: now[0])
    return now


def test_elsewhere_than_on_a_terminal_lines_come_seconds_apart_with_rate_and_time_left(screen, clock):
    file = screen(terminal=False)
    with reporting.progress("packing", 100e6, "B") as advance:
        for _ in range(10):
            clock[0] += 4.0
            advance(10e6, lambda: f"at {clock[0]:.0f} s")
    assert file.getvalue().splitlines() == [
        "packing: will take about 40 s",
        "packing: 40 %, 2.5 MB/s, 24 s left, at 16 s",
        "packing: 80 %, 2.5 MB/s, 8 s left, at 32 s",
    ]


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(
    ("seconds", "share", "line"),
    [
        (
            [9, 1, 1, 1],
            1.0,
            "will take about 108 s",
        ),  # what is set up in the first is not taken for every one
        ([1, 1, 1, 1], 0.5, "will take about 100 s, the whole command about 3 min"),
        ([12], 1.0, "will take about 20 min"),  # by the first one, if that is long
        ([40, 40], 1.0, "will take about 67 min"),
        ([0.01] * 9, 1.0, None),
        ([0.1] * 30, 1.0, None),  # little is left
    ],
)
def test_a_long_task_says_in_its_first_seconds_how_long_it_will_take(
    terminal, seconds, share, line, screen, clock
):
    file = screen(terminal)
    with reporting.progress("packing", 100, "steps", share) as advance:
        for each in seconds:
            clock[0] += each
            advance(1)
    said = [text for text in file.getvalue().splitlines() if "will take" in text]
    assert [text.partition("packing: ")[2].strip() for text in said] == ([line] if line else [])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (119.4, "119 s"), (120, "2 min"), (6900, "115 min"), (9000, "2.5 hours"), (90000, "25 hours"),
     (2e5, "2.3 days"), (1e7, "116 days"), (1e9, "32 years"), (1e13, "316,881 years")],
)  # fmt: skip
def test_times_are_in_the_unit_that_suits_them(seconds, text):
    assert reporting.format_duration(seconds) == text


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
