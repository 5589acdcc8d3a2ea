import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend

from rtp_serve.loader.gguf.convert import convert_gguf
from rtp_serve.text.chat_template import ChatTemplate
from rtp_serve.text.tokenizer import Tokenizer
from tests.unit.loader.gguf_files import END, PAD, START, TOKENS, TOOL, tiny_gguf


def converted(directory: Path, pre: str = "smollm", **fields: Any) -> Path:
    path = tiny_gguf(directory / "model.gguf", pre=pre, fields=fields)
    convert_gguf(path, directory, with_weights=False)
    return directory


def load(directory: Path, pre: str = "smollm", **fields: Any) -> Tokenizer:
    return Tokenizer.from_directory(converted(directory, pre, **fields))


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("smollm", ["it", "'s", " ", "1", "2", "3", "4", "!", "\n\n"]),
        ("gpt-2", ["it", "'s", " 1234", "!", "\n\n"]),
        ("llama-bpe", ["it", "'s", " ", "123", "4", "!\n\n"]),
        ("qwen2", ["it", "'s", " ", "1", "2", "3", "4", "!\n\n"]),
        ("default", ["it", "'", "s", " ", "123", "4", "!", "\n\n"]),
    ],
)
def test_each_pre_tokenizer_cuts_as_its_name_says(tmp_path: Path, pre: str, expected: list[str]):
    backend = Backend.from_file(str(converted(tmp_path, pre) / "tokenizer.json"))
    cut = backend.pre_tokenizer.pre_tokenize_str("it's 1234!\n\n")
    assert [piece.replace("Ġ", " ").replace("Ċ", "\n") for piece, _ in cut] == expected


def test_an_alias_is_the_same_pre_tokenizer(tmp_path: Path):
    names = {"llama-bpe": "llama3", "qwen2": "deepseek-r1-qwen"}
    for name, alias in names.items():
        contents = []
        for pre in (name, alias):
            directory = tmp_path / pre
            directory.mkdir()
            contents.append((converted(directory, pre) / "tokenizer.json").read_text())
        assert contents[0] == contents[1]


def test_control_tokens_are_special_and_user_defined_ones_are_not(tmp_path: Path):
    tokenizer = load(tmp_path)
    assert tokenizer.encode("<|start|>he<tool>") == [START, TOKENS.index("he"), TOOL]
    assert tokenizer.special_ids == {START, END}
    assert tokenizer.decode([START, TOOL]) == "<tool>"


def test_rows_that_pad_the_embedding_are_no_tokens(tmp_path: Path):
    tokenizer = load(tmp_path)
    assert tokenizer.vocab_size == PAD
    assert tokenizer.decode([PAD]) == ""


@pytest.mark.parametrize(
    ("pre", "fields", "expected"),
    [
        ("smollm", {}, []),
        ("llama-bpe", {}, [START]),
        ("llama-bpe", {"tokenizer.ggml.add_bos_token": False}, []),
        ("qwen2", {"tokenizer.ggml.add_bos_token": True}, [START]),
    ],
)
def test_a_start_token_is_added_where_the_file_or_the_kind_says_so(
    tmp_path: Path, pre: str, fields: dict[str, Any], expected: list[int]
):
    tokenizer = load(tmp_path, pre, **fields)
    assert tokenizer.encode("") == expected
    assert tokenizer.encode("", add_special_tokens=False) == []


def test_an_end_token_is_added_where_the_file_says_so(tmp_path: Path):
    fields = {"tokenizer.ggml.add_eos_token": True}
    assert load(tmp_path, "llama-bpe", **fields).encode("") == [START, END]


def test_qwen2_text_is_normalised(tmp_path: Path):
    tokenizer = load(tmp_path, "qwen2")
    assert tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")


def test_roles_and_context_length_are_kept(tmp_path: Path):
    config = json.loads((converted(tmp_path) / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"]) == ("<|start|>", "<|end|>")
    assert config["model_max_length"] == 512


def test_named_chat_templates_are_kept(tmp_path: Path):
    directory = converted(tmp_path, **{"tokenizer.chat_template.tool_use": "tools"})
    chat = ChatTemplate.from_directory(directory)
    messages = [{"role": "user", "content": "Hi"}]
    assert (chat.render(messages), chat.render(messages, tools=[])) == ("Hi", "tools")
