"""Models, tokens, health and the playground's page."""

import re
from base64 import b64encode
from hashlib import sha256
from typing import Any

import pytest

from tests.unit.api.serving import HELLO, TOOL_TEMPLATE, make_client, make_engine


def test_the_served_model_is_listed_and_found_by_name():
    client = make_client()
    card = client.get("/v1/models").json()["data"][0]
    assert (card["id"], card["max_model_len"]) == ("tiny", 256)
    assert client.get("/v1/models/tiny").json() == card


def test_a_prompt_is_tokenized_and_put_back_together():
    client = make_client()
    body = client.post("/tokenize", json={"prompt": "hello é", "return_token_strs": True}).json()
    assert body["count"] == len(body["tokens"]) == 5
    assert body["token_strs"][:2] == ["hell", "o"]
    assert body["max_model_len"] == 256
    text = client.post("/detokenize", json={"tokens": body["tokens"]}).json()
    assert text == {"prompt": "hello é"}


def test_a_chat_is_tokenized_as_it_would_be_answered():
    client = make_client(template=TOOL_TEMPLATE)
    tools = [{"type": "function", "function": {"name": "f"}}]
    tokens = client.post("/tokenize", json=HELLO | {"tools": tools}).json()["tokens"]
    text = client.post("/detokenize", json={"tokens": tokens}).json()["prompt"]
    assert text == '[{"type": "function", "function": {"name": "f"}}];<user>Hi;<assistant>'


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": HELLO["messages"]}, "prompt"),
        ("/tokenize", {"prompt": 1}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [261]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [1] * 11}, "tokens"),
    ],
)
def test_mistakes_are_named(path: str, body: Any, param: str):
    response = make_client(limits={"max_token_ids": 10}).post(path, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_health_follows_the_engine():
    assert make_client().get("/health").status_code == 200
    response = make_client(make_engine(is_dead=True)).get("/health")
    assert response.status_code == 503
    assert "10.0.0.7" not in response.text


def test_figures_outlive_the_engine():
    response = make_client(make_engine(is_dead=True)).get("/metrics")
    assert response.status_code == 200
    assert "rtp_serve:http_requests_in_progress" in response.text


def test_the_page_may_run_its_own_script_and_nothing_else():
    response = make_client().get("/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", response.text, re.DOTALL)
        digest = b64encode(sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_the_page_needs_nothing_from_elsewhere():
    page = make_client().get("/").text
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page)
    assert "innerHTML" not in page
