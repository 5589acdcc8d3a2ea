import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import processors

from rtp_serve.errors import CheckpointError, InvalidRequest
from rtp_serve.text.tokenizer import Tokenizer
from tests.unit.text.vocabularies import (
    byte_level_directory,
    byte_level_tokenizer,
    prefix_space_tokenizer,
)


def test_merges_are_applied_and_special_tokens_are_found_in_the_text(tmp_path: Path):
    tokenizer = byte_level_tokenizer(tmp_path)
    ids = tokenizer.encode("hell<|end|>")
    assert [tokenizer.token_text(token_id) for token_id in ids] == ["hell", "<|end|>"]
    assert ids[-1] in tokenizer.special_ids


def test_special_tokens_are_left_out_of_the_text_on_request(tmp_path: Path):
    tokenizer = byte_level_tokenizer(tmp_path)
    ids = tokenizer.encode("<|start|>hello<|end|>")
    assert tokenizer.decode(ids) == "hello"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|start|>hello<|end|>"


def test_the_start_token_is_added_as_tokenizer_json_says(tmp_path: Path):
    directory = byte_level_directory(tmp_path, add_bos_token=False)
    backend = Backend.from_file(str(directory / "tokenizer.json"))
    start = backend.token_to_id("<|start|>")
    backend.post_processor = processors.TemplateProcessing(
        single="<|start|> $A", special_tokens=[("<|start|>", start)]
    )
    backend.save(str(directory / "tokenizer.json"))
    tokenizer = Tokenizer.from_directory(directory)
    assert tokenizer.encode("o") == [start, *tokenizer.encode("o", add_special_tokens=False)]


def test_a_checkpoints_truncation_and_padding_do_not_apply(tmp_path: Path):
    directory = byte_level_directory(tmp_path)
    backend = Backend.from_file(str(directory / "tokenizer.json"))
    backend.enable_truncation(2)
    backend.enable_padding(length=4)
    backend.save(str(directory / "tokenizer.json"))
    tokenizer = Tokenizer.from_directory(directory)
    assert [len(tokenizer.encode(text)) for text in ("o", "ooo")] == [1, 3]


def test_end_tokens_come_from_every_file_that_names_one(tmp_path: Path):
    directory = byte_level_directory(tmp_path)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    (directory / "config.json").write_text(json.dumps({"eos_token_id": 9}))
    tokenizer = Tokenizer.from_directory(directory)
    (end,) = tokenizer.encode("<|end|>")
    assert tokenizer.eos_ids == (7, 9, end)


def test_the_old_special_tokens_map_counts_where_the_config_has_no_added_tokens(tmp_path: Path):
    directory = byte_level_directory(tmp_path)
    (directory / "tokenizer_config.json").write_text("{}")
    (directory / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": {"content": "<|end|>"}})
    )
    tokenizer = Tokenizer.from_directory(directory)
    assert tokenizer.special_tokens == {"bos_token": "<|end|>"}


def test_added_tokens_that_only_the_config_lists_are_added(tmp_path: Path):
    added = {"300": {"content": "<tool>", "special": False}}
    tokenizer = byte_level_tokenizer(tmp_path, added_tokens_decoder=added)
    ids = tokenizer.encode("o<tool>o")
    assert len(ids) == 3
    assert ids[1] not in tokenizer.special_ids
    assert tokenizer.decode(ids) == "o<tool>o"


@pytest.mark.parametrize("field", ["pad_token", "additional_special_tokens"])
def test_a_token_that_only_the_config_calls_special_is_special(tmp_path: Path, field: str):
    value = ["hell"] if field.endswith("s") else "hell"
    tokenizer = byte_level_tokenizer(tmp_path, **{field: value})
    (token_id,) = tokenizer.encode("hell")
    assert token_id in tokenizer.special_ids
    assert tokenizer.decode([token_id]) == ""


def test_a_named_token_without_an_id_gets_none(tmp_path: Path):
    """The model would have no embedding row for it."""
    plain = byte_level_tokenizer(tmp_path / "plain")
    named = byte_level_tokenizer(tmp_path / "named", pad_token="<|pad|>")
    assert named.vocab_size == plain.vocab_size


def test_bytes_of_tokens_join_to_the_text(tmp_path: Path):
    tokenizer = byte_level_tokenizer(tmp_path)
    ids = tokenizer.encode("hell é 🙂")
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == "hell é 🙂"
    assert tokenizer.token_text(ids[-1]) == "�"


def test_bytes_of_sentencepiece_tokens_keep_the_leading_space(tmp_path: Path):
    tokenizer = prefix_space_tokenizer(tmp_path)
    ids = tokenizer.encode("hell 🙂")
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == " hell 🙂"


def test_an_id_that_is_no_token_has_no_text(tmp_path: Path):
    tokenizer = byte_level_tokenizer(tmp_path)
    assert tokenizer.token_bytes(tokenizer.vocab_size) == b""
    assert tokenizer.decode([tokenizer.vocab_size]) == ""


def test_a_word_is_spelled_at_the_start_and_after_a_space(tmp_path: Path):
    tokenizer = byte_level_tokenizer(tmp_path, merges="h e,Ġ he")
    spellings = tokenizer.encode_word("he")
    assert [[tokenizer.token_text(i) for i in ids] for ids in spellings] == [["he"], [" he"]]


def test_a_spelling_that_ends_with_the_other_is_left_out(tmp_path: Path):
    tokenizer = byte_level_tokenizer(tmp_path)
    assert tokenizer.encode_word("he") == (tuple(tokenizer.encode("he")),)
    assert tokenizer.encode_word("") == ()


def test_a_lone_surrogate_is_the_callers_mistake(tmp_path: Path):
    with pytest.raises(InvalidRequest, match="surrogate at character 2"):
        byte_level_tokenizer(tmp_path).encode("ab\ud800")


def test_a_negative_id_is_the_callers_mistake(tmp_path: Path):
    with pytest.raises(InvalidRequest, match="from 0"):
        byte_level_tokenizer(tmp_path).decode([-1])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{}", "tokenizer.json is malformed: Model missing"),
        ("tokenizer.json", "not JSON", "tokenizer.json is malformed"),
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer_config.json", "[1]", "expected an object, got list"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is not JSON"),
    ],
)
def test_malformed_files_are_named(tmp_path: Path, name: str, content: str | None, message: str):
    directory = byte_level_directory(tmp_path)
    if content is None:
        (directory / name).unlink()
    else:
        (directory / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.from_directory(directory)
