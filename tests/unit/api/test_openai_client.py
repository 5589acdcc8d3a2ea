"""The `openai` package understands everything we answer."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx
import openai
import pytest

from rtp_serve.config.api import AuthConfig
from rtp_serve.errors import EngineDead, Overloaded
from tests.unit.api.scripted_engine import ScriptedEngine
from tests.unit.api.serving import digest, make_app, make_engine

T = TypeVar("T")
MESSAGES: Any = [{"role": "user", "content": "Hi"}]


def call(
    work: Callable[[openai.AsyncOpenAI], Awaitable[T]],
    engine: ScriptedEngine | None = None,
    **app: Any,
) -> T:
    async def run() -> T:
        transport = httpx.ASGITransport(make_app(engine, **app))
        http = httpx.AsyncClient(transport=transport, base_url="http://test")
        async with openai.AsyncOpenAI(
            base_url="http://test/v1", api_key="key", http_client=http, max_retries=0
        ) as client:
            return await work(client)

    return asyncio.run(run())


def test_a_chat():
    answer = call(
        lambda client: client.chat.completions.create(
            model="tiny", messages=MESSAGES, logprobs=True, top_logprobs=1, n=2
        ),
        make_engine("one", "two", num_cached_tokens=16, num_disk_tokens=16),
    )
    assert [choice.message.content for choice in answer.choices] == ["one", "two"]
    assert answer.choices[0].logprobs is not None
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 16
    by_tier = answer.usage.prompt_tokens_details.model_extra
    assert by_tier == {"cached_tokens_by_tier": {"device": 0, "host": 0, "disk": 16, "remote": 0}}
    assert type(answer).model_validate(answer.model_dump()) == answer, "strictly, too"


def test_a_streamed_chat():
    async def work(client: openai.AsyncOpenAI) -> list[Any]:
        stream = await client.chat.completions.create(
            model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        return [chunk async for chunk in stream]

    chunks = call(work)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello there."
    assert chunks[-1].usage.completion_tokens == 11
    for chunk in chunks:
        assert type(chunk).model_validate(chunk.model_dump()) == chunk


def test_the_packages_own_accumulator_of_streams():
    async def work(client: openai.AsyncOpenAI) -> Any:
        async with client.chat.completions.stream(model="tiny", messages=MESSAGES) as stream:
            return await stream.get_final_completion()

    choice = call(work).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("Hello there.", "stop")


@pytest.mark.parametrize(
    ("named", "expected"), [({}, "default"), ({"slo_class": "batch"}, "batch")]
)
def test_a_request_s_class_is_an_extra_field(named: dict[str, str], expected: str):
    engine = make_engine()

    async def work(client: openai.AsyncOpenAI) -> None:
        await client.chat.completions.create(model="tiny", messages=MESSAGES, extra_body=named)
        await client.completions.create(model="tiny", prompt="a", extra_body=named)

    call(work, engine, slo_classes=("default", "batch"))
    assert [each.slo_class for each in engine.requests] == [expected, expected]


def test_a_class_that_is_none_is_refused_with_those_that_are():
    async def work(client: openai.AsyncOpenAI) -> openai.BadRequestError:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.completions.create(
                model="tiny", prompt="a", extra_body={"slo_class": "bulk"}
            )
        return caught.value

    error = call(work, slo_classes=("default", "batch"))
    assert error.param == "slo_class"
    assert "slo_class must be one of 'batch', 'default', got 'bulk'" in error.message


def test_a_completion_with_extra_fields():
    answer = call(
        lambda client: client.completions.create(
            model="tiny", prompt=["a", "b"], logprobs=1, extra_body={"top_k": 5, "min_p": 0.1}
        )
    )
    assert [choice.text for choice in answer.choices] == ["Hello there."] * 2
    assert type(answer).model_validate(answer.model_dump()) == answer


def test_a_streamed_completion():
    async def work(client: openai.AsyncOpenAI) -> str:
        stream = await client.completions.create(model="tiny", prompt="a", stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream])

    assert call(work) == "Hello there."


def test_models():
    async def work(client: openai.AsyncOpenAI) -> list[str]:
        return [model.id async for model in client.models.list()]

    assert call(work) == ["tiny"]
    assert call(lambda client: client.models.retrieve("tiny")).owned_by == "rtp-serve"


def chat(client: openai.AsyncOpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": "tiny", "messages": MESSAGES} | fields)


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (Overloaded("busy", 3), openai.RateLimitError),
        (EngineDead("gone"), openai.InternalServerError),
        (RuntimeError("x"), openai.InternalServerError),
    ],
)
def test_failures_of_the_engine(failure: Exception, error: type[openai.APIStatusError]):
    with pytest.raises(error):
        call(chat, make_engine(failure=failure))


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"temperature": 101}, openai.BadRequestError),
        ({"model": "gpt-4"}, openai.NotFoundError),
        ({"messages": []}, openai.BadRequestError),
    ],
)
def test_mistakes(fields: dict[str, Any], error: type[openai.APIStatusError]):
    with pytest.raises(error) as caught:
        call(lambda client: chat(client, **fields))
    assert caught.value.request_id


def test_a_wrong_key():
    auth = AuthConfig.model_validate({"api_keys": [{"name": "a", "sha256": digest("other")}]})
    with pytest.raises(openai.AuthenticationError):
        call(chat, auth=auth)


def test_a_failure_in_mid_stream_is_raised():
    async def work(client: openai.AsyncOpenAI) -> list[Any]:
        return [chunk async for chunk in await chat(client, stream=True)]

    with pytest.raises(openai.APIError, match="try again"):
        call(work, make_engine(failure=EngineDead("gone"), fail_after=3))
