"""Who is let in: keys name tenants, the admin token opens admin routes, and nothing is open by
omission."""

from typing import Any

import pytest

from rtp_serve.config.api import AuthConfig
from rtp_serve.errors import ReloadFailed
from tests.unit.api.serving import HELLO, digest, make_app, make_client, make_engine

KEYS: dict[str, Any] = {
    "api_keys": [
        {"name": "red", "sha256": digest("key-red")},
        {"name": "blue", "sha256": digest("key-blue")},
        {"name": "blue", "sha256": digest("key-blue-2")},
    ],
    "admin_token_sha256": digest("root"),
}
CHAT = "/v1/chat/completions"


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def keyed_client(engine: Any = None) -> Any:
    return make_client(engine, auth=AuthConfig.model_validate(KEYS))


@pytest.mark.parametrize(
    "given", [None, "Bearer wrong", "Bearer ", "Basic key-red", "key-red", "Bearer schlüssel"]
)
def test_without_a_good_key_nothing_is_done(given: str | None):
    engine = make_engine()
    headers = {"authorization": given.encode()} if given else {}
    response = keyed_client(engine).post(CHAT, json=HELLO, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["type"] == "authentication_error"
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert not engine.requests


@pytest.mark.parametrize(
    ("key", "tenant"), [("key-red", "red"), ("key-blue", "blue"), ("key-blue-2", "blue")]
)
def test_the_key_names_the_tenant_whose_prefixes_are_shared(key: str, tenant: str):
    engine = make_engine()
    assert keyed_client(engine).post(CHAT, json=HELLO, headers=bearer(key)).status_code == 200
    assert engine.requests[0].cache_salt == tenant


def test_a_tenant_cannot_reach_anothers_prefixes_with_a_salt():
    engine = make_engine()
    client = keyed_client(engine)
    client.post(CHAT, json=HELLO | {"cache_salt": "blue"}, headers=bearer("key-red"))
    client.post(CHAT, json=HELLO | {"cache_salt": "red"}, headers=bearer("key-blue"))
    client.post(CHAT, json=HELLO, headers=bearer("key-blue"))
    assert len({request.cache_salt for request in engine.requests}) == 3


def test_the_admin_token_is_no_api_key():
    assert keyed_client().post(CHAT, json=HELLO, headers=bearer("root")).status_code == 401


OPEN = {("GET", "/"), ("GET", "/health")}


def test_every_route_but_page_and_health_asks_for_a_key():
    client = keyed_client()
    routes = make_app().routes
    assert len(routes) >= 10
    for route in routes:
        method = "POST" if "POST" in route.methods else "GET"
        status = client.request(method, route.path.replace("{name:path}", "tiny")).status_code
        assert status == (200 if (method, route.path) in OPEN else 401), route


def test_figures_are_for_key_holders_and_the_admin():
    client = keyed_client()
    assert client.get("/metrics", headers=bearer("root")).status_code == 200
    assert client.get("/metrics", headers=bearer("key-red")).status_code == 200


def test_admin_routes_take_the_admin_token_only():
    client = keyed_client()
    assert client.get("/admin/config", headers=bearer("key-red")).status_code == 403
    answer = client.get("/admin/config", headers=bearer("root"))
    assert answer.status_code == 200
    assert answer.json()["auth"] == {
        "api_keys": [{"name": "red"}, {"name": "blue"}, {"name": "blue"}],
        "has_admin_token": True,
    }
    assert answer.json()["limits"]["max_n"] == 16
    assert digest("key-red") not in answer.text
    assert digest("root") not in answer.text


def test_admin_routes_are_closed_without_a_token():
    response = make_client().get("/admin/config", headers=bearer("anything"))
    assert response.status_code == 403
    assert "no admin token" in response.json()["error"]["message"]


def test_without_keys_everyone_is_the_same_tenant():
    engine = make_engine()
    assert make_client(engine).post(CHAT, json=HELLO, headers=bearer("x")).status_code == 200
    assert engine.requests[0].cache_salt == ""


def test_a_reload_is_the_admins():
    engine = make_engine()
    client = keyed_client(engine)
    for headers, status in (({}, 401), (bearer("key-red"), 403), (bearer("root"), 200)):
        answer = client.post("/admin/reload", headers=headers)
        assert answer.status_code == status
    assert answer.json() == {
        "replicas": [{"replica": "a", "fingerprint": "fp_test", "is_changed": True}]
    }
    assert engine.num_reloads == 1


def test_a_reload_takes_nothing_but_an_empty_object():
    engine = make_engine()
    client = keyed_client(engine)
    assert client.post("/admin/reload", json={}, headers=bearer("root")).status_code == 200
    answer = client.post("/admin/reload", json={"model": "/etc"}, headers=bearer("root"))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "model"
    assert "user_config" in answer.json()["error"]["message"]
    answer = client.post("/admin/reload", content=b"model=x", headers=bearer("root"))
    assert answer.status_code == 415
    assert engine.num_reloads == 1


def test_the_admin_hears_why_a_reload_failed():
    engine = make_engine(failure=ReloadFailed("replica a: model.safetensors ends early"))
    answer = keyed_client(engine).post("/admin/reload", headers=bearer("root"))
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "reload_failed"
    assert "ends early" in answer.json()["error"]["message"]
