"""Half surrogate pairs, zero bytes and numbers beyond all bounds, wherever a request has text."""

from __future__ import annotations

import base64

import pytest
from running import Service

JSON = {"content-type": "application/json"}
HALF = b"\\ud800"


def cursor_of(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def test_a_cursor_with_what_no_database_takes_is_refused_or_harmless(service: Service) -> None:
    kept = service.submit()
    for text, status in (
        ('[1.0, "\\ud800"]', 422),
        ('[1.0, "\\udfffx"]', 422),
        ('[NaN, "a"]', 422),
        ('[-Infinity, "a"]', 422),
        ('[1e999, "a"]', 422),
        ("[1" + "0" * 320 + ', "a"]', 422),
        ('[1e308, "a"]', 200),
        ('[-1.8e-320, "a"]', 200),
        ("[1" + "0" * 300 + ', "a"]', 200),
        ('[1.0, "\\u0000"]', 200),
        ('[true, "\\ud83d\\ude00"]', 200),
    ):
        answer = service.client.get("/api/v1/jobs", params={"cursor": cursor_of(text)})
        assert answer.status_code == status, (text, answer.text)
        if status == 422:
            assert "next_cursor" in answer.json()["error"]["message"]
    assert service.job(kept)["job_id"] == kept


@pytest.mark.parametrize(
    "address",
    [
        "/api/v1/jobs/{text}",
        "/api/v1/jobs/{text}/events",
        "/api/v1/jobs/{text}/events/list",
        "/api/v1/jobs/{text}/throughput",
        "/api/v1/jobs/{text}/logs",
        "/api/v1/jobs?owner={text}",
        "/api/v1/jobs?label=a:{text}",
        "/api/v1/jobs?state={text}",
        "/api/v1/jobs?{text}=1",
        "/{text}",
    ],
)
def test_an_address_with_what_is_no_text_is_none_of_the_services_failures(
    service: Service, address: str
) -> None:
    for text in ("%00", "a%00", "%ED%A0%80", "%ff%fe", "%F4%90%80%80"):
        answer = service.client.get(address.format(text=text))
        assert answer.status_code in (200, 404, 422), (text, answer.text)


@pytest.mark.parametrize("path", ["", "/validate", "/{job_id}/scale"])
def test_a_body_with_what_is_no_text_is_refused_in_words_that_can_be_sent(
    service: Service, path: str
) -> None:
    address = "/api/v1/jobs" + path.format(job_id=service.submit())
    for body in (
        b'{"%s": 1}',
        b'{"%s": "%s"}',
        b'{"labels": {"%s": "%s"}}',
        b'{"a": {"%s": [{"%s": "%s"}]}}',
        b'{"name": "%s"}',
        b'{"groups": "%s"}',
        b'"%s"',
    ):
        answer = service.client.post(address, content=body.replace(b"%s", HALF), headers=JSON)
        assert answer.status_code == 422, answer.text
        assert answer.json()["error"]["remedy"]


def test_a_key_or_a_token_with_what_is_no_text_is_refused(service: Service) -> None:
    for key in (b"\xff", b"\xed\xa0\x80", b"a b"):
        answer = service.client.post("/api/v1/jobs", json={}, headers={b"Idempotency-Key": key})
        assert answer.status_code == 422, answer.text
    for token in (b"%s" % HALF, b"\\u0000", b"mics_a_\\ud800"):
        body = b'{"token": "%s"}' % token
        answer = service.client.post("/api/v1/session", content=body, headers=JSON)
        assert answer.status_code == 401, answer.text
        headers = {b"Authorization": b"Bearer \xff\xfe"}
        assert service.client.get("/api/v1/jobs", headers=headers).status_code in (200, 401)
    service.reset_attempts()
