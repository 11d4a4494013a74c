"""The page in headless Chromium: ``make test-browser``."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from nnunetv2_kd.leaderboard.board import make_boards
from nnunetv2_kd.leaderboard.page import to_page
from nnunetv2_kd.leaderboard.request import LeaderboardRequest

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: make test-browser")
    with playwright.sync_playwright() as started:
        installed = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
        # as root Chromium starts only without its sandbox; the page is our own
        try:
            found = started.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium that starts: {str(error).splitlines()[0]}; make test-browser")
        yield found
        found.close()


@pytest.fixture
def address(family, tmp_path) -> str:
    file = tmp_path / "index.html"
    file.write_text(
        to_page(make_boards(LeaderboardRequest(["7"], torch.device("cpu")), lambda line: None)), encoding="utf-8"
    )
    return file.as_uri()


@pytest.fixture
def page(browser, address) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
    opened.goto(address)
    yield opened
    assert said == []  # no error, no warning, nothing asked of the network
    opened.close()


def column(page: Any, heading: str) -> list[str]:
    headings = [text.strip() for text in page.locator("table.sortable thead th").all_inner_texts()]
    cells = page.locator(f"table.sortable tbody tr:visible > :nth-child({headings.index(heading) + 1})")
    return [text.strip() for text in cells.all_inner_texts()]


def test_sorting(page):
    dice = column(page, "Dice")
    assert dice == sorted(dice, reverse=True)
    header = page.get_by_role("columnheader", name="Dice", exact=True)
    header.get_by_role("button").click()
    assert column(page, "Dice") == sorted(dice)
    assert header.get_attribute("aria-sort") == "ascending"
    assert page.locator("th[aria-sort]").count() == 1
    header.get_by_role("button").press("Enter")  # by keyboard
    assert header.get_attribute("aria-sort") == "descending"
    assert column(page, "Dice") == sorted(dice, reverse=True)


def test_numbers_sort_as_numbers_and_unknown_goes_last(page):
    button = page.get_by_role("columnheader", name="gap closed").get_by_role("button")
    for _ in range(2):
        button.click()
        assert column(page, "gap closed")[-2:] == ["–", "–"]
    page.get_by_role("columnheader", name="model").get_by_role("button").click()
    names = column(page, "model")
    assert [name.lower() for name in names] == sorted(name.lower() for name in names)


def test_filtering(page):
    page.get_by_label("Filter").fill("region")
    assert column(page, "model") == ["RegionKD · Small"]
    assert page.locator("output").inner_text() == "1 of 4 models"
    page.get_by_label("Filter").fill("")
    page.get_by_label("Kind").select_option("student alone")
    assert column(page, "model") == ["KDBaseline · Small"]
    page.get_by_label("Kind").select_option("")
    page.get_by_label("Filter").fill("nnUNetTrainerKD__nnUNetPlansSmall")  # the whole name too
    assert len(column(page, "model")) == 1
    page.get_by_label("Filter").press("Enter")
    assert page.url.endswith("index.html")


@pytest.mark.parametrize("width", [390, 768, 1280, 1920])
def test_only_tables_and_pictures_scroll_sideways(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [390, 768, 1280, 1920])
def test_no_name_reaches_into_the_next_column(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    for cell in page.locator("table.sortable tbody th").all():
        assert cell.evaluate("cell => cell.scrollWidth <= cell.clientWidth")


@pytest.mark.parametrize("width", [768, 1280, 1920])
def test_the_columns_that_are_shown_first_are_all_in_view(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    assert page.locator("table.sortable").evaluate("table => table.getBoundingClientRect().right") <= width


def test_all_columns_on_request(page):
    assert not page.get_by_role("columnheader", name="folds").is_visible()
    page.get_by_label("All columns").check()
    assert page.get_by_role("columnheader", name="folds").is_visible()


def test_without_javascript(browser, address):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    assert len(column(page, "model")) == 4
    assert not page.get_by_label("Filter").is_visible()
    page.locator("summary").first.click()
    assert page.locator("details[open]").count() == 1
    context.close()
