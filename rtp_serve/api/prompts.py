"""Texts and chats → token ids. Long ones are worked off the event loop."""

from asyncio import to_thread
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from rtp_serve.api.openai_types import PromptSource
from rtp_serve.engine.client import ServedModel
from rtp_serve.errors import ContextLengthExceeded, InvalidRequest, UnsupportedParameter
from rtp_serve.text.chat_template import ChatTemplate, Message
from rtp_serve.text.tokenizer import Tokenizer

T = TypeVar("T")

_INLINE_CHARS = 4096
"""Tokenizing this much takes about a millisecond; more would hold up other streams."""

_MAX_CHARS_PER_TOKEN = 128
"""Vocabularies have no longer tokens, so a text with more per token of context cannot fit."""


class PromptEncoder:
    """The model's tokenizer and chat template, behind an async face."""

    def __init__(self, tokenizer: Tokenizer, chat_template: ChatTemplate) -> None:
        self._tokenizer = tokenizer
        self._template = chat_template

    async def encode(self, text: str, add_special_tokens: bool) -> tuple[int, ...]:
        """Raises InvalidRequest for a text with lone surrogates."""
        return await _run(len(text), lambda: self._encode(text, add_special_tokens))

    async def decode(self, token_ids: Sequence[int]) -> str:
        """The text, special tokens included."""
        decode = self._tokenizer.decode
        return await _run(len(token_ids), lambda: decode(token_ids, skip_special_tokens=False))

    async def encode_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        add_special_tokens: bool,
        template_kwargs: Mapping[str, Any],
    ) -> tuple[int, ...]:
        """Raises InvalidRequest when the model has no template or the template objects, and
        UnsupportedParameter when it would leave the tools out without a word."""
        render = self._template.render

        def work() -> tuple[int, ...]:
            text = render(messages, tools or None, add_generation_prompt, template_kwargs)
            if tools and text == render(messages, None, add_generation_prompt, template_kwargs):
                raise UnsupportedParameter(
                    "tools: this model's chat template does not render them", "tools"
                )
            return self._encode(text, add_special_tokens)

        return await _run(_num_chars([messages, tools, template_kwargs]), work)

    async def encode_source(
        self, source: PromptSource, add_generation_prompt: bool, tools: Sequence[Mapping[str, Any]]
    ) -> tuple[int, ...]:
        """Whichever of the two there is. `tools` are the source's as the client wrote them."""
        if source.prompt is not None:
            return await self.encode(source.prompt, source.add_special_tokens is not False)
        return await self.encode_chat(
            [message.for_template() for message in source.messages or ()],
            tools,
            add_generation_prompt,
            source.add_special_tokens is True,
            source.chat_template_kwargs,
        )

    def _encode(self, text: str, add_special_tokens: bool) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens))


async def _run(size: int, work: Callable[[], T]) -> T:
    return work() if size <= _INLINE_CHARS else await to_thread(work)


def _num_chars(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(len(key) + _num_chars(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return sum(map(_num_chars, value))
    return len(value) if isinstance(value, str) else 1


def check_chars(num_chars: int, model: ServedModel, field: str) -> None:
    """Raise ContextLengthExceeded for a text that cannot fit, before time is spent on it."""
    if num_chars > _MAX_CHARS_PER_TOKEN * model.max_model_len:
        raise ContextLengthExceeded(
            f"this model's maximum context length is {model.max_model_len} tokens, and {field} has "
            f"{num_chars} characters, which cannot fit",
            field,
        )


def check_prompt(token_ids: Sequence[int], model: ServedModel, field: str) -> None:
    """Raise InvalidRequest unless these are the model's tokens, with room for one more."""
    if not token_ids:
        raise InvalidRequest(f"{field} must have at least one token", field)
    if len(token_ids) >= model.max_model_len:
        raise ContextLengthExceeded(
            f"this model's maximum context length is {model.max_model_len} tokens, and {field} has "
            f"{len(token_ids)}, which leaves no room for an answer",
            field,
        )
    check_tokens(token_ids, model, field)


def check_tokens(token_ids: Sequence[int], model: ServedModel, field: str) -> None:
    """Raise InvalidRequest unless every id is in the model's vocabulary."""
    for token_id in token_ids:
        if not 0 <= token_id < model.vocab_size:
            message = f"{field}: token id {token_id} is not from 0 to {model.vocab_size - 1}"
            raise InvalidRequest(message, field)
