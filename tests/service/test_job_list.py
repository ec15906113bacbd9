"""The list of jobs over HTTP: whose they are, and pages of a list that changes meanwhile."""

from __future__ import annotations

from typing import Any

from running import Service, eventually

from service.auth.callers import Role
from service.auth.tokens import TokenStore
from service.store import Store


def page_of(service: Service, **query: Any) -> tuple[list[str], str | None]:
    answer = service.client.get("/api/v1/jobs", params=query)
    assert answer.status_code == 200, answer.text
    page = answer.json()
    return [job["job_id"] for job in page["jobs"]], page["next_cursor"]


def ended_job(service: Service) -> str:
    """Have a job come to its end, so that its record can be deleted."""
    job_id = service.submit()
    service.cluster.start_supervisor(job_id).finish()
    service.wait_for(job_id, state="finished")
    return job_id


def test_the_list_can_be_narrowed_to_the_jobs_of_one_owner(service: Service) -> None:
    nobodys = service.submit()
    store = Store(service.settings.database)
    tokens = TokenStore(store.database)
    plain = {
        "ugo": tokens.create("ugo-laptop", Role.USER, owner="ugo"),
        "ulla": tokens.create("ulla-laptop", Role.USER, owner="ulla"),
    }
    store.close()
    eventually(lambda: service.client.get("/api/v1/jobs").status_code == 401, "the first refusal")
    own: dict[str, list[str]] = {"ugo": [], "ulla": []}
    for owner in ("ugo", "ulla", "ugo"):
        service.client.headers["authorization"] = f"Bearer {plain[owner]}"
        own[owner].insert(0, service.submit())
    # Whoever asks, the filter is by whose the jobs are.
    for asking in plain.values():
        service.client.headers["authorization"] = f"Bearer {asking}"
        assert page_of(service, owner="ugo")[0] == own["ugo"]
        assert page_of(service, owner="ulla")[0] == own["ulla"]
        assert page_of(service, owner="ugo-laptop")[0] == []
        assert page_of(service, owner="UGO")[0] == []
        assert {*page_of(service)[0]} == {nobodys, *own["ugo"], *own["ulla"]}
    first, cursor = page_of(service, owner="ugo", limit=1)
    second, end = page_of(service, owner="ugo", limit=1, cursor=cursor)
    assert (first + second, end) == (own["ugo"], None)


def test_pages_lose_and_repeat_no_job_that_stays_while_others_come_and_go(
    service: Service,
) -> None:
    jobs = [ended_job(service) for _ in range(7)][::-1]  # newest first, as the list is

    def delete(job_id: str) -> None:
        assert service.client.delete(f"/api/v1/jobs/{job_id}").status_code == 204

    found, cursor = page_of(service, limit=2)
    assert found == jobs[:2]
    new = service.submit()  # before the place where the next page begins
    delete(jobs[1])  # the very job that the cursor names
    page, cursor = page_of(service, limit=2, cursor=cursor)
    assert page == jobs[2:4]
    delete(jobs[0])  # one of a page that was read
    delete(jobs[4])  # one of a page that was not
    page, cursor = page_of(service, limit=2, cursor=cursor)
    assert (page, cursor) == (jobs[5:7], None)
    assert page_of(service)[0] == [new, *jobs[2:4], *jobs[5:7]]
