"""Where prompts are tokenized: short ones at once, long ones off the event loop."""

import asyncio
import threading

import pytest

from rtp_serve.api.prompts import PromptEncoder
from rtp_serve.text.tokenizer import Tokenizer
from tests.unit.api.serving import make_template, tiny_tokenizer


class ThreadNote(Tokenizer):
    """The tiny tokenizer, with a note of the thread that used it last."""

    def __init__(self) -> None:
        self.__dict__.update(tiny_tokenizer().__dict__)
        self.thread_id = 0

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        self.thread_id = threading.get_ident()
        return super().encode(text, add_special_tokens)


@pytest.mark.parametrize(("length", "is_inline"), [(100, True), (10_000, False)])
def test_long_texts_and_chats_leave_the_event_loop_free(length: int, is_inline: bool):
    tokenizer = ThreadNote()
    encoder = PromptEncoder(tokenizer, make_template())
    text = "a" * length

    async def scenario() -> list[int]:
        await encoder.encode(text, True)
        first = tokenizer.thread_id
        messages = [{"role": "user", "content": text}]
        await encoder.encode_chat(messages, (), True, False, {})
        return [first, tokenizer.thread_id]

    here = threading.get_ident()
    assert [each == here for each in asyncio.run(scenario())] == [is_inline, is_inline]
