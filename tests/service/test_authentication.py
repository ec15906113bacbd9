"""Who gets in, who may do what, and how fast a revoked token is dead."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from fakes import FakeCluster, specification
from postgres import DATABASES, database_of
from running import Service, eventually, run_service
from sqlalchemy import inspect, text

from mics_core.spec.status import JobState
from service.auth.callers import LOCAL, Caller, Role
from service.auth.tokens import TokenStore
from service.settings import Settings
from service.store import Store

Refused = tuple[int, str]


@dataclass
class Team:
    """A service with one token of each kind."""

    service: Service
    store: Store
    tokens: TokenStore
    folder: Path
    by_name: dict[str, str]

    def call(self, name: str, method: str, path: str, **more: object) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.by_name[name]}"}
        return self.service.client.request(method, path, headers=headers, **more)  # type: ignore[arg-type]

    def submit(self, name: str) -> str:
        answer = self.call(name, "POST", "/api/v1/jobs", json=specification())
        assert answer.status_code == 201, answer.text
        return str(answer.json()["job_id"])


def refusal(answer: httpx.Response) -> Refused:
    error = answer.json()["error"]
    assert error["message"]
    assert error["remedy"]
    return answer.status_code, error["code"]


@pytest.fixture(scope="module", params=DATABASES)
def team(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("team")
    settings = Settings(
        data_directory=folder,
        database_url=database_of(request, folder),
        discovery_interval_s=0.05,
        poll_timeout_s=0.5,
        poll_pause_s=0.01,
        open_jobs_per_owner=3,
        ping_interval_s=0.2,
    )
    store = Store(settings.database)
    tokens = TokenStore(store.database)
    by_name = {
        "vera": tokens.create("vera", Role.VIEWER),
        "ulla": tokens.create("ulla", Role.USER),
        "ugo": tokens.create("ugo-laptop", Role.USER, owner="ugo"),
        "ada": tokens.create("ada", Role.ADMIN),
    }
    with run_service(settings, FakeCluster()) as service:
        yield Team(service, store, tokens, folder, by_name)
    store.close()


@pytest.mark.parametrize(
    ("role", "owner", "may"),
    [
        (Role.VIEWER, "me", False),
        (Role.USER, "me", True),
        (Role.USER, "you", False),
        (Role.USER, None, False),
        (Role.ADMIN, "you", True),
        (Role.ADMIN, None, True),
    ],
)
def test_users_control_their_own_jobs_and_admins_all(
    role: Role, owner: str | None, may: bool
) -> None:
    assert Caller("me", role).may_control(owner) is may


def test_roles_are_an_order_and_nobody_on_this_machine_is_more_than_admin() -> None:
    assert [Role.USER.covers(role) for role in Role] == [True, True, False]
    assert LOCAL.may_control(None)


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/api/v1/jobs", "GET"),
        ("/api/v1/jobs", "POST"),
        ("/api/v1/jobs/any", "GET"),
        ("/api/v1/jobs/any/events", "GET"),
        ("/api/v1/session", "GET"),
        ("/metrics", "GET"),
        ("/openapi.json", "GET"),
        ("/docs", "GET"),
        ("/nowhere", "GET"),
        ("/Static/js/main.js", "GET"),
        ("/static/js/main.js", "POST"),
    ],
)
def test_without_a_token_nothing_is_told(team: Team, method: str, path: str) -> None:
    answer = team.service.client.request(method, path)
    assert refusal(answer) == (401, "token_required")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "default-src 'self'" in answer.headers["content-security-policy"]


def test_the_login_page_its_files_and_the_health_are_open(team: Team) -> None:
    for path in ("/", "/static/index.html", "/healthz"):
        assert team.service.client.get(path).status_code == 200, path


@pytest.mark.parametrize(
    "value",
    [
        "mics",
        "mics_00000000_x",
        "mics_%_%",
        "' OR '1'='1",
        "mics_' OR 1=1 --_x",
        "x" * 5000,
        "ü".encode().decode("latin-1"),
    ],
)
def test_what_is_no_token_is_refused(team: Team, value: str) -> None:
    team.service.reset_attempts()
    headers = {"authorization": f"Bearer {value}".encode("latin-1")}
    answer = team.service.client.get("/api/v1/jobs", headers=headers)
    assert refusal(answer) == (401, "token_invalid")


def test_a_token_with_another_secret_or_another_scheme_is_refused(team: Team) -> None:
    team.service.reset_attempts()
    good = team.by_name["ada"]
    wrong = good[:-1] + ("A" if good[-1] != "A" else "B")
    for header, code in ((f"Bearer {wrong}", "token_invalid"), (f"Basic {good}", "token_required")):
        answer = team.service.client.get("/api/v1/jobs", headers={"authorization": header})
        assert refusal(answer) == (401, code)


def test_no_secret_is_in_the_database(team: Team) -> None:
    with _logged_in(team, "ada") as browser:
        session_id = browser.cookies["mics_session"]
    with team.store.database.read() as connection:
        tables = inspect(connection).get_table_names()
        rows = [connection.execute(text(f"select * from {name}")).all() for name in tables]
        digests = connection.execute(text("select digest from tokens")).scalars().all()
    # SQLite's files, where there are any, also hold what was overwritten.
    files = [path.read_bytes() for path in team.folder.glob("service.sqlite3*")]
    stored = b"".join([repr(rows).encode(), *files])
    assert b"ulla" in stored
    for name, token in team.by_name.items():
        assert token.split("_", 2)[2].encode() not in stored, name
    assert session_id.encode() not in stored
    assert all(len(digest) == 64 for digest in digests)


def test_everybody_with_a_token_reads_and_is_told_who_they_are(team: Team) -> None:
    for name, role in (("vera", "viewer"), ("ulla", "user"), ("ugo", "user"), ("ada", "admin")):
        who = team.call(name, "GET", "/api/v1/session").json()
        assert who == {"name": name, "role": role, "requires_token": True}
        assert team.call(name, "GET", "/api/v1/jobs").status_code == 200
        plan = team.call(name, "POST", "/api/v1/plans", json={"job": specification()})
        assert plan.status_code == 422, "planning is a question; this one names no cluster"


def test_a_viewer_changes_nothing_on_any_route(team: Team) -> None:
    job_id = team.submit("ulla")
    paths = team.call("ada", "GET", "/openapi.json").json()["paths"]
    asked = 0
    for path, methods in paths.items():
        for method in set(methods) - {"get"}:
            if path in ("/api/v1/plans", "/api/v1/session"):
                continue
            address = path.replace("{job_id}", job_id)
            answer = team.call("vera", method.upper(), address, json={"groups": 1})
            assert refusal(answer) == (403, "role_insufficient"), (method, path)
            asked += 1
    assert asked >= 4
    team.call("ulla", "POST", f"/api/v1/jobs/{job_id}/cancel")


def test_jobs_belong_to_the_owner_of_their_token(team: Team) -> None:
    job_id = team.submit("ugo")
    assert team.call("vera", "GET", f"/api/v1/jobs/{job_id}").json()["owner"] == "ugo"
    for action, body in (("scale", {"groups": 1}), ("cancel", None)):
        answer = team.call("ulla", "POST", f"/api/v1/jobs/{job_id}/{action}", json=body)
        assert refusal(answer) == (403, "not_owner")
        assert "ugo" in answer.json()["error"]["message"]
    assert team.call("ugo", "POST", f"/api/v1/jobs/{job_id}/cancel").status_code == 200


def test_a_job_found_on_the_cluster_is_controlled_by_admins_alone(team: Team) -> None:
    supervisor = team.service.cluster.start_supervisor("found")
    supervisor.train(1)
    eventually(lambda: team.call("ulla", "GET", "/api/v1/jobs/found").status_code == 200, "the job")
    answer = team.call("ulla", "POST", "/api/v1/jobs/found/scale", json={"groups": 3})
    assert refusal(answer) == (403, "not_owner")
    assert team.call("ada", "POST", "/api/v1/jobs/found/scale", json={"groups": 3}).is_success
    assert team.call("ulla", "POST", "/api/v1/jobs/none/cancel").status_code == 404
    supervisor.set_state(JobState.CANCELLED, "Enough.")


def test_an_owner_has_so_many_open_jobs_and_no_more(team: Team) -> None:
    team.tokens.create("many-1", Role.USER, owner="many")
    team.by_name["many"] = team.tokens.create("many-2", Role.USER, owner="many")
    jobs = [team.submit("many") for _ in range(3)]
    answer = team.call("many", "POST", "/api/v1/jobs", json=specification())
    assert refusal(answer) == (429, "too_many_jobs")
    assert team.call("many", "POST", f"/api/v1/jobs/{jobs[0]}/cancel").is_success
    eventually(
        lambda: team.call("many", "GET", f"/api/v1/jobs/{jobs[0]}").json()["finished"],
        "the end of a job",
    )
    team.submit("many")


@contextmanager
def _logged_in(team: Team, name: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=team.service.client.base_url, timeout=20) as browser:
        answer = browser.post("/api/v1/session", json={"token": team.by_name[name]})
        assert answer.status_code == 200, answer.text
        assert answer.json()["name"] == name
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "max-age=43200" in cookie
        yield browser


def test_a_browser_logs_in_and_out(team: Team) -> None:
    with _logged_in(team, "ulla") as browser:
        assert browser.get("/api/v1/session").json()["role"] == "user"
        assert browser.get("/api/v1/jobs").status_code == 200
        foreign = {"origin": "https://evil.example"}
        answer = browser.post("/api/v1/jobs", json=specification(), headers=foreign)
        assert refusal(answer) == (403, "forbidden")
        stolen = browser.cookies["mics_session"]
        assert browser.delete("/api/v1/session").status_code == 204
        assert "mics_session" not in browser.cookies
        assert refusal(browser.get("/api/v1/jobs")) == (401, "token_required")
        headers = {"cookie": f"mics_session={stolen}"}
        answer = browser.get("/api/v1/jobs", headers=headers)
        assert refusal(answer) == (401, "session_invalid")


def test_a_session_ends_when_its_time_is_over(settings: Settings) -> None:
    settings = settings.model_copy(update={"session_s": 0.5})
    store = Store(settings.database)
    token = TokenStore(store.database).create("short", Role.ADMIN)
    with run_service(settings, FakeCluster()) as service:
        service.client.post("/api/v1/session", json={"token": token})
        cookie = {"cookie": f"mics_session={service.client.cookies['mics_session']}"}
        service.client.cookies.clear()
        eventually(
            lambda: service.client.get("/api/v1/jobs", headers=cookie).status_code == 401,
            "the end of the session",
        )
    store.close()


def test_revoking_a_token_ends_it_its_sessions_and_its_streams(team: Team) -> None:
    team.service.reset_attempts()
    team.by_name["eve"] = team.tokens.create("eve", Role.USER)
    job_id = team.submit("eve")
    team.service.cluster.start_supervisor(job_id).train(1)
    with _logged_in(team, "eve") as browser:
        path = f"/api/v1/jobs/{job_id}/events"
        with browser.stream("GET", path) as answer:
            assert answer.status_code == 200
            lines = answer.iter_lines()
            next(lines)
            team.tokens.revoke("eve")
            assert refusal(browser.get("/api/v1/jobs")) == (401, "session_invalid")
            assert refusal(team.call("eve", "GET", "/api/v1/jobs")) == (401, "token_invalid")
            for _line in lines:
                pass  # to its end, which the time limit of the client guards
    team.call("ada", "POST", f"/api/v1/jobs/{job_id}/cancel")


def test_a_revoked_name_is_free_again_and_the_service_stays_closed(database_url: str) -> None:
    store = Store(database_url)
    tokens = TokenStore(store.database)
    assert not tokens.any()
    first = tokens.create("ci", Role.USER)
    tokens.revoke("ci")
    assert tokens.any()
    assert tokens.verify(first) is None
    second = tokens.create("ci", Role.USER)
    found = tokens.verify(second)
    assert found is not None
    assert found.caller == Caller("ci", Role.USER)
    store.close()


def test_the_first_token_closes_a_running_service(service: Service) -> None:
    who = {"name": None, "role": "admin", "requires_token": False}
    assert service.client.get("/api/v1/session").json() == who
    store = Store(service.settings.database)
    TokenStore(store.database).create("ada", Role.ADMIN)
    store.close()
    made = time.monotonic()
    while (answer := service.client.get("/api/v1/jobs")).is_success:
        assert time.monotonic() < made + 1.0
    assert refusal(answer) == (401, "token_required")


def test_guessing_is_slowed_down_and_valid_tokens_are_not(team: Team) -> None:
    team.service.reset_attempts()

    def guess() -> httpx.Response:
        return team.service.client.post("/api/v1/session", json={"token": "mics_00000000_guess"})

    assert [refusal(guess()) for _ in range(10)] == [(401, "token_invalid")] * 10
    answer = guess()
    assert refusal(answer) == (429, "too_many_attempts")
    assert 0 < int(answer.headers["retry-after"]) <= 60
    right = team.service.client.post("/api/v1/session", json={"token": team.by_name["ada"]})
    assert right.status_code == 429, "a login waits, whatever it brings"
    bad = {"authorization": "Bearer mics_00000000_guess"}
    assert team.service.client.get("/api/v1/jobs", headers=bad).status_code == 429
    assert team.call("ada", "GET", "/api/v1/jobs").status_code == 200
    team.service.reset_attempts()


def test_a_login_that_is_none_does_not_repeat_what_was_sent(team: Team) -> None:
    token = team.by_name["ada"]
    secret = token.split("_", 2)[2]
    post: Callable[..., httpx.Response] = team.service.client.post
    for body in ({"tokn": token}, {"token": [token]}, {"token": token * 10}, [token], token):
        answer = post("/api/v1/session", json=body)
        assert answer.status_code == 422, answer.text
        assert secret not in answer.text
