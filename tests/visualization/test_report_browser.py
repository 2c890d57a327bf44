"""The report in a real browser: Chromium without a window."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine", allow_module_level=True)

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def report(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_runs import aicsd

    out = tmp_path_factory.mktemp("page") / "report.html"
    aicsd("report", runs / "alone", runs / "distilled", "-o", out)
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, report: Path) -> Iterator[Open]:
    """Opens the report; at the end nothing may have been logged, thrown or fetched."""
    problems: list[str] = []
    contexts: list[Any] = []

    def open_page(width: int = 1000, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: fetched(request.url))
        page.goto(report.as_uri())
        return page

    def fetched(url: str) -> None:
        if not url.startswith("data:") and url != report.as_uri():
            problems.append(f"fetched {url}")

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def test_paging_by_buttons_and_keys(open_page: Open) -> None:
    page = open_page()
    place = page.locator("#place")
    assert in_view(page) == [0]
    before = page.locator("#over").get_attribute("src")
    assert place.inner_text().startswith("1 / 4")
    page.click("#after")
    assert place.inner_text().startswith("2 / 4")
    assert page.locator("#over").get_attribute("src") != before
    page.focus("#before")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert place.inner_text().startswith("4 / 4")
    page.focus("#panels")
    page.keyboard.press("ArrowRight")
    assert place.inner_text().startswith("1 / 4")
    page.keyboard.press("ArrowLeft")
    assert place.inner_text().startswith("4 / 4")
    page.wait_for_timeout(200)
    assert in_view(page) == [3]
    assert page.locator(".panel h3").nth(3).inner_text() in place.inner_text()


def in_view(page: Any) -> list[int]:
    """Numbers of the panels that lie inside their box."""
    found: list[int] = page.evaluate(
        "(() => { const box = document.getElementById('panels').getBoundingClientRect();"
        " return [...document.querySelectorAll('.panel')].flatMap((panel, number) => {"
        " const at = panel.getBoundingClientRect();"
        " return at.left < box.right - 1 && at.right > box.left + 1 ? [number] : []; }); })()"
    )
    return found


def test_a_swipe_stops_at_a_page(open_page: Open) -> None:
    page = open_page(360, has_touch=True, is_mobile=True)
    page.locator("#panels").scroll_into_view_if_needed()
    page.evaluate("document.getElementById('panels').scrollBy({ left: 250 })")
    page.wait_for_timeout(500)
    assert in_view(page) == [1]
    assert page.locator("#place").inner_text().startswith("2 / 4")


def test_a_wide_table_scrolls_in_its_box(open_page: Open) -> None:
    page = open_page(320)
    box = "document.querySelector('.scroll')"
    assert page.evaluate(f"{box}.scrollWidth > {box}.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def cut(page: Any) -> float:
    """Border between the two compared pictures, in percent of their width."""
    style = "getComputedStyle(document.getElementById('compare'))"
    return float(page.evaluate(f"parseFloat({style}.getPropertyValue('--at'))"))


def test_slider_by_mouse_and_keyboard(open_page: Open) -> None:
    page = open_page()
    assert cut(page) == 50
    page.locator("#compare").scroll_into_view_if_needed()
    box = page.locator("#compare").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + 20, steps=3)
    page.mouse.up()
    assert cut(page) == pytest.approx(80, abs=2)
    page.focus("#slider")
    page.keyboard.press("Home")
    assert cut(page) == 0
    page.keyboard.press("ArrowRight")
    assert cut(page) == 1
    page.keyboard.press("End")
    assert cut(page) == 100


def test_the_slider_uncovers_the_other_picture(open_page: Open) -> None:
    page = open_page()
    page.select_option("#left", "image")
    page.select_option("#right", "ground truth")
    frame = page.locator("#compare")
    page.focus("#slider")
    page.keyboard.press("Home")
    right = frame.screenshot()
    page.focus("#slider")
    page.keyboard.press("End")
    assert frame.screenshot() != right
    sources = page.locator(".panel").first.locator("img")
    titles = {sources.nth(n).get_attribute("data-title"): sources.nth(n) for n in range(2)}
    assert page.locator("#over").get_attribute("src") == titles["image"].get_attribute("src")
    wanted = titles["ground truth"].get_attribute("src")
    assert page.locator("#under").get_attribute("src") == wanted


def test_students_are_compared_at_first(open_page: Open) -> None:
    page = open_page()
    assert page.input_value("#left") == "student alone"
    assert page.input_value("#right") == "student AICSD"


def test_matrices_tell_their_entries(open_page: Open) -> None:
    page = open_page()
    figure = page.locator(".heat").first
    picture = figure.locator("svg")
    picture.focus()
    page.keyboard.press("ArrowDown")
    assert figure.locator("output").inner_text().startswith("disc → ground: ")
    picture.locator("image").first.hover(position={"x": 5, "y": 5})
    assert figure.locator("output").inner_text().startswith("ground → ground: ")


@pytest.mark.parametrize("width", [320, 360, 1000])
def test_nothing_overflows(open_page: Open, width: int) -> None:
    page = open_page(width)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate(
        "[...document.querySelectorAll('body *')].filter((e) => !e.closest('.scroll, #panels') &&"
        " e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 80))"
    )
    assert wide == []


def luminance(color: str) -> float:
    red, green, blue = (int(part) for part in color[4:-1].split(",")[:3])
    return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(open_page: Open, scheme: str) -> None:
    page = open_page(color_scheme=scheme)
    style = "getComputedStyle(document.body)"
    paper = luminance(page.evaluate(f"{style}.backgroundColor"))
    ink = luminance(page.evaluate(f"{style}.color"))
    assert (paper > ink) == (scheme == "light")
    assert abs(paper - ink) > 0.7


def test_without_javascript_everything_is_there(open_page: Open) -> None:
    page = open_page(java_script_enabled=False)
    assert page.locator(".panel:visible").count() == 4
    assert page.locator("#slider:visible, #compare:visible, button:visible").count() == 0
    assert page.locator("polyline").count() > 0
