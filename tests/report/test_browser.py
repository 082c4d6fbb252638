"""The page in a real browser: Chromium from the system's packages, driven by Playwright."""

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from imagepipe.core.manifest import DatasetInfo
from tests.report.conftest import make_predictions
from tests.report.test_page import NASTY, make_info, write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
LONG = "a very long name " * 18  # some 300 letters
NAMES = [NASTY, LONG, '"><img src=x onerror=alert(1)>']
SWITCHES = [
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=SWITCHES, chromium_sandbox=False)
        yield chromium
        chromium.close()


class Watched:
    """A page that was opened, and what it asked for and complained of since."""

    def __init__(self, browser: Browser, path: Path, **options: Any) -> None:
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page: Page = browser.new_context(**options).new_page()
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("dialog", lambda dialog: self.messages.append(f"dialog: {dialog.message}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def check(self) -> None:
        """Nothing was complained of, and nothing was asked for outside of the page."""
        assert self.messages == []
        assert {url.partition(":")[0] for url in self.requests} <= {"file", "data"}
        assert sum(url.startswith("file:") for url in self.requests) == 1


def rename(predictions: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """The same predictions of classes with other names."""
    new = dict(zip(["cat", "dog", "NA"], names, strict=True))
    columns = {f"logit:{old}": f"logit:{name}" for old, name in new.items()}
    changed = predictions.rename(columns=columns)
    return changed.assign(**{name: changed[name].map(new) for name in ("class", "predicted")})


@pytest.fixture
def nasty(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page whose classes have names that want to be markup, or fill a line."""

    def make(wrong: int) -> pd.DataFrame:
        return rename(make_predictions(wrong), NAMES)

    monkeypatch.setattr("tests.report.test_page.make_predictions", make)
    counts = pd.read_csv(folder / "balance/counts.csv", dtype=str, keep_default_na=False)
    names = dict(zip(["cat", "dog", "NA"], NAMES, strict=True))
    counts.assign(**{"class": counts["class"].map(names)}).to_csv(folder / "balance/counts.csv", index=False)
    info: DatasetInfo = make_info(classes=NAMES)
    write_report(folder, info, wrong=4)
    return folder / "report.html"


@pytest.fixture
def plain(folder: Path) -> Path:
    write_report(folder, make_info(), wrong=4)
    return folder / "report.html"


def read_column(page: Page, column: int) -> list[str]:
    return page.locator(f"#per-class tbody tr > :nth-child({column})").all_inner_texts()


def test_a_click_on_a_heading_sorts_the_table_and_a_second_one_turns_it(browser: Browser, plain: Path) -> None:
    watched = Watched(browser, plain)
    page = watched.page
    assert read_column(page, 1) == ["cat", "dog", "NA"]
    page.get_by_role("button", name="predicted").click()
    assert [int(text) for text in read_column(page, 3)] == [3, 2, 1]
    assert page.locator("#per-class th[aria-sort=descending]").inner_text().startswith("predicted")
    page.get_by_role("button", name="predicted").click()
    assert [int(text) for text in read_column(page, 3)] == [1, 2, 3]
    page.get_by_role("button", name="class").focus()
    page.keyboard.press("Enter")
    assert read_column(page, 1) == ["cat", "dog", "NA"]
    assert page.locator("#per-class th[aria-sort]").count() == 1
    watched.check()


def test_mistakes_are_filtered_by_what_they_are_and_what_they_were_taken_for(browser: Browser, plain: Path) -> None:
    """Four mistakes, of which the first and the last are cats that were taken for dogs."""
    watched = Watched(browser, plain)
    page = watched.page
    cards = page.locator("#mistakes > li:visible")
    assert cards.count() == 4
    page.get_by_label("true class").select_option("cat")
    assert cards.count() == 2
    assert page.locator("#shown").inner_text() == "2 shown"
    page.get_by_label("taken for").select_option("NA")
    assert cards.count() == 0
    page.get_by_label("true class").select_option("")
    assert cards.count() == 1
    watched.check()


def test_names_are_shown_as_text_and_run_nothing(browser: Browser, nasty: Path) -> None:
    watched = Watched(browser, nasty)
    page = watched.page
    assert read_column(page, 1)[0] == NASTY
    assert page.locator("#per-class tbody tr").nth(1).locator("th").inner_text().strip() == LONG.strip()
    page.get_by_label("true class").select_option(NASTY)
    assert page.locator("#mistakes > li:visible").count() == 2
    assert page.locator("img[src=x]").count() == 0
    watched.check()


@pytest.mark.parametrize("width", [380, 1400])
@pytest.mark.parametrize("kind", ["plain", "nasty"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(
    browser: Browser, request: pytest.FixtureRequest, width: int, kind: str, scheme: str
) -> None:
    path: Path = request.getfixturevalue(kind)
    watched = Watched(browser, path, viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
    watched.check()


def find_contrast(page: Page, selector: str) -> float:
    """The contrast of an element's text with what lies behind it (WCAG 2.1, 1.4.3)."""
    return page.evaluate(
        """selector => {
          const parse = (text) => text.match(/[\\d.]+/g).map(Number);
          const light = (rgb) => rgb.slice(0, 3).map((v) => v / 255).map((v) =>
            v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4).reduce((sum, v, i) =>
            sum + v * [0.2126, 0.7152, 0.0722][i], 0);
          const element = document.querySelector(selector);
          let behind = element;
          const clear = (one) => (parse(getComputedStyle(one).backgroundColor)[3] ?? 1) === 0;
          while (behind && clear(behind)) behind = behind.parentElement;
          const ground = behind ? parse(getComputedStyle(behind).backgroundColor) : [255, 255, 255];
          const [high, low] = [light(parse(getComputedStyle(element).color)), light(ground)].sort((a, b) => b - a);
          return (high + 0.05) / (low + 0.05);
        }""",
        selector,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_by_day_and_by_night(browser: Browser, plain: Path, scheme: str) -> None:
    page = Watched(browser, plain, color_scheme=scheme).page
    for selector in (".headline", "h1", "figcaption", "nav a", ".gallery .wrong", ".bars .share", ".cards li", "td"):
        assert find_contrast(page, selector) >= 4.5, selector


def test_everything_has_a_name_for_who_cannot_see_it(browser: Browser, plain: Path) -> None:
    page = Watched(browser, plain).page
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    assert page.locator("select").count() == page.locator("label select").count() == 2
    assert page.locator(".wide:not([aria-label])").count() == 0
    levels = [int(text[1]) for text in page.locator("h1, h2, h3").evaluate_all("all => all.map(e => e.tagName)")]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_without_scripts_everything_is_there(browser: Browser, plain: Path) -> None:
    """As most programs for e-mail show it."""
    page = Watched(browser, plain, java_script_enabled=False).page
    assert page.locator("#mistakes > li").count() == 4
    assert page.locator("#per-class tbody tr").count() == 3


def read_arrow(page: Page, heading: int) -> str:
    return page.evaluate(
        "place => getComputedStyle(document.querySelectorAll('#per-class button')[place], '::after').content", heading
    )


def test_it_prints_all_mistakes_and_nothing_to_click(browser: Browser, plain: Path) -> None:
    """But the arrow of the heading that the table is sorted by: on paper, too, it says so."""
    page = Watched(browser, plain).page
    page.get_by_label("true class").select_option("cat")
    page.get_by_role("button", name="predicted").click()
    assert page.locator("#mistakes > li:visible").count() == 2
    assert read_arrow(page, 0) == '" ↕"'
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert not page.locator(".filters").is_visible()
    assert page.locator("#mistakes > li:visible").count() == 4
    assert (read_arrow(page, 0), read_arrow(page, 2)) == ('""', '" ↓"')


def test_no_column_of_a_table_is_cut_off_on_paper(browser: Browser, plain: Path) -> None:
    """A4 less Chromium's usual margins is 718 pixels wide."""
    page = Watched(browser, plain, viewport={"width": 718, "height": 1000}).page
    page.emulate_media(media="print")
    tables = page.locator(".wide:visible").evaluate_all("all => all.map(e => [e.scrollWidth, e.clientWidth])")
    assert [needed - given for needed, given in tables] == [0] * len(tables)


def test_a_narrow_window_has_two_pictures_side_by_side(browser: Browser, plain: Path) -> None:
    page = Watched(browser, plain, viewport={"width": 320, "height": 900}).page
    columns = page.evaluate("getComputedStyle(document.getElementById('mistakes')).gridTemplateColumns.split(' ')")
    assert len(columns) == 2
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
