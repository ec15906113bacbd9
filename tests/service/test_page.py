"""The page in a real browser, against a scripted service that sends what the real one would."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator

import pytest
from running import eventually
from scripted_api import ScriptedApi, serving
from scripted_job import ScriptedJob, example_spec

from mics_core.spec import parse_job_spec
from mics_core.spec.status import GroupState, JobState

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

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

    def __init__(self, page: sync_api.Page, url: str):
        self.page, self.url = page, url
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self._note_request(request.url))

    def open(self, address: str) -> None:
        self.page.goto(self.url + address)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def wait_for_text(self, selector: str, text: str) -> None:
        sync_api.expect(self.page.locator(selector)).to_contain_text(text, timeout=10_000)

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def _note_request(self, address: str) -> None:
        if not address.startswith((self.url, "data:", "blob:")):
            self.foreign.append(address)


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def api() -> Iterator[ScriptedApi]:
    with serving(ScriptedApi()) as api:
        yield api


@pytest.fixture
def visit(browser: sync_api.Browser, api: ScriptedApi) -> Iterator[Visit]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    visit = Visit(context.new_page(), api.url)
    yield visit
    context.close()
    assert visit.foreign == [], "the page must work without any other host"


@pytest.fixture
def job(api: ScriptedApi) -> ScriptedJob:
    job = api.add(ScriptedJob("job-1", parse_job_spec(example_spec(steps=100))))
    job.join(0, 1)
    job.set_state(JobState.RUNNING, "Two groups train.")
    for _ in range(10):
        job.commit_step()
    return job


def test_the_list_leads_to_a_job_and_names_stay_text(api: ScriptedApi, visit: Visit) -> None:
    spec = parse_job_spec(example_spec(name="<img src=x onerror=alert(1)>"))
    api.add(ScriptedJob("job-odd", spec))
    visit.open("/")
    visit.page.get_by_role("link", name="<img src=x").click()
    visit.wait_for_text("#job-name", "<img src=x onerror=alert(1)>")
    visit.wait_for_text("#picture", "No partition group yet")
    assert visit.page.url.endswith("#/jobs/job-odd")
    assert visit.complaints == []


def test_charts_and_progress_follow_the_events(visit: Visit, job: ScriptedJob) -> None:
    visit.open("/#/jobs/job-1")
    visit.wait_for_text("#rate-readout", "step 9 ")
    for _ in range(40):
        job.commit_step()
    visit.wait_for_text("#rate-readout", "step 49 ")
    visit.wait_for_text("#loss-readout", "step 49 ")
    visit.wait_for_text("#job-steps", "50 of 100 steps · 50 %")
    visit.wait_for_text("#job-remaining", "left")
    assert visit.page.locator(".chart canvas").count() == 2
    assert visit.complaints == []


def test_a_joining_group_appears_and_a_lost_one_is_struck_out_with_its_reason(
    visit: Visit, job: ScriptedJob
) -> None:
    visit.open("/#/jobs/job-1")
    sync_api.expect(visit.page.locator("#picture [data-group=member]")).to_have_count(2)
    job.join(2)
    sync_api.expect(visit.page.locator("#picture [data-group=member]")).to_have_count(3)
    assert visit.page.locator("#picture .replication").count() == 2
    job.lose(1, "Its node 10.0.0.5 died.")
    visit.wait_for_text("#picture [data-id='1']", "lost")
    assert visit.page.locator("#picture [data-id='1'] .strike").count() == 1
    visit.wait_for_text("#picture-others", "Its node 10.0.0.5 died.")
    visit.wait_for_text("#events li >> nth=0", "Generation 3")
    visit.wait_for_text("#announcer", "Generation 3: Group 1 was lost")
    assert visit.complaints == []


@pytest.mark.parametrize(
    ("partition_size", "workers_per_node", "num_boxes"),
    [(2, 2, 2), (2, 4, 1), (4, 2, 4)],
    ids=["a node each", "two groups on a node", "two nodes a group"],
)
def test_boxes_show_which_node_holds_which_workers(
    api: ScriptedApi, visit: Visit, partition_size: int, workers_per_node: int, num_boxes: int
) -> None:
    job = ScriptedJob(
        "placed",
        parse_job_spec(example_spec()),
        partition_size=partition_size,
        workers_per_node=workers_per_node,
    )
    api.add(job).join(0, 1)
    visit.open("/#/jobs/placed")
    sync_api.expect(visit.page.locator("#picture .node")).to_have_count(num_boxes)
    sync_api.expect(visit.page.locator("#picture .worker")).to_have_count(2 * partition_size)
    sync_api.expect(visit.page.locator("#picture .replication")).to_have_count(partition_size)


def test_the_skip_link_moves_the_focus_and_keeps_the_job(visit: Visit, job: ScriptedJob) -> None:
    visit.open("/#/jobs/job-1")
    visit.wait_for_text("#job-name", job.spec.name)
    visit.page.keyboard.press("Tab")
    visit.page.keyboard.press("Enter")
    assert visit.page.evaluate("() => document.activeElement.id") == "content"
    assert visit.page.locator("#job").is_visible()


def test_hovering_a_mark_tells_why_the_generation_was_formed(
    visit: Visit, job: ScriptedJob
) -> None:
    job.join(2, reason="Group 2 joined as asked.")
    for _ in range(10):
        job.commit_step()
    visit.open("/#/jobs/job-1")
    visit.wait_for_text("#rate-readout", "step 19 ")
    box = visit.page.locator("#rate-chart .u-over").bounding_box()
    assert box is not None
    visit.page.mouse.move(box["x"] + box["width"] * 10 / 19, box["y"] + box["height"] / 2)
    visit.wait_for_text("#rate-chart .mark-note", "Group 2 joined as asked.")
    visit.wait_for_text("#rate-readout", "step 10 ")


def test_scaling_asks_the_service_and_shows_its_refusal(
    api: ScriptedApi, visit: Visit, job: ScriptedJob
) -> None:
    visit.open("/#/jobs/job-1")
    visit.page.get_by_role("spinbutton", name="Partition groups").fill("3")
    visit.page.keyboard.press("Enter")
    visit.wait_for_text("#action-note", "3 groups are wanted now")
    assert job.wanted == 3
    assert [(path, json.loads(body)) for _, path, body in api.calls] == [
        ("/api/v1/jobs/job-1/scale", {"groups": 3})
    ]
    visit.page.get_by_role("spinbutton", name="Partition groups").fill("9")
    visit.page.get_by_role("button", name="Scale").click()
    visit.wait_for_text("#action-error", "from 1 to 4")
    assert len(api.calls) == 1


def test_cancelling_asks_first(api: ScriptedApi, visit: Visit, job: ScriptedJob) -> None:
    visit.open("/#/jobs/job-1")
    visit.page.get_by_role("button", name="Cancel job…").click()
    visit.page.get_by_role("button", name="Keep it running").click()
    assert api.calls == []
    visit.page.get_by_role("button", name="Cancel job…").click()
    visit.page.get_by_role("button", name="Cancel the job").click()
    visit.wait_for_text("#job-state", "cancelled")
    visit.wait_for_text("#connection", "job ended")
    assert job.state is JobState.CANCELLED
    assert visit.page.locator("#actions").is_hidden()


def test_a_cut_stream_goes_on_without_a_gap(
    api: ScriptedApi, visit: Visit, job: ScriptedJob
) -> None:
    api.cut_after = 5
    visit.open("/#/jobs/job-1")
    eventually(lambda: 5 in api.stream_starts, "the page asks again from event 5")
    for _ in range(5):
        job.commit_step()
    visit.wait_for_text("#rate-readout", "step 14 ")


def test_an_unknown_job_is_named(visit: Visit) -> None:
    visit.open("/#/jobs/nobody")
    visit.wait_for_text("#job-error", "no job has the id 'nobody'")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_everything_without_scrolling_sideways(
    visit: Visit, job: ScriptedJob, scheme: str
) -> None:
    job.set_state(JobState.RUNNING, "A reason with a" + " very" * 20 + " long" + "word" * 40)
    visit.page.set_viewport_size({"width": 360, "height": 740})
    visit.page.emulate_media(color_scheme=scheme)
    visit.open("/#/jobs/job-1")
    visit.wait_for_text("#rate-readout", "step 9 ")
    width = visit.page.evaluate("() => document.documentElement.scrollWidth")
    assert width <= 360
    assert visit.page.get_by_role("navigation", name="Jobs").is_hidden()
    visit.page.get_by_role("link", name="← All jobs").click()
    sync_api.expect(visit.page.get_by_role("navigation", name="Jobs")).to_be_visible()


def test_2000_steps_and_64_groups_stay_smooth(api: ScriptedApi, visit: Visit) -> None:
    spec = example_spec(steps=2100, maximum=64) | {"groups": {"wanted": 64, "maximum": 64}}
    job = api.add(ScriptedJob("big", parse_job_spec(spec)))
    job.join(*range(64))
    job.set_state(JobState.RUNNING, "All groups train.")
    for _ in range(2000):
        job.commit_step()
    visit.open("/#/jobs/big")
    visit.wait_for_text("#rate-readout", "step 1,999 ")
    sync_api.expect(visit.page.locator("#picture [data-group=member]")).to_have_count(64)
    visit.page.evaluate("""() => {
        window.longestFrame = 0;
        let last = performance.now();
        const watch = (now) => {
            window.longestFrame = Math.max(window.longestFrame, now - last);
            last = now;
            requestAnimationFrame(watch);
        };
        requestAnimationFrame(watch);
    }""")
    for _ in range(50):
        job.commit_step()
        time.sleep(0.01)
    job.set_group(7, GroupState.LOST, "Killed by signal 9.")
    visit.wait_for_text("#picture [data-id='7']", "lost")
    visit.wait_for_text("#rate-readout", "step 2,049 ")
    # Generous, for busy machines; a page that redrew on every event would take far longer.
    assert visit.page.evaluate("() => window.longestFrame") < 500
    assert visit.complaints == []
