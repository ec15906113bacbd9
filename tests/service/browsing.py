"""Fixtures of the tests that open the page: one browser a module, one scripted service a test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from scripted_api import serving
from scripted_job import ScriptedJob, example_spec
from scripted_page import PageApi

from mics_core.spec import parse_job_spec
from mics_core.spec.status import JobState

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page, Response

_CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Visit:
    """One open page, with all that it complained about and asked for."""

    def __init__(self, page: Page, url: str):
        self.page, self.url = page, url
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        self.refused: list[int] = []
        """Statuses of refused requests; the browser itself writes each of them to its console."""
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self._note_request(request.url))
        page.on("response", self._note_response)

    def open(self, address: str) -> None:
        self.page.goto(self.url + address)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def wait_for_text(self, selector: str, text: str, within_s: float = 10.0) -> None:
        """Wait until a visible element contains the text."""
        from playwright.sync_api import expect

        seen = self.page.locator(selector).filter(visible=True)
        expect(seen).to_contain_text(text, timeout=within_s * 1000)

    def wait_for_number(self, selector: str, number: int) -> None:
        from playwright.sync_api import expect

        expect(self.page.locator(selector)).to_have_count(number, timeout=10_000)

    def meant_to_be_refused(self, status: int) -> None:
        """Say that the test provoked refusals of this status; others are complained about."""
        assert set(self.refused) == {status}
        self.refused.clear()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def tab_to(self, goal: Locator) -> None:
        """Press Tab until `goal` has the focus, as a visitor without a mouse does."""
        for _ in range(60):
            if goal.evaluate("(element) => element === document.activeElement"):
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"60 presses of Tab do not lead to {goal}")

    def come_back(self) -> None:
        """Do as if the visitor came back to the page's tab, upon which it asks anew."""
        self.page.evaluate("() => document.dispatchEvent(new Event('visibilitychange'))")

    @property
    def is_too_wide(self) -> bool:
        """Whether the page scrolls sideways."""
        width: int = self.page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
        return width > 0

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not text.startswith("Failed to load resource"):
            self.complaints.append(text)

    def _note_request(self, address: str) -> None:
        if not address.startswith((self.url, "data:", "blob:")):
            self.foreign.append(address)

    def _note_response(self, answer: Response) -> None:
        if answer.status >= 400:
            self.refused.append(answer.status)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page_api() -> Iterator[PageApi]:
    with serving(PageApi()) as api:
        assert isinstance(api, PageApi)
        yield api


@pytest.fixture
def visit(browser: Browser, page_api: PageApi) -> Iterator[Visit]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    visit = Visit(context.new_page(), page_api.url)
    yield visit
    context.close()
    assert visit.foreign == [], "the page must work without any other host"
    assert visit.complaints == [], "the page must not write errors to the console"
    assert visit.refused == [], "the page must not ask for what is refused"


@pytest.fixture
def training_job(page_api: PageApi) -> ScriptedJob:
    """Two groups of two workers that have trained ten steps of a hundred."""
    job = page_api.add(ScriptedJob("job-1", parse_job_spec(example_spec(steps=100))))
    job.join(0, 1)
    job.set_state(JobState.RUNNING, "Two groups train.")
    for _ in range(10):
        job.commit_step()
    return job
