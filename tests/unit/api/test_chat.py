"""Chat completions: what reaches the engine, and what comes back."""

import asyncio
from typing import Any

import pytest

from rtp_serve.api.chat import ChatService
from rtp_serve.api.service import answer, answer_stream
from rtp_serve.errors import UnsupportedParameter
from tests.unit.api.scripted_engine import ScriptedEngine
from tests.unit.api.serving import (
    HELLO,
    TOOL_TEMPLATE,
    chat_text,
    decode_prompt,
    make_client,
    make_context,
    make_engine,
    read_events,
)

PATH = "/v1/chat/completions"
TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}


def ask(engine: ScriptedEngine, **fields: Any) -> Any:
    response = make_client(engine).post(PATH, json=HELLO | fields)
    assert response.status_code == 200, response.text
    return response.json()


def ask_stream(engine: ScriptedEngine, **fields: Any) -> list[Any]:
    response = make_client(engine).post(PATH, json=HELLO | {"stream": True} | fields)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    return read_events(response.text)


def test_a_whole_answer_has_text_reason_and_usage():
    body = ask(make_engine(num_cached_tokens=16, num_host_tokens=12), model="tiny")
    assert body["object"] == "chat.completion"
    assert body["created"] == 1_700_000_000
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello there.", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": 20,
        "completion_tokens": 11,
        "total_tokens": 31,
        "prompt_tokens_details": {
            "cached_tokens": 16,
            "cached_tokens_by_tier": {"device": 4, "host": 12, "disk": 0, "remote": 0},
        },
    }


def test_messages_reach_the_engine_through_the_template():
    engine = make_engine()
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "ok"},
    ]
    ask(engine, messages=messages, chat_template_kwargs={"mood": "!"})
    assert decode_prompt(engine) == (
        '<system>Be kind.;<user>a\nb;<assistant>[{"x": 1}];<tool>ok;<assistant>!'
    )


def test_the_generation_prompt_can_be_left_out():
    engine = make_engine()
    ask(engine, add_generation_prompt=False)
    assert decode_prompt(engine) == "<user>Hi;"


def test_sampling_fields_reach_the_engine():
    engine = make_engine()
    ask(
        engine, temperature=0, top_p=0.5, top_k=7, min_p=0.1, presence_penalty=0.2,
        frequency_penalty=-0.3, repetition_penalty=1.1, logit_bias={"5": -1}, stop_token_ids=[9],
        bad_words=["he"], min_tokens=2, max_completion_tokens=20, seed=-1, ignore_eos=True, n=2,
        include_stop_str_in_output=True, skip_special_tokens=False, priority=3, stop="xyz",
    )  # fmt: skip
    request = engine.requests[0]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0, 0.5, 7)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.n) == (0.1, 1.1, 2)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.2, -0.3)
    assert (sampling.logit_bias, sampling.stop_token_ids) == ({5: -1.0}, (9,))
    assert sampling.bad_words == engine.tokenizer.encode_word("he")
    assert (sampling.min_tokens, sampling.max_tokens, sampling.ignore_eos) == (2, 20, True)
    assert (sampling.include_stop, sampling.skip_special_tokens) == (True, False)
    assert sampling.stop == ("xyz",)
    assert (request.seed, request.priority) == ((1 << 64) - 1, 3)


def test_without_max_tokens_the_context_is_the_limit():
    engine = make_engine()
    ask(engine)
    assert engine.requests[0].sampling.max_tokens == 256 - 20


def test_a_configured_cap_bounds_the_default_max_tokens():
    engine = make_engine()
    make_client(engine, limits={"max_tokens": 5}).post(PATH, json=HELLO)
    assert engine.requests[0].sampling.max_tokens == 5


def test_requests_without_a_seed_draw_different_ones():
    engine = make_engine()
    ask(engine)
    ask(engine)
    assert engine.requests[0].seed != engine.requests[1].seed


def test_a_client_salt_separates_prefix_caches():
    engine = make_engine()
    for salt in ("", "a", "b"):
        ask(engine, cache_salt=salt)
    assert len({request.cache_salt for request in engine.requests}) == 3


def test_null_fields_are_absent_fields():
    body = ask(make_engine(), temperature=None, stop=None, tools=None, n=None, logprobs=None)
    assert body["choices"][0]["message"]["content"] == "Hello there."


def test_several_answers_come_in_order():
    body = ask(make_engine("one", "two"), n=3)
    texts = [choice["message"]["content"] for choice in body["choices"]]
    assert texts == ["one", "two", "one"]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert body["usage"]["completion_tokens"] == 3 * len("one" + "$")


