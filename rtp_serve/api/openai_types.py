"""What clients may send: OpenAI's request bodies with vLLM's additions.

Shapes and types only. Caps are in `checks`, ranges in `SamplingParams`.
"""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from rtp_serve.api.messages import Body, Message, Tool
from rtp_serve.config.routing import DEFAULT_CLASS
from rtp_serve.errors import InvalidRequest, UnsupportedParameter

MAX_PIN_S = 7 * 86400.0


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _prompts(value: Any) -> Any:
    """Any of the four forms of a prompt → a list of prompts."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise ValueError("must be a string, an array of strings, or (arrays of) token ids")
    if not value:
        raise ValueError("must not be empty")
    if all(type(item) is int for item in value):
        return [value]
    if not all(isinstance(item, str) for item in value) and not all(
        isinstance(item, list) and all(type(token) is int for token in item) for item in value
    ):
        raise ValueError("must hold strings only, token ids only, or arrays of token ids only")
    return value


StringOrList = Annotated[list[str], BeforeValidator(_as_list)]
Prompts = Annotated[list[str | list[int]], BeforeValidator(_prompts)]


class StreamOptions(Body):
    include_usage: bool = False
    """End the stream with a chunk that carries the whole request's usage."""

    resumable: bool = False
    """Ours: number the events and keep them; the stream outlives its connection for a while."""


class GenerationBody(Body):
    """What chats and completions have in common."""

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 or −1 keeps all tokens."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[str, float] = Field(default_factory=dict)
    """Token id (JSON keys are text) → bias."""
    bad_words: list[str] = Field(default_factory=list)
    stop: StringOrList = Field(default_factory=list)
    stop_token_ids: list[int] = Field(default_factory=list)
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    ignore_eos: bool = False
    seed: int | None = None
    prompt_logprobs: int | None = None
    priority: int = Field(default=0, ge=-(2**31), lt=2**31)
    slo_class: str = Field(default=DEFAULT_CLASS, max_length=256)
    """One of `routing.slo_classes`."""
    cache_salt: str = Field(default="", max_length=256)
    """Requests share cached prefixes only under an equal salt (and tenant)."""
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _check_stream(self) -> "GenerationBody":
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest(
                "stream_options is allowed only with stream: true", "stream_options"
            )
        if self.prompt_logprobs is not None and self.stream:
            raise InvalidRequest(
                "prompt_logprobs is allowed only without stream", "prompt_logprobs"
            )
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatCompletionRequest(GenerationBody):
    messages: list[Message] = Field(min_length=1)
    tools: list[Tool] = Field(default_factory=list)
    tool_choice: Any = None
    logprobs: bool = False
    top_logprobs: int | None = None
    max_completion_tokens: int | None = None
    add_generation_prompt: bool = True
    add_special_tokens: bool = False
    """Off, because templates write the special tokens themselves."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_chat(self) -> "ChatCompletionRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs is allowed only with logprobs: true", "top_logprobs")
        if self.tool_choice not in (None, "none", "auto"):
            raise UnsupportedParameter(
                "tool_choice can be 'auto' or 'none': calls in the answer are not parsed yet, "
                f"so a call cannot be forced, got {self.tool_choice!r}",
                "tool_choice",
            )
        return self


class CompletionRequest(GenerationBody):
    prompt: Prompts
    echo: bool = False
    """Start the text with the prompt."""
    logprobs: int | None = None
    best_of: int | None = None

    @model_validator(mode="after")
    def _check_completion(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of != self.n:
            raise UnsupportedParameter(
                f"best_of other than n is not supported yet, got {self.best_of} with n={self.n}",
                "best_of",
            )
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequest("max_tokens of 0 is allowed only with echo: true", "max_tokens")
        return self


class PromptSource(Body):
    """A text or messages, and what makes tokens of them."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(default=None, min_length=1)
    tools: list[Tool] = Field(default_factory=list)
    add_special_tokens: bool | None = None
    """Default: yes for a prompt, no for messages."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)


class TokenizeRequest(PromptSource):
    """Either a prompt or messages."""

    add_generation_prompt: bool = True
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _check_source(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("give either prompt or messages", "prompt")
        return self


class DetokenizeRequest(Body):
    model: str | None = None
    tokens: list[int]


class TrimRequest(Body):
    bytes: int = Field(ge=1)
    """To be freed in each node's arena."""


class PinRequest(PromptSource):
    """The beginning of prompts: a text, messages or token ids."""

    prompt_token_ids: list[int] | None = None
    add_generation_prompt: bool = False
    """Off, because more messages are to come."""
    cache_salt: str = Field(default="", max_length=256)
    """That of the requests that begin so."""
    tenant: str = Field(default="", max_length=64)
    """Whose requests: the name of an API key, where there are keys."""
    ttl_s: float = Field(default=3600.0, gt=0, le=MAX_PIN_S)

    @model_validator(mode="after")
    def _check_source(self) -> "PinRequest":
        sources = (self.prompt, self.messages, self.prompt_token_ids)
        if sum(source is not None for source in sources) != 1:
            raise InvalidRequest("give one of prompt, messages and prompt_token_ids", "prompt")
        return self
