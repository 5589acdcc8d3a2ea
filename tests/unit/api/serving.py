"""A tiny tokenizer, services and apps around a ScriptedEngine, and ways to call them."""

import json
import random
import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.testclient import TestClient

from rtp_serve.api.context import ServingContext
from rtp_serve.api.openai_app import build_app
from rtp_serve.clock import VirtualClock
from rtp_serve.config.api import ApiConfig, LimitsConfig
from rtp_serve.text.chat_template import ChatTemplate
from rtp_serve.text.tokenizer import Tokenizer
from tests.unit.api.scripted_engine import ScriptedEngine
from tests.unit.text.vocabularies import byte_level_directory

TEMPLATE = (
    "{% for message in messages %}"
    "<{{ message.role }}>{{ message.content }}"
    "{% for call in message.tool_calls %}[{{ call.function.arguments | tojson }}]{% endfor %};"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
    "{% if mood is defined %}{{ mood }}{% endif %}"
)
TOOL_TEMPLATE = "{% if tools %}{{ tools | tojson }};{% endif %}" + TEMPLATE

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}


@cache
def tiny_tokenizer() -> Tokenizer:
    """A token a letter, a few merges, `<|end|>` ends."""
    with tempfile.TemporaryDirectory() as directory:
        return Tokenizer.from_directory(byte_level_directory(Path(directory)))


def make_engine(*texts: str, **script: Any) -> ScriptedEngine:
    return ScriptedEngine(tiny_tokenizer(), texts or ("Hello there.",), **script)


def make_template(source: str = TEMPLATE) -> ChatTemplate:
    return ChatTemplate({"default": source}, {}, VirtualClock())


def make_context(
    engine: ScriptedEngine | None = None, *, template: str = TEMPLATE, **limits: Any
) -> ServingContext:
    return ServingContext(
        engine=engine or make_engine(),
        tokenizer=tiny_tokenizer(),
        chat_template=make_template(template),
        clock=VirtualClock(1_700_000_000.0),
        limits=LimitsConfig(**limits),
        rng=random.Random(0),
    )


def make_app(
    engine: ScriptedEngine | None = None,
    *,
    template: str = TEMPLATE,
    limits: Mapping[str, Any] | None = None,
    slo_classes: Iterable[str] = ("default",),
    **config: Any,
) -> Starlette:
    return build_app(
        engine or make_engine(),
        tiny_tokenizer(),
        make_template(template),
        ApiConfig(limits=LimitsConfig(**(limits or {})), **config),
        VirtualClock(1_700_000_000.0),
        slo_classes=slo_classes,
    )


def make_client(engine: ScriptedEngine | None = None, **app: Any) -> TestClient:
    return TestClient(make_app(engine, **app), raise_server_exceptions=True)


def digest(key: str) -> str:
    return sha256(key.encode()).hexdigest()


def decode_prompt(engine: ScriptedEngine, index: int = 0) -> str:
    """The prompt that reached the engine, as text."""
    return tiny_tokenizer().decode(engine.requests[index].prompt_token_ids, False)


def read_events(text: str) -> list[Any]:
    """The chunks of an event stream, which must end with [DONE]."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def chat_text(chunks: Iterable[Mapping[str, Any]], index: int = 0) -> str:
    """What a stream's chunks say for one choice."""
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(
        choice["delta"].get("content", "") for choice in choices if choice["index"] == index
    )