def test_an_answer_cut_by_max_tokens_says_so():
    choice = ask(make_engine(), max_tokens=2)["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("He", "length")


def test_a_stop_string_ends_the_text_and_the_engines_work():
    engine = make_engine("Hello there and on and on")
    body = ask(engine, stop=["the"])
    choice = body["choices"][0]
    assert choice["message"]["content"] == "Hello "
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "the")
    tokens = ["H", "e", "ll", "o", " ", "t", "he"]
    assert engine.num_given == body["usage"]["completion_tokens"] == len(tokens)
    assert not engine.open_ids


def test_a_stop_string_can_stay_in_the_text():
    body = ask(make_engine(), stop="the", include_stop_str_in_output=True)
    assert body["choices"][0]["message"]["content"] == "Hello the"


def test_a_stop_token_is_told_only_if_it_was_asked_for():
    end = make_engine().tokenizer.eos_ids[0]
    assert ask(make_engine(), stop_token_ids=[end])["choices"][0]["stop_reason"] == end
    assert ask(make_engine(), stop_token_ids=[5])["choices"][0]["stop_reason"] is None


def test_one_answers_stop_string_leaves_the_others_alone():
    body = ask(make_engine("a b c", "a d e"), n=2, stop="b")
    assert [choice["message"]["content"] for choice in body["choices"]] == ["a ", "a d e"]


def test_logprobs_name_each_token_and_its_alternatives():
    body = ask(make_engine("Hé"), logprobs=True, top_logprobs=2, max_tokens=2)
    first, second = body["choices"][0]["logprobs"]["content"]
    assert first["token"] == "H"
    assert first["bytes"] == [72]
    assert first["logprob"] == -0.25
    assert [each["logprob"] for each in first["top_logprobs"]] == [-0.25, -1.25]
    assert second["bytes"] == [0xC3], "half of é"


def test_logprobs_of_held_back_tokens_come_with_their_text():
    chunks = ask_stream(make_engine("Hé"), logprobs=True)
    contents = [c["choices"][0] for c in chunks if c["choices"][0]["delta"].get("content")]
    assert [len(choice["logprobs"]["content"]) for choice in contents] == [1, 2]


def test_prompt_logprobs_have_an_entry_per_prompt_token():
    body = ask(make_engine(), prompt_logprobs=1)
    entries = body["prompt_logprobs"]
    assert len(entries) == body["usage"]["prompt_tokens"]
    assert entries[0] is None
    assert all(entry["rank"] == 1 for each in entries[1:] for entry in each.values())


def test_a_stream_starts_with_the_role_and_ends_with_the_reason():
    chunks = ask_stream(make_engine())
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chat_text(chunks) == "Hello there."
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert [c["choices"][0]["finish_reason"] for c in chunks[-2:]] == [None, "stop"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert not any("usage" in chunk for chunk in chunks)


def test_a_stream_ends_with_the_usage_when_asked():
    chunks = ask_stream(make_engine(), stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 11


def test_a_stream_of_several_answers_keeps_them_apart():
    chunks = ask_stream(make_engine("one", "two"), n=2)
    assert [chat_text(chunks, index) for index in (0, 1)] == ["one", "two"]
    roles = [c["choices"][0]["index"] for c in chunks if "role" in c["choices"][0]["delta"]]
    assert roles == [0, 1]


def test_a_character_is_never_cut_across_chunks():
    chunks = ask_stream(make_engine("né"))
    assert [c["choices"][0]["delta"].get("content") for c in chunks] == ["", "n", "é", None]


def test_tools_are_rendered_as_the_client_wrote_them():
    engine = make_engine()
    client = make_client(engine, template=TOOL_TEMPLATE)
    response = client.post(PATH, json=HELLO | {"tools": [TOOL], "tool_choice": "auto"})
    assert response.status_code == 200
    assert decode_prompt(engine).startswith(
        '[{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}];'
    )


def test_tools_that_the_template_would_leave_out_are_refused():
    service = ChatService(make_context())
    with pytest.raises(UnsupportedParameter, match="template does not render them"):
        asyncio.run(service.prepare(HELLO | {"tools": [TOOL]}))


def test_python_callers_get_the_same_answer_whole_and_streamed():
    service = ChatService(make_context())

    async def both() -> tuple[Any, list[Any]]:
        whole = await answer(service, HELLO | {"stream": True}, tenant="team")
        return whole, [chunk async for chunk in answer_stream(service, HELLO)]

    whole, chunks = asyncio.run(both())
    assert whole["choices"][0]["message"]["content"] == chat_text(chunks) == "Hello there."


def test_the_answer_names_the_arithmetic_that_made_it():
    assert ask(make_engine("Hi"))["system_fingerprint"] == "fp_test"
