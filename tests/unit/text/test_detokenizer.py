"""What is pushed out, put together, is what decoding all ids at once gives."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtp_serve.text.detokenizer import make_detokenizer
from rtp_serve.text.tokenizer import Tokenizer
from tests.unit.text.vocabularies import byte_level_tokenizer, prefix_space_tokenizer

NUM_IDS = 280  # a few more than either vocabulary has
MAKERS: dict[str, Callable[[Path], Tokenizer]] = {
    "byte_level": byte_level_tokenizer,
    "prefix_space": prefix_space_tokenizer,
}
TEXTS = ("naïve café", "日本語のテキスト", "👩‍👩‍👧‍👦 🇫🇷 flags", "  two  spaces ", "hello wörld", "")


@pytest.fixture(scope="module", params=MAKERS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    return MAKERS[request.param](tmp_path_factory.mktemp(request.param))


def stream(tokenizer: Tokenizer, ids: list[int], sizes: list[int], skip: bool) -> list[str]:
    """Push the ids in pieces of the given sizes, then one by one."""
    detokenizer = make_detokenizer(tokenizer, skip)
    pieces, start = [], 0
    for size in [*sizes, *[1] * len(ids)]:
        pieces.append(detokenizer.push(ids[start : start + size]))
        start += size
    return [*pieces, detokenizer.finish()]


@given(
    ids=st.lists(st.integers(0, NUM_IDS), max_size=40),
    sizes=st.lists(st.integers(0, 5), max_size=10),
    skip=st.booleans(),
)
def test_random_ids(tokenizer: Tokenizer, ids: list[int], sizes: list[int], skip: bool):
    assert "".join(stream(tokenizer, ids, sizes, skip)) == tokenizer.decode(ids, skip)


@given(text=st.text(max_size=40), sizes=st.lists(st.integers(0, 5), max_size=10))
def test_random_text(tokenizer: Tokenizer, text: str, sizes: list[int]):
    ids = tokenizer.encode(text)
    assert "".join(stream(tokenizer, ids, sizes, True)) == tokenizer.decode(ids)


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_out_in_whole_characters(tokenizer: Tokenizer, text: str):
    pieces = stream(tokenizer, tokenizer.encode(text), [], True)
    assert "".join(pieces) == text
    assert "�" not in "".join(pieces)


def test_nothing_is_held_back_that_is_certain(tmp_path: Path):
    tokenizer = byte_level_tokenizer(tmp_path)
    detokenizer = make_detokenizer(tokenizer)
    assert [detokenizer.push([i]) for i in tokenizer.encode("heé!")] == ["he", "", "é", "!"]


def test_an_unfinished_character_comes_at_the_end(tmp_path: Path):
    tokenizer = byte_level_tokenizer(tmp_path)
    detokenizer = make_detokenizer(tokenizer)
    assert detokenizer.push(tokenizer.encode("🙂")[:2]) == ""
    assert detokenizer.finish() == "�"


def test_the_window_stays_small(tmp_path: Path):
    """Each push decodes the last token and the new one, however long the text is."""
    tokenizer = prefix_space_tokenizer(tmp_path)
    decoded: list[int] = []

    class Counting:
        token_bytes = tokenizer.token_bytes
        is_byte_token = tokenizer.is_byte_token
        is_byte_level = False
        special_ids = tokenizer.special_ids

        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            decoded.append(len(ids))
            return tokenizer.decode(ids, skip_special_tokens)

    detokenizer = make_detokenizer(Counting())  # type: ignore[arg-type]
    for token_id in tokenizer.encode("hello world " * 50):
        detokenizer.push([token_id])
    assert max(decoded) == 2
