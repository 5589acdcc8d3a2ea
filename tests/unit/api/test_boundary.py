"""What holds for every request: ids, caps on bodies and headers, error shapes, figures."""

import asyncio
import logging
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.unit.api.asgi import RawRequest
from tests.unit.api.serving import HELLO, make_app, make_client, make_engine

CHAT = "/v1/chat/completions"


def test_the_clients_request_id_comes_back():
    response = make_client().get("/health", headers={"x-request-id": "trace-1.a"})
    assert response.headers["x-request-id"] == "trace-1.a"


@pytest.mark.parametrize("given", ["", "a" * 129, "a b", 'x"><script>'])
def test_a_strange_request_id_is_replaced(given: str):
    response = make_client().get("/health", headers={"x-request-id": given})
    assert response.headers["x-request-id"].startswith("req-")


def test_an_internal_error_is_logged_under_its_request_id(caplog: pytest.LogCaptureFixture):
    client = make_client(make_engine(failure=RuntimeError("what happened")))
    with caplog.at_level(logging.ERROR):
        response = client.post(CHAT, json=HELLO, headers={"x-request-id": "trace-7"})
    assert response.status_code == 500
    assert response.headers["x-request-id"] == "trace-7"
    assert "trace-7" in caplog.text
    assert "what happened" in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", CHAT, 405),
        ("POST", "/health", 405),
        ("GET", "/v1/models/other", 404),
    ],
)
def test_routing_errors_look_like_openais(method: str, path: str, status: int):
    response = make_client().request(method, path)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_only_json_is_taken_so_that_no_foreign_page_can_post(media_type: str):
    response = make_client().post(CHAT, content=b"{}", headers={"content-type": media_type})
    assert response.status_code == 415
    assert "application/json" in response.json()["error"]["message"]


def test_a_declared_body_beyond_the_cap_is_refused_unread():
    client = make_client(limits={"max_body_bytes": 100})
    response = client.post(CHAT, json=HELLO | {"user": "x" * 100})
    assert response.status_code == 413
    assert "100" in response.json()["error"]["message"]


def test_an_undeclared_body_is_counted_while_it_arrives():
    async def scenario() -> RawRequest:
        request = RawRequest(CHAT, None, {"transfer-encoding": "chunked"})
        for _ in range(3):
            request.receive_body(b"x" * 50, more_body=True)
        await request.start(make_app(limits={"max_body_bytes": 100}))
        return request

    assert asyncio.run(scenario()).status == 413


def test_a_client_that_leaves_while_sending_its_body_is_let_go():
    async def scenario() -> RawRequest:
        request = RawRequest(CHAT, None)
        request.receive_body(b"{", more_body=True)
        request.leave()
        await request.start(make_app())
        return request

    assert asyncio.run(scenario()).sent == []


@pytest.mark.parametrize("where", ["header", "path"])
def test_headers_and_path_beyond_the_cap_are_refused(where: str):
    client = make_client(limits={"max_header_bytes": 2000})
    path = "/" + "a" * 3000 if where == "path" else "/health"
    headers = {"x-long": "a" * 3000} if where == "header" else {}
    assert client.get(path, headers=headers).status_code == 431


def test_large_bodies_are_parsed_like_small_ones():
    body = HELLO | {"user": "x" * 200_000}
    assert make_client().post(CHAT, json=body).status_code == 200


def test_figures_count_requests_by_route_and_status():
    client = make_client()
    client.post(CHAT, json=HELLO)
    client.post(CHAT, json={})
    client.get("/wherever/it/was")
    text = client.get("/metrics").text
    assert f'rtp_serve:http_requests_total{{route="{CHAT}",status="200"}} 1.0' in text
    assert f'rtp_serve:http_requests_total{{route="{CHAT}",status="400"}} 1.0' in text
    assert 'rtp_serve:http_requests_total{route="other",status="404"} 1.0' in text
    assert "rtp_serve:http_requests_in_progress 1.0" in text
    assert "rtp_serve:num_requests_running 3.0" in text


def test_figures_and_routes_work_under_a_prefix():
    client = TestClient(make_app(), root_path="/llm")
    assert client.post(f"/llm{CHAT}", json=HELLO).status_code == 200
    text = client.get("/llm/metrics").text
    assert f'rtp_serve:http_requests_total{{route="{CHAT}",status="200"}} 1.0' in text


def test_a_client_that_left_is_counted_as_499():
    async def scenario() -> Any:
        engine = make_engine(stall_after=0)
        app = make_app(engine)
        request = RawRequest(CHAT, HELLO)
        running = request.start(app)
        await engine.has_stalled.wait()
        request.leave()
        await running
        figures = RawRequest("/metrics", b"", method="GET")
        await figures.start(app)
        return figures.text

    assert f'http_requests_total{{route="{CHAT}",status="499"}} 1.0' in asyncio.run(scenario())


def test_no_origin_may_read_unless_configured():
    headers = {"origin": "https://a.example"}
    assert (
        "access-control-allow-origin" not in make_client().get("/health", headers=headers).headers
    )
    client = make_client(cors_origins=("https://a.example",))
    answer = client.post(CHAT, json={}, headers=headers)
    assert answer.status_code == 400
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
