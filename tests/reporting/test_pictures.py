"""Pictures: whole, readable files with labelled axes; the same from the same numbers; refused in one line."""

import os
import re
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from iiad.reporting.canvas import linear_part, require_pictures
from iiad.reporting.pictures import draw_curve, draw_influence, draw_verification, short_number
from tests.helpers import make_profile, refused

MINUS, NAN = "\N{MINUS SIGN}", float("nan")
EXACT = [(0.0, 0.0), (0.5, 0.01), (0.25, 0.002), (1.0, 0.4)]
CURVE = {"exact": EXACT, "thresholds": [(0.25, 0.003), (0.75, 0.2)]}
POINTS = [("threshold", 0.01, 0.012, 0.001), ("threshold", 0.4, 0.5, 0.02), ("random", 0.1, 0.3, None)]
NAMES = ("influence-kl", "curve", "verification")


def draw_all(folder):
    profile = make_profile({"kl": [[0.5, 0.01], [], [0.1, 0.02, -0.003]]})
    return [
        *draw_influence(profile, "kl", folder),
        *draw_curve(CURVE, folder, knee=(0.5, 0.01)),
        *draw_verification(POINTS, folder),
    ]


def texts_of(path):
    """The texts of an SVG: matplotlib draws them as outlines and notes each in a comment; formulas as they are."""
    return [text.strip() for text in re.findall(r"<!--(.*?)-->", path.read_text(), flags=re.DOTALL)]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder with all pictures."""
    folder = tmp_path_factory.mktemp("pictures") / "new" / "folder"
    names = [f"{name}.{kind}" for name in NAMES for kind in ("png", "svg")]
    assert draw_all(folder) == [folder / name for name in names]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    return folder


def test_each_picture_is_a_png_for_print_and_an_svg(drawn):
    for path in drawn.iterdir():
        if path.suffix == ".png":
            pixels = imread(path)
            assert pixels.shape[1] == 990  # 3.3 inches at 300 dpi
            assert np.ptp(pixels[..., :3]) > 0.9
            # Nothing touches the edge, where it would be cut off.
            assert (pixels[[0, -1], :, :3] == 1).all()
            assert (pixels[:, [0, -1], :3] == 1).all()
        else:
            root = ElementTree.parse(path).getroot()
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            assert root.get("width") == "237.6pt"


def test_axes_are_labelled_with_units(drawn):
    influence, curve, verification = (set(texts_of(drawn / f"{name}.svg")) for name in NAMES)
    assert {"layer", "iteration", "influence by KL (nats per token)", "hatched: below 0"} <= influence
    assert {"0.50", "0.010", f"{MINUS}0.0030"} <= influence
    loss = "predicted loss (nats per token)"
    assert {"overhead cut (%)", loss, "exact", "thresholds", "knee"} <= curve
    assert {loss, "true loss (nats per token)", "threshold", "random", "predicted = true"} <= verification


def test_the_same_numbers_give_the_same_files_whatever_the_user_has_set_and_set_nothing(drawn, tmp_path):
    loaded = "matplotlib.pyplot" in sys.modules  # which would choose a window system
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.dpi": 50}):
        before = dict(dict.items(matplotlib.rcParams))  # without resolving the backend
        for path in draw_curve(CURVE, tmp_path, knee=(0.5, 0.01)):
            assert path.read_bytes() == (drawn / path.name).read_bytes()
        assert dict(dict.items(matplotlib.rcParams)) == before
    assert ("matplotlib.pyplot" in sys.modules) == loaded
    assert b"dc:date" not in (drawn / "curve.svg").read_bytes()


def test_many_iterations_and_values_over_many_decades_can_be_drawn(tmp_path):
    plan, scale = [8, 0, 5], 1e-6
    scores = [[scale * (-1) ** i * 10.0 ** -(i + t / 24) for i in range(r)] for t, r in enumerate(plan)]
    draw_influence(make_profile({"loss": scores}, plan), "loss", tmp_path)
    points = [("a", -scale, 0.0, 0.0), ("b", scale * 1e-7, scale, scale), ("b", 0.0, -scale * 1e-3, None)]
    draw_verification(points, tmp_path)
    draw_curve({"a": [(0, 0), (0.5, -1e-7), (1, 1.0)]}, tmp_path)
    assert len(list(tmp_path.iterdir())) == 6


def test_one_point_or_equal_scores_can_be_drawn(tmp_path):
    draw_influence(make_profile({"kl": [[0.0, 0.0]]}, (2,)), "kl", tmp_path)
    assert not [text for text in texts_of(tmp_path / "influence-kl.svg") if "hatched" in text]
    draw_curve({"a": [(0.0, 0.0)], "none": []}, tmp_path)
    draw_verification([("a", 0.1, 0.1, None)], tmp_path)


def test_numbers_in_cells_have_two_digits():
    values = [0.0, 0.5, 12.3, 123.4, 99.7, 2345.0, 0.001, 0.00098, -0.0123, 1e-12]
    texts = f"0 0.50 12 123 100 2.3e3 0.0010 9.8e{MINUS}4 {MINUS}0.012 1.0e{MINUS}12"
    assert " ".join(map(short_number, values)) == texts


def test_axes_are_logarithmic_where_values_span_more_than_two_decades():
    for values in ([], [0.0, 0.0], [1.0, 0.01], [0.0, -1.0, 0.02]):
        assert linear_part(values) is None
    for values, threshold in (([5.0, 0.004], 1e-3), ([5.0, -0.04, 0.0], 1e-2), ([1.0, 1e-30], 1e-5)):
        assert linear_part(values) == pytest.approx(threshold)


def test_a_missing_matplotlib_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with refused("pictures: expected matplotlib, got none: pip install 'iiad[plot]'"):
        draw_curve(CURVE, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("draw", "problem"),
    [
        (lambda folder: draw_influence(make_profile(), "loss", folder), "got 'loss'"),
        (lambda folder: draw_curve({}, folder), "curve: expected at least one point to draw, got none"),
        (
            lambda folder: draw_curve({"a": [(0.1, NAN)]}, folder),
            "curve: expected finite numbers, got (0.1, nan)",
        ),
        (lambda folder: draw_verification([], folder), "verification: expected at least one point"),
        (lambda folder: draw_verification([("a", 0.1, NAN, None)], folder), "verification: expected finite"),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_nothing_written(draw, problem, tmp_path):
    with refused(problem):
        draw(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "pictures").write_text("mine")
    with refused("curve.png: cannot be written: "):
        draw_curve(CURVE, tmp_path / "pictures")
    with refused("pictures: expected a folder for the pictures, got a file"):
        require_pictures(tmp_path / "pictures")
    assert (tmp_path / "pictures").read_text() == "mine"


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    before = [tmp_path / "curve.png", tmp_path / "curve.svg"]
    for path in before:
        path.write_text("mine")

    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with refused("cannot be written: No space left on device"):
        draw_curve({"a": [(0.0, 1.0)]}, tmp_path)
    assert sorted(tmp_path.iterdir()) == before
    assert [path.read_text() for path in before] == ["mine"] * 2
