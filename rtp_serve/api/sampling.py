"""A request body's knobs → `SamplingParams`, with the room the context leaves."""

from dataclasses import replace

from rtp_serve.api.openai_types import ChatCompletionRequest, CompletionRequest, GenerationBody
from rtp_serve.engine.client import ServedModel
from rtp_serve.engine.sampling_params import SamplingParams
from rtp_serve.errors import ContextLengthExceeded, InvalidRequest
from rtp_serve.text.tokenizer import Tokenizer


def chat_sampling(body: ChatCompletionRequest, tokenizer: Tokenizer) -> SamplingParams:
    """Raises InvalidRequest for a value out of range. `max_tokens` is as the client sent it."""
    max_tokens = body.max_completion_tokens or body.max_tokens  # neither is 0
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return _sampling(body, tokenizer, max_tokens, logprobs, body.prompt_logprobs)


def completion_sampling(body: CompletionRequest, tokenizer: Tokenizer) -> SamplingParams:
    """As `chat_sampling`. An echo alone (max_tokens 0) still samples one token, to be dropped."""
    max_tokens = 1 if body.max_tokens == 0 else body.max_tokens
    prompt_logprobs = body.prompt_logprobs
    if body.echo and body.logprobs is not None:
        prompt_logprobs = max(body.logprobs, prompt_logprobs or 0)
    return _sampling(body, tokenizer, max_tokens, body.logprobs, prompt_logprobs)


def with_budget(
    sampling: SamplingParams,
    num_prompt_tokens: int,
    model: ServedModel,
    cap: int | None,
    field: str = "max_tokens",
) -> SamplingParams:
    """`sampling` with `max_tokens` settled: what the client asked for, or what room there is.

    Raises ContextLengthExceeded, with the numbers, when `field` asked for more than fits.
    """
    room = model.max_model_len - num_prompt_tokens
    asked_for = sampling.max_tokens
    if asked_for is None:
        return replace(sampling, max_tokens=room if cap is None else min(room, cap))
    if asked_for > room:
        raise ContextLengthExceeded(
            f"this model's maximum context length is {model.max_model_len} tokens; the prompt has "
            f"{num_prompt_tokens}, so {field} must be at most {room}, got {asked_for}",
            field,
        )
    return sampling


def _sampling(
    body: GenerationBody,
    tokenizer: Tokenizer,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None,
) -> SamplingParams:
    return SamplingParams(
        n=body.n,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=0 if body.top_k == -1 else body.top_k,
        min_p=body.min_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=_logit_bias(body.logit_bias),
        bad_words=_bad_words(body.bad_words, tokenizer),
        stop=tuple(body.stop),
        stop_token_ids=tuple(body.stop_token_ids),
        include_stop=body.include_stop_str_in_output,
        ignore_eos=body.ignore_eos,
        max_tokens=max_tokens,
        min_tokens=body.min_tokens,
        seed=body.seed,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        skip_special_tokens=body.skip_special_tokens,
    )


def _logit_bias(bias: dict[str, float]) -> dict[int, float]:
    for key in bias:
        if not (key.isascii() and key.isdecimal() and len(key) < 12):
            raise InvalidRequest(
                f"logit_bias: keys must be token ids, got {key[:40]!r}", "logit_bias"
            )
    return {int(key): value for key, value in bias.items()}


def _bad_words(words: list[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(ids) for word in words for ids in tokenizer.encode_word(word))
