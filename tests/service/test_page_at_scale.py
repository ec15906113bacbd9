"""The page with a long history and many groups; by itself, for frames are measured."""

from __future__ import annotations

import time

from browsing import Visit
from scripted_job import ScriptedJob, example_spec
from scripted_page import PageApi

from mics_core.spec import parse_job_spec
from mics_core.spec.status import GroupState, JobState


def test_2000_steps_and_64_groups_stay_smooth(page_api: PageApi, visit: Visit) -> None:
    spec = example_spec(steps=2100, maximum=64) | {"groups": {"wanted": 64, "maximum": 64}}
    job = page_api.add(ScriptedJob("big", parse_job_spec(spec)))
    job.join(*range(64))
    job.set_state(JobState.RUNNING, "All groups train.")
    for _ in range(2000):
        job.commit_step()
    visit.open("/#/jobs/big")
    visit.wait_for_text("#rate-readout", "step 1,999 ")
    visit.wait_for_number("#picture [data-group=member]", 64)
    visit.wait_for_text("#connection", "Live")
    assert page_api.stream_starts == [len(job.events)], "no step of the past is sent one by one"
    visit.page.evaluate("""() => {
        window.frames_ms = [];
        let last = performance.now();
        const watch = (now) => {
            window.frames_ms.push(now - last);
            last = now;
            requestAnimationFrame(watch);
        };
        requestAnimationFrame(watch);
    }""")
    for _ in range(100):
        job.commit_step()
        time.sleep(0.01)
    job.set_group(7, GroupState.LOST, "Killed by signal 9.")
    visit.wait_for_text("#picture [data-id='7']", "lost")
    visit.wait_for_text("#rate-readout", "step 2,099 ")
    frames_ms = sorted(visit.page.evaluate("() => window.frames_ms"))
    # docs/log.md has what was measured; this is two or three times that. A page that redrew on
    # every event, or laid everything out anew for each step, would take far longer.
    assert frames_ms[len(frames_ms) // 2] < 34, f"the median frame of {frames_ms}"
    assert frames_ms[-1 - len(frames_ms) // 20] < 70, f"the 95th percentile of {frames_ms}"
    # Another process may have taken the processor for a while; a page that hangs takes longer.
    assert frames_ms[-1] < 1000, f"the longest frame of {frames_ms}"
