"""A page in headless Chromium (Debian's, through Playwright): by hand with `pytest -m browser`."""

import shutil

import pytest

from iiad.planning import plan_by_threshold
from iiad.reporting.page import write_page
from tests.helpers import make_profile
from tests.reporting.test_verification_report import make_verification

pytestmark = pytest.mark.browser
QUIET = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
]


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="the extra `browser` is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on the PATH")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    profile = make_profile()
    verification = make_verification().model_copy(update={"model": profile.model})
    artefacts = [profile, plan_by_threshold(profile, 0.1), verification]
    paths = [folder / f"{artefact.kind}.json" for artefact in artefacts]
    for artefact, path in zip(artefacts, paths, strict=True):
        artefact.save(path)
    write_page(paths, folder / "report.html")
    return folder / "report.html"


@pytest.fixture(params=[(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")], ids=str)
def opened(request, chromium, page_file):
    """The page, opened offline, and what it asked for or complained about."""
    width, scheme = request.param
    context = chromium.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, reduced_motion="reduce"
    )
    page, noticed = context.new_page(), []
    page.on("console", lambda message: noticed.append(message.text))
    page.on("pageerror", lambda error: noticed.append(str(error)))
    page.on("request", lambda asked: noticed.append(asked.url) if asked.url != page_file.as_uri() else None)
    page.goto(page_file.as_uri())
    yield page
    assert not [each for each in noticed if not each.startswith("data:")]
    context.close()


def test_it_asks_for_nothing_complains_of_nothing_and_fits_the_width(opened):
    assert opened.title() == "teacher: iiad report"
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_cell_of_the_map_and_the_mark_nearest_to_the_pointer_show_their_values(opened):
    tip = opened.locator("#tip")
    assert not tip.is_visible()
    opened.locator("table.map td", has_text="0.10").first.hover()
    assert "layer 1, iteration 1: 0.1 ± 0.01 nats per token" in tip.inner_text()
    box = opened.locator(".plot .mark").nth(1)
    box.scroll_into_view_if_needed()
    place = box.bounding_box()
    opened.mouse.move(place["x"] + place["width"] / 2 + 6, place["y"] + place["height"] / 2 + 6)
    assert "cut for" in tip.inner_text()
    opened.keyboard.press("Escape")
    assert not tip.is_visible()


def test_a_table_sorts_by_click_and_by_keyboard_and_says_so(opened):
    table = opened.locator("section", has=opened.locator("#plan")).locator("table.table").first
    heading = table.locator("thead th").nth(1)

    def order():
        return [cell.inner_text() for cell in table.locator("tbody th").all()]

    before = order()
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    keys = [float(cell.get_attribute("data-key")) for cell in table.locator("tbody td:nth-child(2)").all()]
    assert keys == sorted(keys)
    assert order() != before
    heading.locator("button").focus()
    opened.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert order()[0] == table.locator("tbody th").first.inner_text()


def test_axe_finds_nothing_that_keeps_anyone_out(opened):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the extra `browser`").Axe()
    opened.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    found = axe.run(opened)
    assert not found.violations_count, found.generate_report()


def test_the_text_of_the_page_stands_out_from_what_is_behind_it(opened):
    """Ink of a cell, a paragraph and a link, as the browser has computed them."""
    from iiad.reporting.page_colours import contrast

    script = """(element) => {
        const groundOf = (each) => getComputedStyle(each).backgroundColor;
        let ground = element;
        while (groundOf(ground) === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
        return [getComputedStyle(element).color, groundOf(ground)];
    }"""
    for selector in (
        "table.map td[class]",
        "table.plan td[class]",
        "p.lead",
        "p.note",
        "nav a",
        "td",
        "summary",
    ):
        for element in opened.locator(selector).all()[:12]:
            if element.inner_text().strip() and "below" not in (element.get_attribute("class") or ""):
                colours = [_hexadecimal(colour) for colour in element.evaluate(script)]
                assert contrast(*colours) >= 4.5, (selector, colours)


def _hexadecimal(colour):
    return "#" + "".join(f"{int(part):02x}" for part in colour[4:-1].split(","))
