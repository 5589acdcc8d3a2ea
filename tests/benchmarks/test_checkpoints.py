from pathlib import Path

import pytest
from safetensors.torch import load_file

from benchmarks.checkpoints import QWEN3_0_6B, write_checkpoint, write_gguf
from rtp_serve.config.model import parse_model_config, read_model_config
from rtp_serve.loader.gguf.convert import convert_gguf
from rtp_serve.text.tokenizer import Tokenizer
from tests.unit.loader.gguf_files import VOCAB, tiny_gguf
from tests.unit.text.vocabularies import byte_level_directory

SMALL = QWEN3_0_6B | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCAB + 50,
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A small checkpoint of the benchmark's kind."""
    tokenizer = byte_level_directory(tmp_path / "tokenizer")
    (tokenizer / "generation_config.json").write_text("{}")
    write_checkpoint(tmp_path / "model", SMALL, tokenizer)
    return tmp_path / "model"


def test_both_files_hold_the_same_weights(tmp_path: Path, directory: Path):
    write_gguf(tmp_path / "model.gguf", SMALL, tiny_gguf(tmp_path / "tokenizer.gguf"))
    converted = tmp_path / "converted"
    converted.mkdir()
    convert_gguf(tmp_path / "model.gguf", converted, is_quiet=True)
    ours, theirs = (load_file(each / "model.safetensors") for each in (directory, converted))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    embedding = ours["model.embed_tokens.weight"].float()
    assert embedding.std().item() == pytest.approx(0.02, rel=0.05)
    shapes = (read_model_config(each) for each in (directory, converted))
    assert next(shapes).rope == next(shapes).rope


def test_every_id_has_a_text_of_its_own(directory: Path):
    tokenizer = Tokenizer.from_directory(directory)
    assert tokenizer.vocab_size == SMALL["vocab_size"]
    ordinary = set(range(SMALL["vocab_size"])) - tokenizer.special_ids
    texts = [tokenizer.token_bytes(each) for each in ordinary]
    assert all(texts)
    assert len(set(texts)) == len(texts)


def test_both_spellings_of_rope_mean_the_same():
    published = {name: value for name, value in SMALL.items() if name != "rope_parameters"}
    recent = {name: value for name, value in SMALL.items() if name != "rope_theta"}
    assert parse_model_config(published, {}) == parse_model_config(recent, {})
