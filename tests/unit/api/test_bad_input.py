"""Every mistake a client can make is one clear 400 that names the field; none is ever a 500."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.api.serving import HELLO, make_client, make_engine

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
TOOL = {"type": "function", "function": {"name": "f"}}


def user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


def error_of(path: str, body: Any, **app: Any) -> dict[str, Any]:
    engine = make_engine()
    response = make_client(engine, **app).post(path, json=body)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert not engine.requests, "nothing was started"
    return error


CHAT_MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": None}, "messages", "required"),
    ({"messages": []}, "messages", "must not be empty"),
    ({"messages": "Hi"}, "messages", "list"),
    ({"messages": ["Hi"]}, "messages[0]", "Hi"),
    ({"messages": [{"content": "Hi"}]}, "messages[0].role", "required"),
    ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages[0].role", "'system'"),
    ({"messages": [{"role": ["user"], "content": "Hi"}]}, "messages[0].role", "'user'"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "required"),
    (user(7), "messages[0].content", "string or an array of parts, got 7"),
    (user([{"type": "image_url", "image_url": {}}]), "messages[0].content", "image_url"),
    (user([{"type": "text"}]), "messages[0].content", "'text'"),
    (user(["Hi"]), "messages[0].content", "type 'text'"),
    ({"messages": [{"role": "assistant"}]}, "messages[0]", "content or tool_calls"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "required"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [
            {"id": "1", "function": {"name": "f", "arguments": "{"}}]}]},
        "messages[0].tool_calls[0].function", "JSON object",
    ),
    ({"n": 0}, "n", "from 1 to 16"),
    ({"n": 17}, "n", "from 1 to 16"),
    ({"n": "2"}, "n", "integer"),
    ({"n": 1.5}, "n", "integer"),
    ({"n": True}, "n", "integer"),
    ({"temperature": "hot"}, "temperature", "number"),
    ({"temperature": -0.1}, "temperature", "-0.1"),
    ({"top_p": 0}, "top_p", "above 0"),
    ({"top_k": -2}, "top_k", "-2"),
    ({"min_p": 2}, "min_p", "to 1"),
    ({"presence_penalty": 3}, "presence_penalty", "-2.0 to 2.0"),
    ({"repetition_penalty": 0}, "repetition_penalty", "above"),
    ({"max_tokens": 0}, "max_tokens", "at least 1"),
    ({"max_tokens": -1}, "max_tokens", "at least 1"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "at least 1"),
    ({"min_tokens": 5, "max_tokens": 2}, "min_tokens", "to 2"),
    ({"stop": ""}, "stop[0]", "from 1 to"),
    ({"stop": ["a"] * 17}, "stop", "at most 16"),
    ({"stop": ["a" * 257]}, "stop[0]", "to 256"),
    ({"stop": 3}, "stop", "list"),
    ({"stop": ["a", 3]}, "stop[1]", "string"),
    ({"stop_token_ids": [261]}, "stop_token_ids", "0 to 260"),
    ({"bad_words": [""]}, "bad_words[0]", "from 1 to"),
    ({"bad_words": ["a"] * 257}, "bad_words", "at most 256"),
    ({"logit_bias": {"a": 1}}, "logit_bias", "token ids"),
    ({"logit_bias": {"-1": 1}}, "logit_bias", "token ids"),
    ({"logit_bias": {"5": 101}}, "logit_bias", "-100 to 100"),
    ({"logit_bias": {"999": 1}}, "logit_bias", "0 to 260"),
    ({"logit_bias": [1]}, "logit_bias", "dictionary"),
    ({"logprobs": 3}, "logprobs", "boolean"),
    ({"top_logprobs": 3}, "top_logprobs", "logprobs: true"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
    ({"prompt_logprobs": -1}, "prompt_logprobs", "from 0 to 20"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "without stream"),
    ({"seed": 1 << 70}, "seed", "seed"),
    ({"seed": "x"}, "seed", "integer"),
    ({"priority": 1 << 40}, "priority", "less than"),
    ({"slo_class": "urgent"}, "slo_class", "must be one of 'default', got 'urgent'"),
    ({"slo_class": 1}, "slo_class", "string"),
    ({"stream": "yes"}, "stream", "boolean"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
    ({"tools": [{"type": "web"}]}, "tools[0].type", "'function'"),
    (
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        "tools[0].function.name", "pattern",
    ),
    ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice", "not parsed yet"),
    ({"tools": [TOOL], "tool_choice": TOOL}, "tool_choice", "not parsed yet"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "messages"),
    ({"response_format": {"type": "json_object"}}, "response_format", "not supported yet"),
    ({"modalities": ["audio"]}, "modalities", "not supported yet"),
    ({"audio": {"voice": "x"}}, "audio", "not supported yet"),
    ({"functions": [{"name": "f"}]}, "functions", "not supported yet"),
    ({"guided_json": {"type": "object"}}, "guided_json", "not supported yet"),
    ({"structured_outputs": {"choice": ["a"]}}, "structured_outputs", "not supported yet"),
    ({"logits_processors": ["x"]}, "logits_processors", "not supported yet"),
    ({"chat_template": "{{ 1 }}"}, "chat_template", "not supported yet"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "not supported yet"),
    ({"echo": True}, "echo", "not a field of this endpoint"),
    ({"max_token": 5}, "max_tokens", "did you mean 'max_tokens'"),
    ({"temprature": 0}, "temperature", "did you mean 'temperature'"),
    ({"topK": 1}, "top_k", "did you mean 'top_k'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "param", "words"), CHAT_MISTAKES, ids=lambda value: json.dumps(value)[:60]
)
def test_a_mistake_in_a_chat_is_named(fields: dict[str, Any], param: str, words: str):
    error = error_of(CHAT, HELLO | fields)
    assert error["param"] == param
    assert param in error["message"]
    assert words in error["message"]


COMPLETION_MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    ({}, "prompt", "required"),
    ({"prompt": None}, "prompt", "required"),
    ({"prompt": ""}, "prompt", "at least one token"),
    ({"prompt": []}, "prompt", "empty"),
    ({"prompt": [[]]}, "prompt", "at least one token"),
    ({"prompt": ["a", ""]}, "prompt[1]", "at least one token"),
    ({"prompt": 3}, "prompt", "must be a string"),
    ({"prompt": {"a": 1}}, "prompt", "must be a string"),
    ({"prompt": ["a", 1]}, "prompt", "strings only"),
    ({"prompt": [1, True]}, "prompt", "token ids only"),
    ({"prompt": [1.0]}, "prompt", "token ids only"),
    ({"prompt": [[1], ["a"]]}, "prompt", "token ids only"),
    ({"prompt": [261]}, "prompt", "token id 261 is not from 0 to 260"),
    ({"prompt": [-1]}, "prompt", "token id -1"),
    ({"prompt": ["a"] * 33}, "prompt", "at most 32"),
    ({"prompt": "a", "logprobs": 21}, "logprobs", "from 0 to 20"),
    ({"prompt": "a", "logprobs": True}, "logprobs", "integer"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens", "echo"),
    ({"prompt": "a", "best_of": 2}, "best_of", "not supported yet"),
    ({"prompt": "a", "suffix": "b"}, "suffix", "not supported yet"),
    ({"prompt": "a", "use_beam_search": True}, "use_beam_search", "not supported yet"),
    ({"prompt": "a", "tools": [TOOL]}, "tools", "not a field of this endpoint"),
    ({"prompts": "a"}, "prompt", "did you mean 'prompt'"),
]


@pytest.mark.parametrize(
    ("fields", "param", "words"), COMPLETION_MISTAKES, ids=lambda value: json.dumps(value)[:60]
)
def test_a_mistake_in_a_completion_is_named(fields: dict[str, Any], param: str, words: str):
    error = error_of(COMPLETION, fields)
    assert error["param"] == param
    assert param in error["message"]
    assert words in error["message"]


def test_a_prompt_longer_than_the_context_names_both_numbers():
    error = error_of(COMPLETION, {"prompt": "a" * 300})
    assert error["code"] == "context_length_exceeded"
    assert "256" in error["message"]
    assert "300" in error["message"]


def test_a_chat_longer_than_the_context_is_refused():
    error = error_of(CHAT, user("a" * 10_000))
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "messages"


@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, user("a" * 40_000)), (COMPLETION, {"prompt": ["a", "b" * 40_000]})]
)
def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(path: str, body: Any):
    error = error_of(path, body)
    assert error["code"] == "context_length_exceeded"
    assert "40000 characters" in error["message"]


def test_more_tokens_than_the_context_leaves_are_refused_with_the_numbers():
    error = error_of(COMPLETION, {"prompt": "a" * 100, "max_tokens": 157})
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "max_tokens"
    assert "at most 156, got 157" in error["message"]
    assert error_of(CHAT, HELLO | {"max_completion_tokens": 256})["param"] == (
        "max_completion_tokens"
    )


@pytest.mark.parametrize(
    ("limits", "body", "param"),
    [
        ({"max_messages": 1}, {"messages": HELLO["messages"] * 2}, "messages"),
        ({"max_tools": 0}, HELLO | {"tools": [TOOL]}, "tools"),
        ({"max_n": 1}, HELLO | {"n": 2}, "n"),
        ({"max_logprobs": 1}, HELLO | {"logprobs": True, "top_logprobs": 2}, "top_logprobs"),
        ({"max_stop": 1}, HELLO | {"stop": ["a", "b"]}, "stop"),
        ({"max_tokens": 4}, HELLO | {"max_tokens": 5}, "max_tokens"),
        ({"max_tokens": 4}, HELLO | {"max_completion_tokens": 5}, "max_completion_tokens"),
        ({"max_json_depth": 8}, HELLO | {"tools": [TOOL | {"x": [[[[[[[[]]]]]]]]}]}, None),
    ],
)
def test_configured_caps_hold(limits: dict[str, Any], body: Any, param: str | None):
    assert error_of(CHAT, body, limits=limits)["param"] == param


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "text"}},
        {"modalities": ["text"]},
        {"best": "friend"},
        {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
        {"functions": [], "guided_json": None, "use_beam_search": False, "suffix": ""},
        {"parallel_tool_calls": True, "tool_choice": "none", "x_custom": {"deep": [1]}},
    ],
)
def test_fields_that_ask_for_nothing_are_let_pass(fields: dict[str, Any]):
    assert make_client().post(CHAT, json=HELLO | fields).status_code == 200


NO_OBJECTS = [
    b"", b"{", b"null", b"[]", b'"x"', b"3", b"true", b"\xff", b'{"a": NaN}', b'{"a": "\\ud800"}',
    b"[" * 10_000,
]  # fmt: skip


@pytest.mark.parametrize("body", NO_OBJECTS)
def test_a_body_that_is_no_json_object_is_refused(body: bytes):
    response = make_client().post(CHAT, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert "JSON" in response.json()["error"]["message"] or "deeper" in response.text


def test_another_model_is_not_found():
    response = make_client().post(CHAT, json=HELLO | {"model": "gpt-4"})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


def test_what_the_client_sent_is_repeated_in_short():
    error = error_of(CHAT, HELLO | {"temperature": "x" * 5000})
    assert len(error["message"]) < 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
roles = st.sampled_from(["system", "user", "assistant", "tool", "developer"])
messages = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": roles | json_values,
            "content": json_values,
            "tool_calls": json_values,
            "tool_call_id": json_values,
        },
    ),
    max_size=3,
)
FIELDS = {
    "model", "messages", "prompt", "n", "temperature", "top_p", "top_k", "min_p", "stop", "stream",
    "stream_options", "max_tokens", "max_completion_tokens", "min_tokens", "logprobs",
    "top_logprobs", "prompt_logprobs", "logit_bias", "bad_words", "stop_token_ids", "seed", "tools",
    "tool_choice", "echo", "best_of", "suffix", "response_format", "priority", "cache_salt",
    "chat_template_kwargs", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "ignore_eos", "skip_special_tokens", "include_stop_str_in_output", "add_special_tokens",
    "tokens", "return_token_strs", "add_generation_prompt", "slo_class",
}  # fmt: skip
bodies = st.fixed_dictionaries(
    {"messages": messages | json_values, "prompt": st.text(max_size=8) | json_values},
    optional=dict.fromkeys(FIELDS - {"messages", "prompt"}, json_values),
)
CLIENT = make_client()


@settings(max_examples=80, deadline=None)
@given(body=bodies, path=st.sampled_from([CHAT, COMPLETION, "/tokenize", "/detokenize"]))
def test_no_body_is_ever_an_internal_error(body: dict[str, Any], path: str):
    headers = {"content-type": "application/json"}
    response = CLIENT.post(path, content=json.dumps(body), headers=headers)
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        error = response.json()["error"]
        assert error["message"]
        assert error["type"] == "invalid_request_error"


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=200))
def test_no_bytes_are_ever_an_internal_error(data: bytes):
    response = CLIENT.post(CHAT, content=data, headers={"content-type": "application/json"})
    assert response.status_code == 400
