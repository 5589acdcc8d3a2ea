from typing import Any

import pytest

from rtp_serve.text.stream import TextDelta, TextStream
from rtp_serve.text.tokenizer import Tokenizer
from tests.unit.text.vocabularies import byte_level_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Every letter a token, but for hell and its parts."""
    return byte_level_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def push_text(stream: TextStream, tokenizer: Tokenizer, text: str, **last: Any) -> TextDelta:
    return stream.push(tokenizer.encode(text), **last)


def test_text_goes_through_and_ends_with_the_sequence(tokenizer: Tokenizer):
    stream = TextStream(tokenizer)
    assert push_text(stream, tokenizer, "abc") == TextDelta("abc", False, None, 3)
    assert push_text(stream, tokenizer, "d", finish_reason="length") == TextDelta(
        "d", True, None, 1
    )


def test_tokens_after_the_stop_string_do_not_count(tokenizer: Tokenizer):
    stream = TextStream(tokenizer, stop=("bc",))
    assert push_text(stream, tokenizer, "abcd") == TextDelta("a", True, "bc", 3)
    assert push_text(stream, tokenizer, "e") == TextDelta("", True, "bc", 0)


def test_a_stop_string_may_span_pushes_and_be_included(tokenizer: Tokenizer):
    stream = TextStream(tokenizer, stop=("bc",), include_stop=True)
    assert push_text(stream, tokenizer, "ab").text == "a"
    assert push_text(stream, tokenizer, "cd") == TextDelta("bc", True, "bc", 1)


def test_what_was_held_back_comes_with_the_last_token(tokenizer: Tokenizer):
    stream = TextStream(tokenizer, stop=("bcd",))
    assert push_text(stream, tokenizer, "abc").text == "a"
    assert push_text(stream, tokenizer, "", finish_reason="length").text == "bc"


@pytest.mark.parametrize("size", [1, 2, 7])
def test_no_stop_is_looked_for_in_the_first_tokens(tokenizer: Tokenizer, size: int):
    """b is in the text of tokens 2, 4 and 6; only the third comes after min_tokens."""
    stream = TextStream(tokenizer, stop=("b",), min_tokens=4)
    ids = tokenizer.encode("abababa")
    deltas = [stream.push(ids[start : start + size]) for start in range(0, len(ids), size)]
    assert "".join(delta.text for delta in deltas) == "ababa"
    assert sum(delta.num_tokens for delta in deltas) == 6
    assert deltas[-1].stop == "b"


def test_a_stop_string_that_begins_in_the_first_tokens_is_none(tokenizer: Tokenizer):
    stream = TextStream(tokenizer, stop=("bc",), min_tokens=2)
    assert push_text(stream, tokenizer, "abcd") == TextDelta("abcd", False, None, 4)


@pytest.mark.parametrize(("include", "text"), [(False, "a"), (True, "ab")])
def test_the_token_that_ended_the_sequence_is_shown_only_on_request(
    tokenizer: Tokenizer, include: bool, text: str
):
    stream = TextStream(tokenizer, include_stop=include)
    delta = push_text(stream, tokenizer, "ab", finish_reason="stop")
    assert delta == TextDelta(text, True, None, 2)


def test_special_tokens_are_shown_on_request(tokenizer: Tokenizer):
    for skip, text in ((True, "ab"), (False, "a<|start|>b")):
        stream = TextStream(tokenizer, skip_special_tokens=skip)
        assert push_text(stream, tokenizer, "a<|start|>b").text == text


def test_a_character_cut_by_the_end_is_replaced_and_can_be_searched(tokenizer: Tokenizer):
    ids = tokenizer.encode("a🙂")[:-1]
    assert TextStream(tokenizer).push(ids, "length").text == "a�"
    assert TextStream(tokenizer, stop=("�",)).push(ids, "length") == TextDelta("a", True, "�", 4)
