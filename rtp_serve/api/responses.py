"""The shapes of what we answer, as plain dictionaries: OpenAI's, and vLLM's additions to them."""

from typing import Literal, NotRequired, TypedDict

FinishWord = Literal["stop", "length"]


class ErrorDetail(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    error: ErrorDetail


class TokensByTier(TypedDict):
    """The tier that had them before they were asked for."""

    device: int
    host: int
    disk: int
    remote: int


class PromptTokensDetails(TypedDict):
    cached_tokens: int
    cached_tokens_by_tier: TokensByTier
    """Ours: `cached_tokens` is their sum."""


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    content: list[TokenLogprob]
    refusal: None


class PromptLogprob(TypedDict):
    """One candidate at one prompt position (vLLM's form)."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""One entry a prompt token, keyed by token id; None for the first."""


class AssistantMessage(TypedDict):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(TypedDict):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishWord
    stop_reason: str | int | None
    """The stop string or stop token that ended the text."""


class Envelope(TypedDict):
    """What every answer starts with."""

    id: str
    object: str
    created: int
    """Seconds since the epoch."""
    model: str
    system_fingerprint: str | None


class ChatCompletion(Envelope):
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | None


class ChatDelta(TypedDict, total=False):
    role: Literal["assistant"]
    content: str


class ChatChunkChoice(TypedDict):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishWord | None
    stop_reason: NotRequired[str | int | None]


class ChatCompletionChunk(Envelope):
    choices: list[ChatChunkChoice]


class ChatUsageChunk(ChatCompletionChunk):
    """With `stream_options.include_usage`: null in all chunks but the last."""

    usage: Usage | None


class CompletionLogprobs(TypedDict):
    """Columns, one entry a token; the first prompt token has no probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishWord | None
    stop_reason: str | int | None
    prompt_logprobs: NotRequired[PromptLogprobs]


class CompletionChunk(Envelope):
    choices: list[CompletionChoice]


class Completion(CompletionChunk):
    """A whole answer, or a chunk with `stream_options.include_usage`: null in all but the last."""

    usage: Usage | None


class ModelCard(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[ModelCard]


class Tokenized(TypedDict):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(TypedDict):
    prompt: str
