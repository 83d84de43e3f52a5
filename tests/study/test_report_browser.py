"""The page in a real browser: nothing on the console, nothing over the network, nothing sideways.

Needs playwright and an installed chromium. Without them the tests are skipped, or fail where
FINEPRUNE_BROWSER=1 says that they must run.
"""

import os
import shutil

import pytest
from study.reports import make_bench, make_record, make_run

from fineprune.study.report import write_report

NAMES = ("chromium", "chromium-browser", "google-chrome")
SIZES = ((390, 844), (1440, 900))
SCHEMES = ("light", "dark")
MUST = os.environ.get("FINEPRUNE_BROWSER") == "1"

if not MUST:
    pytest.importorskip("playwright", reason="needs playwright: pip install playwright")


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        reason = f"needs a browser: none of {', '.join(NAMES)} is installed"
        pytest.fail(reason) if MUST else pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of a study, of a run, and of a folder without runs."""
    folder = tmp_path_factory.mktemp("study")
    record = make_record(128, 3, 0.1)
    make_run(folder / "task-dense-s0", "dense", score=0.9)
    for method in ("movement", "magnitude"):
        for density in (0.1, 0.03):
            name = f"task-{method}-{density}-s0"
            make_run(folder / name, method, density, 0.8 + density / 10, record=record)
    long = "a-name-without-an-end" * 6
    make_run(folder / long, "l0", score=0.8, record=record)
    (folder / "failures.jsonl").write_text('{"run": "task-l0-0.5-s0", "error": "%s"}\n' % ("no/room/" * 40))
    run = folder / "task-movement-0.1-s0"
    make_bench(run, {"torch": 1.0, "engine bfloat16": 12.0})
    return {
        "run": write_report(run),
        "study": write_report(folder),
        "empty": write_report(tmp_path_factory.mktemp("empty")),
    }


@pytest.fixture
def opened(browser, pages):
    """`opened(name, size, scheme)`: the page in a window; what it said and asked for must be nothing."""
    contexts, heard = [], []

    def opened(name, size, scheme):
        width, height = size
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        url = pages[name].resolve().as_uri()
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on(
            "request",
            lambda asked: heard.append(asked.url) if asked.url != url and asked.url[:5] != "data:" else None,
        )
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert heard == []


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["study", "run", "empty"])
def test_a_page_fits(opened, name, size, scheme):
    page = opened(name, size, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    # What is wider than the window is inside what scrolls by itself.
    outside = page.evaluate(
        """() => [...document.querySelectorAll("body *")]
            .filter((one) => !one.closest(".scroll, dialog"))
            .filter((one) => one.getBoundingClientRect().right > innerWidth + 1)
            .map((one) => one.outerHTML.slice(0, 200))"""
    )
    assert outside == []
    paper, ink = (
        page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color")
    )
    assert (brightness(paper) > brightness(ink)) == (scheme == "light")


def brightness(color):
    return sum(int(part) for part in color.strip("rgb()").split(","))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", SIZES)
def test_a_click_opens_the_mask_and_escape_closes_it(opened, size, scheme):
    page = opened("run", size, scheme)
    dialog, picture = page.locator("dialog#mask"), page.locator("dialog#mask img")
    assert not dialog.is_visible()
    for number, ratio in ((0, 1), (4, 1 / 4), (5, 4)):  # query, intermediate, output
        cell = page.locator("button.cell").nth(number)
        cell.click()
        assert dialog.is_visible()
        page.wait_for_function("document.getElementById('picture').complete")
        assert picture.evaluate("one => one.naturalWidth") == 128
        box, frame = picture.bounding_box(), dialog.bounding_box()
        assert box["width"] / box["height"] == pytest.approx(ratio, rel=0.05)
        assert frame["x"] >= 0
        assert frame["x"] + frame["width"] <= size[0]
        rows, columns = page.locator("svg#rows").bounding_box(), page.locator("svg#columns").bounding_box()
        assert rows["height"] == pytest.approx(box["height"], abs=1)
        assert columns["width"] == pytest.approx(box["width"], abs=1)
        assert page.locator("#rows path").evaluate("one => one.getBoundingClientRect().width") > 10
        assert page.locator("#mask-name").inner_text() == cell.get_attribute("title")
        page.keyboard.press("Escape")
        assert not dialog.is_visible()


def test_the_keyboard_is_enough(opened):
    page = opened("run", SIZES[1], "light")
    page.locator("button.cell").nth(1).focus()
    page.keyboard.press("Enter")
    assert page.locator("dialog#mask").is_visible()
    page.keyboard.press("Enter")  # on Close, which has the focus
    assert not page.locator("dialog#mask").is_visible()


def test_another_run_is_chosen(opened):
    page = opened("study", SIZES[0], "light")
    assert page.locator(".map:visible").count() == 1
    page.select_option("select#run", index=1)
    assert page.locator(".map:visible").get_attribute("id") == "map-1"
    page.locator("button.cell:visible").first.click()
    assert page.locator("#mask-name").inner_text() == "bert.encoder.layer.0.attention.self.query"
