"""What a reader of the built site meets: every page alone, on a phone, on paper, by keyboard."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

WIDGET = "script[type='application/vnd.jupyter.widget-view+json']"


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    # A context of its own, so that each test is a first visit: no stored theme, no stored scroll.
    with browser.new_context() as context:
        yield context.new_page()


def read(page: Page, url: str) -> None:
    """Open a page and wait until its formulas are set and its widgets drawn."""
    page.goto(url)
    page.evaluate("() => window.MathJax?.startup?.promise.then(() => null)")
    if page.locator(WIDGET).count():
        page.locator(".jupyter-widgets").first.wait_for(state="attached")


def pages_with_explorers(page: Page, site: str, pages: list[str]) -> Iterator[str]:
    for path in pages:
        read(page, site + path)
        if page.locator(".explorer").count():
            yield path


def test_pages_ask_only_their_own_site_and_raise_nothing(page: Page, site: str, pages: list[str]) -> None:
    complaints: list[str] = []

    def complain(what: str) -> None:
        complaints.append(f"{page.url.removeprefix(site)}: {what}")

    page.on("pageerror", lambda error: complain(f"raised {error}"))
    page.on("console", lambda line: line.type == "error" and complain(f"logged {line.text}"))
    page.on("requestfailed", lambda request: complain(f"failed to load {request.url[:200]}"))
    page.on("response", lambda got: got.status >= 400 and complain(f"{got.status} {got.url}"))
    page.on(
        "request",
        lambda request: request.url.startswith((site, "data:", "blob:")) or complain(f"asked for {request.url[:200]}"),
    )
    for path in pages:
        read(page, site + path)
    assert not complaints, "\n".join(complaints)


def test_every_image_says_what_it_shows(page: Page, site: str, pages: list[str]) -> None:
    silent = []
    for path in pages:
        read(page, site + path)
        for image in page.locator("main img").all():
            if not (image.get_attribute("alt") or "").strip():
                silent.append(f"{path}: {image.get_attribute('src')[:80]}")
    assert not silent, "\n".join(silent)


def test_no_page_is_wider_than_a_phone(page: Page, site: str, pages: list[str]) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    wide = {}
    for path in pages:
        read(page, site + path)
        if (width := page.evaluate("document.documentElement.scrollWidth")) > 390:
            wide[path] = width
    assert not wide


def test_explorers_move_by_keyboard(page: Page, site: str, pages: list[str]) -> None:
    moved = 0
    for path in pages_with_explorers(page, site, pages):
        for explorer in page.locator(".explorer").all():
            handle, image = explorer.get_by_role("slider"), explorer.locator("img")
            expect(handle, path).to_have_attribute("aria-label", re.compile(r"\S"))
            handle.press("Home")
            for _ in range(round(float(handle.get_attribute("aria-valuemax")))):
                before = image.get_attribute("src")
                handle.press("ArrowRight")
                expect(image, path).not_to_have_attribute("src", before)
                expect(image, path).to_have_attribute("alt", re.compile(r"\S"))
                moved += 1
    assert moved, "no page has an explorer"


def test_explorers_stand_still_on_paper_and_without_scripts(
    browser: Browser, page: Page, site: str, pages: list[str]
) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        plain = context.new_page()
        for path in pages_with_explorers(page, site, pages):
            expect(page.locator(".explorer-still").first, path).to_be_hidden()
            page.emulate_media(media="print")
            plain.goto(site + path)
            expect(page.locator(".explorer").first, path).to_be_hidden()
            explorers = page.locator(".explorer").count()
            for view in (page, plain):
                expect(view.locator(".explorer-still:visible"), path).to_have_count(explorers)
            page.emulate_media(media="screen")


def test_search_finds_a_page(page: Page, site: str) -> None:
    page.goto(site + "search.html?q=encoder")
    expect(page.locator("#search-results li a").first).to_be_visible()
