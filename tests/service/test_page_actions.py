"""What visitors do on the page: scale, pause, cancel, submit, plan, log in and out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browsing import Visit
from fakes import FakeCluster
from running import Service
from scripted_job import ScriptedJob
from scripted_page import PageApi

from mics_core.spec.status import JobState

if TYPE_CHECKING:
    from playwright.sync_api import Route


@pytest.fixture
def service_database() -> None:
    """Not of both kinds: the page sees no difference."""


def asked(api: PageApi, path: str) -> list[Any]:
    """Bodies of the requests to a path, in order."""
    return [json.loads(body or "null") for _, where, body in api.calls if where == path]


def test_scaling_changes_the_number_or_the_bounds_and_shows_refusals(
    page_api: PageApi, visit: Visit, training_job: ScriptedJob
) -> None:
    visit.open("/#/jobs/job-1")
    page = visit.page
    page.get_by_role("button", name="Scale…").click()
    page.get_by_role("button", name="One group more").click()
    visit.wait_for_text("#scale-summary", "From 2 groups to 3 groups.")
    page.get_by_role("button", name="Scale", exact=True).click()
    visit.wait_for_text("#action-note", "3 groups wanted now")
    assert training_job.wanted == 3

    page.get_by_role("button", name="Scale…").click()
    page.get_by_role("spinbutton", name="Partition groups").fill("9")
    visit.press("Enter")
    visit.wait_for_text("#scale-error", "Groups must be from 1 to 4. Raise the maximum")
    assert page.evaluate("() => document.activeElement.id") == "scale-groups"
    page.get_by_role("spinbutton", name="Partition groups").fill("3")
    page.get_by_role("spinbutton", name="Minimum").fill("2")
    page.get_by_role("spinbutton", name="Maximum").fill("8")
    held: list[Route] = []
    page.route("**/scale", lambda route: held.append(route))
    with page.expect_request("**/scale"):
        visit.press("Enter")
    # It waits for the answer, to begin with what that says.
    page.get_by_role("button", name="Scale…").click()
    assert not page.locator("#scale-dialog").is_visible()
    held[0].continue_()
    page.unroute("**/scale")
    assert page.get_by_role("spinbutton", name="Maximum").input_value() == "8"
    page.get_by_role("spinbutton", name="Maximum").fill("99")
    visit.press("Enter")
    visit.wait_for_text("#action-error", "maximum exceeds the 64 micro-batches of a step.")
    assert asked(page_api, "/api/v1/jobs/job-1/scale") == [
        {"groups": 3},
        {"minimum": 2, "maximum": 8},
        {"maximum": 99},
    ]
    page.get_by_role("button", name="Scale…").click()
    page.get_by_role("button", name="Leave it").click()
    assert len(page_api.calls) == 3
    visit.meant_to_be_refused(409)


def test_pause_resume_cancel_and_delete_ask_first(
    page_api: PageApi, visit: Visit, training_job: ScriptedJob
) -> None:
    visit.open("/#/jobs/job-1")
    page = visit.page
    page.get_by_role("button", name="Pause…").click()
    page.get_by_role("button", name="Keep it running").click()
    assert page_api.calls == []
    page.get_by_role("button", name="Pause…").click()
    page.get_by_role("button", name="Pause the job").click()
    visit.wait_for_text("#job-state", "paused")
    assert training_job.state is JobState.PAUSED
    assert page.get_by_role("button", name="Scale…").is_hidden()
    page.get_by_role("button", name="Resume…").click()
    page.get_by_role("button", name="Resume the job").click()
    visit.wait_for_text("#job-state", "pending")
    page.get_by_role("button", name="Cancel job…").click()
    visit.press("Escape")
    assert training_job.state is JobState.PENDING
    page.get_by_role("button", name="Cancel job…").click()
    page.get_by_role("button", name="Cancel the job").click()
    visit.wait_for_text("#job-state", "cancelled")
    visit.wait_for_text("#connection", "Job ended")
    assert page.get_by_role("button", name="Cancel job…").is_hidden()
    page.get_by_role("button", name="Delete record…").click()
    page.get_by_role("button", name="Delete the record").click()
    visit.wait_for_text("#jobs-empty", "No jobs yet.")
    assert page_api.jobs == {}


def test_a_job_is_checked_as_it_is_typed_and_then_submitted(
    page_api: PageApi, visit: Visit
) -> None:
    visit.open("/#/submit")
    page = visit.page
    visit.wait_for_text("#check-summary", "Valid: my-first-job, 2 groups, partition size 2.")
    text = page.get_by_role("textbox", name="Specification, YAML or JSON")
    begun = text.input_value()
    text.fill(begun.replace("steps: 10000", "steps: -3").replace("minimum: 1", "minimun: 1"))
    visit.wait_for_text("#check-summary", "2 things to correct")
    visit.wait_for_text("#problems", "Did you mean `minimum`?")
    assert page.locator("#spec-gutter .has-problem").all_inner_texts() == ["14", "25"]
    assert text.get_attribute("aria-invalid") == "true"
    steps = page.get_by_label("Steps", exact=True)
    assert steps.get_attribute("aria-invalid") == "true"
    visit.wait_for_text("#guide-training-steps-error", "Give a number above 0.")
    page.get_by_role("button", name="line 25").click()
    selected = "(e) => e.value.slice(e.selectionStart, e.selectionEnd)"
    assert text.evaluate(selected) == "  minimun: 1"
    page.get_by_role("button", name="Submit the job").click()
    visit.wait_for_text("#problems", "training.steps")
    assert page_api.jobs == {}

    text.fill("name: [")
    visit.wait_for_text("#problems", "is no YAML")
    text.fill(begun)
    steps.fill("500")
    page.get_by_label("Name").fill("from: the form")
    assert 'name: "from: the form"' in text.input_value()
    assert "steps: 500\n" in text.input_value()
    assert "# never changes with scaling" in text.input_value(), "comments stay"
    visit.wait_for_text("#check-summary", "Valid: from: the form")
    page.get_by_role("button", name="Submit the job").click()
    visit.wait_for_text("#job-name", "from: the form")
    [job] = page_api.jobs.values()
    assert job.spec.training.steps == 500
    assert len(page_api.keys) == 2
    assert page_api.keys[0] != page_api.keys[1], "another text is another submission"
    assert all(key and len(key) == 32 for key in page_api.keys)
    visit.meant_to_be_refused(422)


def test_the_form_changes_one_value_and_leaves_the_rest_of_the_text(visit: Visit) -> None:
    cases = [
        ("a: 1  # why\nb: 2\n", "a", "3", "a: 3  # why\nb: 2\n"),
        ("g:\n  w: 1\n", "g.m", "4", "g:\n  m: 4\n  w: 1\n"),
        ("g:\n    w: 1\n", "g.m", "4", "g:\n    m: 4\n    w: 1\n"),
        ("g: {w: 1, m: [2, 3]}  # all\n", "g.m", "4", "g: {w: 1, m: 4}  # all\n"),
        ("g: {w: 1}\n", "g.m", "4", "g: {m: 4, w: 1}\n"),
        ("a: 1\n", "g.m", "4", "a: 1\ng:\n  m: 4\n"),
        ('n: "a # b"\n', "n", "c", "n: c\n"),
        ("n:\nb: 1\n", "n", "c", "n: c\nb: 1\n"),
        ("g:\n  o:\n    m: 1\n  m: 2\n", "g.m", "3", "g:\n  o:\n    m: 1\n  m: 3\n"),
    ]
    visit.open("/static/icon.svg")
    script = """async (cases) => {
        const { withValue } = await import("/static/js/yaml-text.js");
        return cases.map(([text, path, value]) => withValue(text, path, value));
    }"""
    assert visit.page.evaluate(script, cases) == [expected for *_, expected in cases]


def test_a_plan_is_previewed_with_its_reason(page_api: PageApi, visit: Visit) -> None:
    visit.open("/#/submit")
    visit.wait_for_text("#check-summary", "Valid")
    visit.page.get_by_label("Nodes").fill("4")
    visit.page.get_by_role("button", name="Preview").click()
    visit.wait_for_text("#plan", "layouts fit")
    [request] = asked(page_api, "/api/v1/plans")
    assert (request["cluster"], request["nodes"]) == ("p4d.24xlarge", 4)
    assert "p = 2" in visit.text("#plan")
    assert visit.page.locator("#plan .is-choice").count() == 1
    visit.page.get_by_label("Nodes").fill("999999")
    visit.page.get_by_role("button", name="Preview").click()
    visit.wait_for_text("#plan-error", "Ask for fewer nodes.")
    visit.meant_to_be_refused(422)


def test_a_token_is_asked_for_only_where_it_is_needed(
    page_api: PageApi, visit: Visit, training_job: ScriptedJob
) -> None:
    page_api.token, page_api.role = "mics_0123", "viewer"
    visit.open("/#/jobs/job-1")
    visit.wait_for_text("#login-title", "Log in")
    page = visit.page
    assert page.locator("#jobs").is_hidden()
    assert page.evaluate("() => document.activeElement.id") == "login-token"
    visit.press("Enter")
    visit.wait_for_text("#login-error", "Enter a token.")
    page.get_by_label("Token", exact=True).fill("wrong")
    visit.press("Enter")
    visit.wait_for_text("#login-error", "The token is not valid.")
    page.get_by_label("Token", exact=True).fill("mics_0123")
    visit.press("Enter")
    visit.wait_for_text("#job-name", training_job.spec.name)
    visit.wait_for_text("#session-name", "ada (viewer)")
    assert page.locator("#actions").is_hidden(), "a viewer may not steer jobs"
    assert page.locator("#login").is_hidden()
    page.get_by_role("button", name="Log out").click()
    visit.wait_for_text("#login-title", "Log in")
    assert page.locator("#job").is_hidden()
    visit.meant_to_be_refused(401)


def test_the_page_and_the_real_service_understand_each_other(
    visit: Visit, service: Service, cluster: FakeCluster, tmp_path: Path
) -> None:
    visit.url = str(service.client.base_url)
    supervisor = cluster.start_supervisor("job-a", partition_size=2)
    supervisor.train(20)
    service.wait_for("job-a", step=20)
    page = visit.page
    visit.open("/#/jobs/job-a")
    visit.wait_for_text("#rate-readout", "step 19 ")
    supervisor.train(5)
    visit.wait_for_text("#rate-readout", "step 24 ")
    visit.wait_for_number("#loss-chart .mark", 1)
    page.get_by_role("button", name="Scale…").click()
    page.get_by_role("button", name="One group more").click()
    page.get_by_role("button", name="Scale", exact=True).click()
    visit.wait_for_text("#action-note", "3 groups wanted now")
    page.get_by_role("tab", name="Checkpoints").click()
    visit.wait_for_text("#checkpoints-note", "None are written")
    page.get_by_role("link", name="Cluster").click()
    visit.wait_for_text("#cluster-note", "1 node")
    page.get_by_role("link", name="New job").click()
    visit.wait_for_text("#problems", "no file matches it on this machine.")
    assert page.locator("#spec-gutter .has-problem").all_inner_texts() == ["8"]
    (tmp_path / "corpus.txt").write_text("To be, or not to be. " * 500, encoding="utf-8")
    page.get_by_label("Files").fill(str(tmp_path / "*.txt"))
    visit.wait_for_text("#check-summary", "Valid: my-first-job")
    page.get_by_role("button", name="Preview").click()
    visit.wait_for_text("#plan", "layouts fit")
    page.get_by_role("button", name="Submit the job").click()
    visit.wait_for_text("#job-name", "my-first-job")
    assert [spec.name for spec in cluster.submitted.values()] == ["my-first-job"]
    visit.meant_to_be_refused(422)
