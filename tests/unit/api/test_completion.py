"""Text completions: the four forms of a prompt, echo, logprobs, and several prompts at once."""

from typing import Any

import pytest

from tests.unit.api.scripted_engine import ScriptedEngine
from tests.unit.api.serving import decode_prompt, make_client, make_engine, read_events

PATH = "/v1/completions"


def ask(engine: ScriptedEngine, **fields: Any) -> Any:
    response = make_client(engine).post(PATH, json=fields)
    assert response.status_code == 200, response.text
    return response.json()


def ask_stream(engine: ScriptedEngine, **fields: Any) -> list[Any]:
    return read_events(make_client(engine).post(PATH, json=fields | {"stream": True}).text)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("hello", ["hello"]),
        (["hello", "you"], ["hello", "you"]),
        ([64, 65], ["ab"]),
        ([[64, 65], [66]], ["ab", "c"]),
    ],
)
def test_a_prompt_is_text_or_tokens_one_or_many(prompt: Any, expected: list[str]):
    engine = make_engine()
    body = ask(engine, prompt=prompt)
    assert [decode_prompt(engine, i) for i in range(len(engine.requests))] == expected
    assert [choice["text"] for choice in body["choices"]] == ["Hello there."] * len(expected)
    assert body["object"] == "text_completion"


def test_answers_to_several_prompts_are_numbered_by_prompt():
    engine = make_engine("one", "two")
    body = ask(engine, prompt=["a", "bc"], n=2)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in body["choices"]] == ["one", "two", "one", "two"]
    assert body["usage"]["prompt_tokens"] == 3
    assert body["usage"]["completion_tokens"] == 4 * 4


def test_requests_of_one_body_have_ids_of_their_own():
    engine = make_engine()
    ask(engine, prompt=["a", "b"])
    assert len({request.request_id for request in engine.requests}) == 2


def test_echo_puts_the_prompt_first():
    assert ask(make_engine(), prompt="hello ", echo=True)["choices"][0]["text"] == (
        "hello Hello there."
    )
    assert ask(make_engine(), prompt=[64], echo=True)["choices"][0]["text"] == "aHello there."


def test_an_echo_alone_scores_the_prompt_and_tells_no_token():
    body = ask(make_engine(), prompt="hey", echo=True, logprobs=1, max_tokens=0)
    choice = body["choices"][0]
    assert choice["text"] == "hey"
    assert choice["logprobs"]["tokens"] == ["he", "y"]
    assert choice["logprobs"]["token_logprobs"] == [None, -0.25]
    assert choice["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 0


def test_logprobs_are_columns_with_offsets_into_the_text():
    body = ask(make_engine("Hi you"), prompt="he", echo=True, logprobs=2, max_tokens=2)
    columns = body["choices"][0]["logprobs"]
    assert columns["tokens"] == ["he", "H", "i"]
    assert columns["text_offset"] == [0, 2, 3]
    assert columns["token_logprobs"] == [None, -0.25, -0.25]
    assert columns["top_logprobs"][0] is None
    assert len(columns["top_logprobs"][1]) == 2


def test_streamed_logprobs_are_the_whole_ones_cut_in_pieces():
    fields = {"prompt": "hey", "echo": True, "logprobs": 1}
    whole = ask(make_engine("Hé!"), **fields)["choices"][0]
    pieces = [chunk["choices"][0] for chunk in ask_stream(make_engine("Hé!"), **fields)]
    assert "".join(piece["text"] for piece in pieces) == whole["text"]
    for name, column in whole["logprobs"].items():
        assert [value for piece in pieces for value in piece["logprobs"][name]] == column


def test_a_stream_ends_with_reason_and_usage():
    chunks = ask_stream(make_engine(), prompt="a", stream_options={"include_usage": True})
    assert [c["choices"][0]["finish_reason"] for c in chunks[-3:-1]] == [None, "stop"]
    assert chunks[-1]["usage"]["prompt_tokens"] == 1


def test_a_stream_of_several_prompts_keeps_them_apart():
    chunks = ask_stream(make_engine("one", "two"), prompt=["a", "b"], n=2)
    texts = dict.fromkeys(range(4), "")
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert list(texts.values()) == ["one", "two", "one", "two"]


def test_prompt_logprobs_come_with_each_choice():
    body = ask(make_engine(), prompt=["hey", "you"], prompt_logprobs=0)
    assert [len(choice["prompt_logprobs"]) for choice in body["choices"]] == [2, 3]


def test_a_failure_of_one_prompt_fails_the_request_and_frees_the_others():
    engine = make_engine(failure=ValueError("secret"), fail_after=3)
    client = make_client(engine)
    assert client.post(PATH, json={"prompt": ["a", "b"]}).status_code == 500
    assert not engine.open_ids
