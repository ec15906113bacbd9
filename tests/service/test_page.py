"""The page in a real browser: the list, and one job as it lives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from browsing import Visit
from running import eventually
from scripted_job import ScriptedJob, example_spec
from scripted_page import PageApi

from mics_core.spec import parse_job_spec
from mics_core.spec.status import CheckpointEvent, GroupState, JobState

if TYPE_CHECKING:
    from playwright.sync_api import Route


def test_an_empty_list_says_how_to_fill_it(visit: Visit) -> None:
    visit.open("/")
    visit.wait_for_text("#jobs-empty", "No jobs yet.")
    visit.page.locator("#filters").wait_for(state="hidden")
    assert visit.page.locator("#session").is_hidden(), "no token is asked for"


def test_the_list_leads_to_a_job_and_names_stay_text(page_api: PageApi, visit: Visit) -> None:
    spec = parse_job_spec(example_spec(name="<img src=x onerror=alert(1)>"))
    page_api.add(ScriptedJob("job-odd", spec))
    visit.open("/")
    visit.page.get_by_role("link", name="<img src=x").click()
    visit.wait_for_text("#job-name", "<img src=x onerror=alert(1)>")
    visit.wait_for_text("#picture", "No partition group yet")
    assert visit.page.url.endswith("#/jobs/job-odd")


def test_the_list_is_filtered_by_state_and_label_and_goes_on_page_by_page(
    page_api: PageApi, visit: Visit
) -> None:
    for number in range(70):
        job = page_api.add(
            ScriptedJob(f"job-{number}", parse_job_spec(example_spec(name=f"run {number}")))
        )
        job.created -= number
        if number == 3:
            job.set_state(JobState.FAILED, "The loss of step 7 is nan.")
            page_api.labels[job.job_id] = {"team": "speech"}
    visit.open("/")
    visit.wait_for_number("#jobs-list li", 50)
    visit.page.get_by_role("button", name="Show more").click()
    visit.wait_for_number("#jobs-list li", 70)
    assert visit.page.get_by_role("button", name="Show more").is_hidden()
    visit.page.get_by_label("State").select_option("failed")
    visit.wait_for_number("#jobs-list li", 1)
    visit.wait_for_text("#jobs-list", "run 3")
    visit.page.get_by_label("Label, as key:value").fill("team:vision")
    visit.wait_for_text("#jobs-none", "No job matches the filter.")
    visit.page.get_by_label("Label, as key:value").fill("team:speech")
    visit.wait_for_number("#jobs-list li", 1)
    visit.page.get_by_label("Label, as key:value").fill("speech")
    visit.wait_for_text("#jobs-error", "A label is given as key:value")
    visit.page.get_by_label("Label, as key:value").fill("")
    visit.page.get_by_label("State").select_option("")
    visit.wait_for_number("#jobs-list li", 50)
    assert visit.refused == []


def test_the_list_is_filtered_by_owner_once_there_is_one(page_api: PageApi, visit: Visit) -> None:
    for number in range(3):
        page_api.add(
            ScriptedJob(f"job-{number}", parse_job_spec(example_spec(name=f"run {number}")))
        )
    visit.open("/")
    visit.wait_for_number("#jobs-list li", 3)
    assert visit.page.get_by_label("Owner").is_hidden()
    page_api.owners["job-1"] = "ada"
    visit.page.get_by_label("Owner").wait_for()
    visit.page.get_by_label("Owner").fill("ada")
    visit.wait_for_number("#jobs-list li", 1)
    visit.wait_for_text("#jobs-list", "run 1")
    visit.page.get_by_label("Owner").fill("ben")
    visit.wait_for_text("#jobs-none", "No job matches the filter.")
    visit.page.get_by_role("button", name="Show all jobs").click()
    visit.wait_for_number("#jobs-list li", 3)


def test_charts_and_progress_follow_the_events(visit: Visit, training_job: ScriptedJob) -> None:
    visit.open("/#/jobs/job-1")
    visit.wait_for_text("#rate-readout", "step 9 ")
    for _ in range(40):
        training_job.commit_step()
    visit.wait_for_text("#rate-readout", "step 49 ")
    visit.wait_for_text("#loss-readout", "step 49 ")
    visit.wait_for_text("#goodput-readout", "since the start")
    visit.wait_for_text("#job-steps", "50 of 100 steps · 50 %")
    visit.wait_for_text("#job-remaining", "left")
    visit.wait_for_text("#figure-goodput", "41.2 % MFU")
    visit.wait_for_text("#figure-rate", "25.0 % communication")
    visit.wait_for_text("#connection", "Live")
    assert visit.page.locator(".chart canvas").count() == 3


def test_goodput_and_series_are_what_their_definitions_say(visit: Visit) -> None:
    visit.open("/")
    found = visit.page.evaluate(
        """async () => {
            const { goodputOf } = await import("/static/js/goodput.js");
            const { Series } = await import("/static/js/series.js");
            const series = new Series();
            const same = {step_s: 1, tokens_per_s: 1, loss: 1, num_groups: 1};
            const record = (step, time) => ({step, time, ...same});
            for (const step of [0, 2, 1, 1]) series.take(record(step, step));
            const inOrder = [...series.step];
            // Back to a checkpoint: step 1 is committed once more, later than what followed it.
            series.take(record(1, 9));
            // Points of 250 steps, the second with a stall of 100 seconds; then one live step.
            const wide = new Series();
            wide.firstTime = 1;
            wide.take({...record(249, 250), goodput: 1});
            wide.take({...record(499, 600), step_s: 1.4, goodput: 499 / 599});
            wide.take(record(500, 601));
            const unknown = [null, null, null, null, null];
            return {
                goodput: goodputOf(
                    [0, 1, 2, 3, 4], [10, 11, 12, 22, 23], [9, 1, 1, 10, 1], [2, 2, 2, 2, 2],
                    unknown, null,
                ),
                inOrder,
                again: series.step,
                wide: wide.goodput,
            };
        }"""
    )
    # The step of ten seconds counts as the median, one; the first step is not counted.
    assert found["goodput"] == [None, 1, 1, 3 / 12, 4 / 13]
    assert found["inOrder"] == [0, 1, 2]
    assert found["again"] == [0, 1]
    # As the service counts it, where the means of the points would hide the stall.
    assert found["wide"] == pytest.approx([1, 499 / 599, 500 / 600])


def test_the_picture_shows_who_joins_who_is_slow_and_who_was_lost_with_the_reason(
    visit: Visit, training_job: ScriptedJob
) -> None:
    visit.open("/#/jobs/job-1")
    visit.wait_for_number("#picture [data-group=member]", 2)
    training_job.join(2)
    visit.wait_for_number("#picture [data-group=member]", 3)
    assert visit.page.locator("#picture .replication").count() == 2
    slow = training_job.groups[2].model_copy(update={"slowness": 1.82})
    training_job.groups[2] = slow
    training_job.lose(1, "Its node 10.0.0.5 died.")
    visit.wait_for_text("#picture [data-id='1']", "lost")
    visit.wait_for_text("#picture [data-id='2'] .group-state", "1.8× slow")
    assert visit.page.locator("#picture [data-id='1'] .strike").count() == 1
    visit.wait_for_text("#picture-others", "Its node 10.0.0.5 died.")
    visit.wait_for_text("#events li >> nth=0", "Generation 3")
    visit.wait_for_text("#announcer", "Generation 3: Group 1 was lost")


@pytest.mark.parametrize(
    ("partition_size", "workers_per_node", "num_boxes"),
    [(2, 2, 2), (2, 4, 1), (4, 2, 4)],
    ids=["a node each", "two groups on a node", "two nodes a group"],
)
def test_boxes_show_which_node_holds_which_workers(
    page_api: PageApi, visit: Visit, partition_size: int, workers_per_node: int, num_boxes: int
) -> None:
    job = ScriptedJob(
        "placed",
        parse_job_spec(example_spec()),
        partition_size=partition_size,
        workers_per_node=workers_per_node,
    )
    page_api.add(job).join(0, 1)
    visit.open("/#/jobs/placed")
    visit.wait_for_number("#picture .node", num_boxes)
    visit.wait_for_number("#picture .worker", 2 * partition_size)
    visit.wait_for_number("#picture .replication", partition_size)


def test_marks_tell_who_came_and_went_and_why_to_pointer_and_keyboard(
    visit: Visit, training_job: ScriptedJob
) -> None:
    training_job.join(2, reason="Group 2 joined as asked.")
    for _ in range(30):
        training_job.commit_step()
    training_job.lose(0, "Its node 10.0.0.4 died.")
    for _ in range(30):
        training_job.commit_step()
    visit.open("/#/jobs/job-1")
    visit.wait_for_text("#rate-readout", "step 69 ")
    box = visit.page.locator("#rate-chart .u-over").bounding_box()
    assert box is not None
    visit.page.mouse.move(box["x"] + box["width"] * 10 / 69, box["y"] + box["height"] / 2)
    visit.wait_for_text("#rate-chart .mark-note", "Step 10: group 2 joined.")
    visit.wait_for_text("#rate-chart .mark-note", "Group 2 joined as asked.")
    visit.wait_for_text("#rate-readout", "step 10 ")
    for chart in ("rate", "loss", "goodput"):
        marks = visit.page.locator(f"#{chart}-chart .mark")
        assert marks.all_inner_texts() == ["+2", "+1", "−1"]
    # One stop of the Tab key a chart, at the newest mark; the arrows lead to the others.
    visit.page.mouse.move(0, 0)
    visit.tab_to(visit.page.locator("#loss-chart .mark >> nth=2"))
    visit.wait_for_text("#loss-chart .mark-note", "Step 40: group 0 gone.")
    visit.wait_for_text("#loss-chart .mark-note", "Its node 10.0.0.4 died.")
    visit.press("ArrowLeft")
    visit.wait_for_text("#loss-chart .mark-note", "Group 2 joined as asked.")
    focused = visit.page.evaluate("() => document.activeElement.ariaLabel")
    assert "group 2 joined" in focused
    assert "as asked" in focused
    visit.press("Escape")
    assert visit.page.locator("#loss-chart .mark-note").is_hidden()
    assert training_job.groups[0].state is GroupState.LOST


def test_logs_are_followed_and_those_of_one_worker_can_be_chosen(
    page_api: PageApi, visit: Visit, training_job: ScriptedJob
) -> None:
    page_api.logs = {"": ["The supervisor starts."], "1.0": ["Group 1, rank 0 builds its shard."]}
    visit.open("/#/jobs/job-1")
    visit.page.get_by_role("tab", name="Logs").click()
    visit.wait_for_text("#log", "The supervisor starts.")
    visit.wait_for_text("#log-state", "following")
    page_api.logs[""].append("Group 2 is asked for.")
    visit.wait_for_text("#log", "Group 2 is asked for.")
    visit.page.get_by_label("Of", exact=True).select_option("Group 1, rank 0")
    visit.wait_for_text("#log", "Group 1, rank 0 builds its shard.")
    assert "supervisor" not in visit.text("#log")
    training_job.cancel()
    visit.wait_for_text("#log-state", "end of the log")


def test_checkpoints_and_the_specification_have_their_tabs(
    visit: Visit, training_job: ScriptedJob
) -> None:
    training_job._add(CheckpointEvent, step=5, path="step-00000005", error="")
    visit.open("/#/jobs/job-1")
    visit.page.get_by_role("tab", name="Events").focus()
    visit.press("ArrowRight", "ArrowRight")
    visit.wait_for_text("#checkpoints-rows", "step-00000005")
    visit.wait_for_text("#checkpoints-note", "mics export job-1")
    training_job._add(CheckpointEvent, step=9, path="step-00000009", error="The disk is full.")
    visit.wait_for_text("#checkpoints-rows tr >> nth=0", "The disk is full.")
    visit.press("ArrowRight")
    visit.wait_for_text("#spec", "global_batch_size: 256")


def test_the_cluster_shows_nodes_groups_free_places_and_what_waits(
    page_api: PageApi, visit: Visit, training_job: ScriptedJob
) -> None:
    page_api.pending = [{"resources": {"CPU": 2.0}, "count": 3}]
    visit.open("/#/cluster")
    visit.wait_for_text("#cluster-note", "2 nodes · 4 workers at work · room for 4 more")
    visit.wait_for_text("#cluster-pending", "Waits for room: 3 × 2 CPU")
    assert visit.page.locator(".node-card .place.is-free").count() == 4
    training_job.join(2)
    visit.come_back()
    visit.wait_for_number(".node-card", 3)
    visit.page.get_by_role("link", name="job-1, group 2, rank 0–1").click()
    visit.wait_for_text("#job-name", training_job.spec.name)


def test_a_cut_stream_goes_on_without_a_gap(
    page_api: PageApi, visit: Visit, training_job: ScriptedJob
) -> None:
    visit.open("/#/jobs/job-1")
    visit.wait_for_text("#connection", "Live")
    [start] = page_api.stream_starts
    page_api.cut_after = 2
    visit.page.reload()
    eventually(lambda: page_api.stream_starts == [start, start], "its stream")
    for _ in range(5):
        training_job.commit_step()
    eventually(lambda: start + 2 in page_api.stream_starts, "the page asks again from there")
    visit.wait_for_text("#rate-readout", "step 14 ")


def test_steps_that_are_committed_while_a_job_loads_are_shown(
    page_api: PageApi, visit: Visit, training_job: ScriptedJob
) -> None:
    def commit_first(route: Route) -> None:
        training_job.commit_step()
        route.continue_()

    for part in ("events/list", "throughput"):
        visit.page.route(f"**/{part}?*", commit_first)
    visit.open("/#/jobs/job-1")
    visit.wait_for_text("#connection", "Live")
    visit.wait_for_text("#rate-readout", "step 11 ")
    # The second came after the events were listed, so it comes as an event too.
    assert page_api.stream_starts == [len(training_job.events) - 1]
    training_job.commit_step()
    visit.wait_for_text("#job-steps", "13 of 100 steps")


def test_a_service_that_does_not_answer_is_told_of_until_it_does(
    visit: Visit, training_job: ScriptedJob
) -> None:
    visit.open("/#/jobs/job-1")
    visit.wait_for_text("#rate-readout", "step 9 ")
    visit.page.route("**/api/**", lambda route: route.abort())
    visit.come_back()
    visit.wait_for_text("#offline", "The service does not answer since")
    assert visit.text("#job-steps").startswith("10 of 100"), "what is known stays"
    visit.page.unroute("**/api/**")
    visit.come_back()
    visit.page.wait_for_selector("#offline", state="hidden")


def test_an_unknown_job_is_named(visit: Visit) -> None:
    visit.open("/#/jobs/nobody")
    visit.wait_for_text("#job-error", "no job has the id 'nobody'")
    visit.meant_to_be_refused(404)
