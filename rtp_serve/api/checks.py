"""The configured caps and classes, applied to a parsed request before anything is rendered or
tokenized."""

from collections.abc import Collection, Sequence

from rtp_serve.api.openai_types import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    GenerationBody,
    PromptSource,
)
from rtp_serve.config.api import LimitsConfig
from rtp_serve.engine.sampling_params import MAX_BAD_WORDS
from rtp_serve.errors import InvalidRequest


def check_chat(
    body: ChatCompletionRequest, limits: LimitsConfig, slo_classes: Collection[str]
) -> None:
    """Raise InvalidRequest naming the first field beyond its cap, or a class that is none."""
    _check_generation(body, limits, slo_classes)
    _at_most("messages", len(body.messages), limits.max_messages)
    _at_most("tools", len(body.tools), limits.max_tools)
    _in_range("top_logprobs", body.top_logprobs, 0, limits.max_logprobs)
    _in_range("max_completion_tokens", body.max_completion_tokens, 1, limits.max_tokens)
    _in_range("max_tokens", body.max_tokens, 1, limits.max_tokens)


def check_completion(
    body: CompletionRequest, limits: LimitsConfig, slo_classes: Collection[str]
) -> None:
    """Raise InvalidRequest naming the first field beyond its cap, or a class that is none."""
    _check_generation(body, limits, slo_classes)
    _at_most("prompt", len(body.prompt), limits.max_prompts)
    _in_range("logprobs", body.logprobs, 0, limits.max_logprobs)
    _in_range("max_tokens", body.max_tokens, 0, limits.max_tokens)


def check_source(body: PromptSource, limits: LimitsConfig) -> None:
    """Raise InvalidRequest naming the first field beyond its cap."""
    _at_most("messages", len(body.messages or ()), limits.max_messages)
    _at_most("tools", len(body.tools), limits.max_tools)


def check_detokenize(body: DetokenizeRequest, limits: LimitsConfig) -> None:
    """Raise InvalidRequest naming the first field beyond its cap."""
    _at_most("tokens", len(body.tokens), limits.max_token_ids)


def _check_generation(
    body: GenerationBody, limits: LimitsConfig, slo_classes: Collection[str]
) -> None:
    if body.slo_class not in slo_classes:
        allowed = ", ".join(map(repr, sorted(slo_classes)))
        raise InvalidRequest(
            f"slo_class must be one of {allowed}, got {body.slo_class!r}", "slo_class"
        )
    _in_range("n", body.n, 1, limits.max_n)
    _in_range("prompt_logprobs", body.prompt_logprobs, 0, limits.max_logprobs)
    _at_most("stop", len(body.stop), limits.max_stop)
    _check_strings("stop", body.stop, limits.max_stop_chars)
    _at_most("bad_words", len(body.bad_words), MAX_BAD_WORDS)
    _check_strings("bad_words", body.bad_words, limits.max_stop_chars)


def _check_strings(name: str, texts: Sequence[str], max_chars: int) -> None:
    for index, text in enumerate(texts):
        if not 0 < len(text) <= max_chars:
            field = f"{name}[{index}]"
            message = f"{field} must have from 1 to {max_chars} characters, got {len(text)}"
            raise InvalidRequest(message, field)


def _at_most(name: str, count: int, limit: int) -> None:
    if count > limit:
        raise InvalidRequest(f"{name} has {count} entries; at most {limit} are allowed", name)


def _in_range(name: str, value: int | None, low: int, high: int | None) -> None:
    if value is None or (low <= value and (high is None or value <= high)):
        return
    allowed = f"at least {low}" if high is None else f"from {low} to {high}"
    raise InvalidRequest(f"{name} must be {allowed}, got {value}", name)
