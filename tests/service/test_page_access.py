"""The page for everybody: small screens, dark rooms, keyboards, screen readers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from browsing import Visit
from running import Service
from scripted_job import ScriptedJob
from scripted_page import PageApi

from mics_core.spec.status import JobState

if TYPE_CHECKING:
    from playwright.sync_api import Browser

VIEWS = {
    "/": "#jobs-list li",
    "/#/jobs/job-1": "#rate-chart .mark",
    "/#/submit": "#check-summary[data-check=valid]",
    "/#/cluster": ".node-card",
}


@pytest.fixture
def lively_job(page_api: PageApi, training_job: ScriptedJob) -> ScriptedJob:
    """A job to which everything has happened, with words that are hard to fit."""
    training_job.join(2)
    training_job.commit_step()
    training_job.lose(0, "A reason with a" + " very" * 20 + " long" + "word" * 40)
    training_job.commit_step()
    training_job.set_state(JobState.RUNNING, "Trains on.")
    page_api.labels["job-1"] = {"team": "speech", "purpose": "a" * 63}
    page_api.pending = [{"resources": {"CPU": 2.0}, "count": 1}]
    page_api.logs = {"": ["x" * 400]}
    return training_job


def test_a_phone_shows_everything_without_scrolling_sideways(
    visit: Visit, lively_job: ScriptedJob
) -> None:
    page = visit.page
    page.set_viewport_size({"width": 360, "height": 740})
    for address, sign in VIEWS.items():
        visit.open(address)
        page.wait_for_selector(sign)
        assert not visit.is_too_wide, address
    visit.open("/#/jobs/job-1")
    visit.wait_for_text("#picture", "lost")
    for tab in ("Logs", "Checkpoints", "Specification"):
        page.get_by_role("tab", name=tab).click()
        assert not visit.is_too_wide, tab
    page.get_by_role("button", name="Scale…").click()
    assert not visit.is_too_wide, "the dialog"
    visit.press("Escape")
    assert page.get_by_role("navigation", name="Jobs").is_hidden()
    page.get_by_role("link", name="← All jobs").click()
    page.get_by_role("navigation", name="Jobs").wait_for(state="visible")


def test_dark_and_light_follow_the_system_until_one_is_chosen(
    visit: Visit, training_job: ScriptedJob
) -> None:
    page = visit.page
    ground = "() => getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="dark")
    visit.open("/#/jobs/job-1")
    visit.wait_for_text("#rate-readout", "step 9 ")
    dark = page.evaluate(ground)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(ground)
    assert dark != light
    button = page.get_by_role("button", name="Theme: as the system.")
    button.click()
    page.get_by_role("button", name="Theme: light.").click()
    assert page.evaluate(ground) == dark
    page.reload()
    page.get_by_role("button", name="Theme: dark.").wait_for()
    assert page.evaluate(ground) == dark, "it is remembered"
    # The canvas has no colours of its own: its line is drawn in the scheme's.
    colours = page.evaluate(
        """async () => {
            const { colourOf } = await import("/static/js/theme.js");
            return [colourOf("--rate"), colourOf("--ink-quiet")];
        }"""
    )
    assert colours == ["rgb(47, 208, 188)", "rgb(155, 165, 181)"]


def test_everything_can_be_done_with_the_keyboard_alone(
    page_api: PageApi, visit: Visit, training_job: ScriptedJob
) -> None:
    page = visit.page
    visit.open("/")
    page.wait_for_selector("#jobs-list li")
    visit.press("Tab", "Enter")
    assert page.evaluate("() => document.activeElement.id") == "content", "the link that skips"
    page.evaluate("() => document.activeElement.blur()")
    visit.open("/")
    page.wait_for_selector("#jobs-list li")
    visit.tab_to(page.locator("#jobs-list a"))
    visit.press("Enter")
    visit.wait_for_text("#job-name", training_job.spec.name)
    visit.tab_to(page.get_by_role("button", name="Scale…"))
    outline = "() => getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid", "the focus is seen"
    visit.press("Enter", "3", "Enter")
    visit.wait_for_text("#action-note", "3 groups wanted now")
    assert page.evaluate("() => document.activeElement.id") == "scale-button", "it comes back"
    visit.press("Tab", "Enter")
    visit.wait_for_text("#confirm-title", "Pause this job?")
    visit.press("Tab", "Enter")
    visit.wait_for_text("#job-state", "paused")
    visit.tab_to(page.locator("#goodput-chart .mark"))
    visit.wait_for_text("#goodput-chart .mark-note", "Step 0: groups 0–1 joined.")
    visit.tab_to(page.get_by_role("tab", name="Events"))
    visit.press("End")
    visit.wait_for_text("#spec", "partition_size: 2")
    visit.open("/#/submit")
    visit.wait_for_text("#check-summary", "Valid")
    visit.tab_to(page.get_by_role("button", name="Submit the job"))
    visit.press("Enter")
    visit.wait_for_text("#job-name", "my-first-job")


def test_no_view_breaks_a_rule_of_accessibility(visit: Visit, lively_job: ScriptedJob) -> None:
    sync_playwright = pytest.importorskip("axe_playwright_python.sync_playwright")
    axe, page = sync_playwright.Axe(), visit.page
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
    for address, sign in VIEWS.items():
        visit.open(address)
        page.wait_for_selector(sign)
        assert broken_rules(axe, page) == [], address
        page.emulate_media(color_scheme="dark")
        assert broken_rules(axe, page, rules=["color-contrast"]) == [], f"{address} in the dark"
        page.emulate_media(color_scheme="light")
    visit.open("/#/jobs/job-1")
    visit.wait_for_text("#job-name", lively_job.spec.name)
    for tab in ("Logs", "Checkpoints", "Specification"):
        page.get_by_role("tab", name=tab).click()
        assert broken_rules(axe, page, part=".tabbed") == [], tab
    for button, dialog in (("Scale…", "#scale-dialog"), ("Cancel job…", "#confirm")):
        page.get_by_role("button", name=button).click()
        assert broken_rules(axe, page, part=dialog) == [], button
        page.emulate_media(color_scheme="dark")
        dark = broken_rules(axe, page, part=dialog, rules=["color-contrast"])
        assert dark == [], f"{button} in the dark"
        page.emulate_media(color_scheme="light")
        visit.press("Escape")
    page.set_viewport_size({"width": 390, "height": 844})
    for address, sign in VIEWS.items():
        visit.open(address)
        page.locator(sign).first.wait_for(state="attached")
        assert broken_rules(axe, page) == [], f"{address} on a phone"


def test_the_login_breaks_no_rule_of_accessibility(page_api: PageApi, visit: Visit) -> None:
    sync_playwright = pytest.importorskip("axe_playwright_python.sync_playwright")
    axe, page = sync_playwright.Axe(), visit.page
    page_api.token = "mics_0123"
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        visit.open("/")
        visit.wait_for_text("#login-title", "Log in")
        visit.press("Enter")
        visit.wait_for_text("#login-error", "Enter a token.")
        assert broken_rules(axe, page) == [], scheme
    visit.meant_to_be_refused(401)


def broken_rules(
    axe: Any, page: Any, part: str | None = None, rules: list[str] | None = None
) -> list[str]:
    """Return what axe finds wrong, with the elements: on all of the page, by all of its rules."""
    found = axe.run(page, part, {"runOnly": rules} if rules else {}).response["violations"]
    return [
        f"{rule['id']}: {rule['help']}: {[node['html'][:160] for node in rule['nodes'][:4]]}"
        for rule in found
    ]


def test_the_documentation_of_the_api_needs_no_other_host_and_calls_the_service(
    browser: Browser, service: Service
) -> None:
    context = browser.new_context()
    visit = Visit(context.new_page(), str(service.client.base_url).rstrip("/"))
    visit.open("/docs")
    visit.wait_for_number(".opblock", len(openapi_operations(service)))
    visit.page.locator(".opblock", has_text="/healthz").locator(".opblock-summary-control").click()
    visit.page.get_by_role("button", name="Try it out").click()
    visit.page.get_by_role("button", name="Execute").click()
    visit.wait_for_text(".live-responses-table", '"ray": "connected"')
    context.close()
    assert visit.foreign == [], "it must work without any other host"
    assert visit.complaints == [], "its policy must let it do what it does"
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "LICENSE"):
        assert service.client.get(f"/static/vendor/swagger-ui/{name}").is_success


def openapi_operations(service: Service) -> list[str]:
    document = service.client.get("/openapi.json").json()
    return [method for operations in document["paths"].values() for method in operations]
