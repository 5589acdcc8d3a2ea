import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from rtp_serve.config.model import ModelConfig, RopeConfig, read_model_config
from rtp_serve.errors import CheckpointError
from rtp_serve.loader.gguf.convert import convert_gguf
from rtp_serve.loader.safetensors_writer import bfloat16_bits
from tests.unit.loader.gguf_files import (
    END,
    HEAD_DIM,
    HIDDEN,
    VOCAB,
    checkpoint_tensors,
    tiny_gguf,
)
from tests.unit.loader.safetensors_files import read_bfloat16

QUANT = gguf.GGMLQuantizationType


def convert(path: Path, **options: Any) -> Path:
    directory = path.parent / "checkpoint"
    directory.mkdir()
    convert_gguf(path, directory, is_quiet=True, **options)
    return directory


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("is_tied", [False, True])
def test_every_tensor_arrives_under_its_published_name(
    tmp_path: Path, architecture: str, is_tied: bool
):
    path = tiny_gguf(tmp_path / "model.gguf", architecture, is_tied=is_tied)
    found = read_bfloat16(convert(path) / "model.safetensors")
    expected = checkpoint_tensors(architecture, is_tied=is_tied)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], bfloat16_bits(values), err_msg=name)


@pytest.mark.parametrize("kind", [QUANT.F16, QUANT.BF16, QUANT.Q8_0, QUANT.Q4_1, QUANT.Q5_0])
def test_quantised_matrices_are_dequantised(tmp_path: Path, kind: gguf.GGMLQuantizationType):
    """Rows are quantised one by one, so the row order of q and k does not matter to the values."""
    found = read_bfloat16(convert(tiny_gguf(tmp_path / "m.gguf", kind=kind)) / "model.safetensors")
    for name, values in checkpoint_tensors("llama").items():
        if values.ndim > 1:
            values = gguf.dequantize(gguf.quantize(values, kind), kind)
        np.testing.assert_array_equal(found[name], bfloat16_bits(values), err_msg=name)


def test_a_quantisation_nobody_can_undo_is_named(tmp_path: Path):
    path = tiny_gguf(tmp_path / "model.gguf", tensors={"output_norm.weight": np.ones(HIDDEN, "i4")})
    with pytest.raises(CheckpointError, match=r"'output_norm.weight': I32 cannot be dequantised"):
        convert(path)


@pytest.mark.parametrize(
    ("architecture", "name", "qkv_bias", "qk_norm"),
    [
        ("llama", "LlamaForCausalLM", False, False),
        ("qwen2", "Qwen2ForCausalLM", True, False),
        ("qwen3", "Qwen3ForCausalLM", False, True),
    ],
)
def test_the_config_says_what_the_file_says(
    tmp_path: Path, architecture: str, name: str, qkv_bias: bool, qk_norm: bool
):
    config = read_model_config(convert(tiny_gguf(tmp_path / "model.gguf", architecture)))
    assert config == ModelConfig(
        architecture=name,
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=HEAD_DIM,
        max_model_len=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
        rope=RopeConfig(theta=500000.0),
        dtype="bfloat16",
        eos_token_ids=(END,),
    )


def test_linear_rope_scaling_is_kept(tmp_path: Path):
    fields = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    config = read_model_config(convert(tiny_gguf(tmp_path / "model.gguf", fields=fields)))
    assert (config.rope.kind, config.rope.factor) == ("linear", 4.0)


def llama3_divisors(factor: float, original: int) -> np.ndarray[Any, Any]:
    """Frequency by frequency, as the rule is published."""
    divisors = []
    for i in range(0, HEAD_DIM, 2):
        wavelength = 2 * np.pi * 500000.0 ** (i / HEAD_DIM)
        if wavelength < original / 4:
            divisors.append(1.0)
        elif wavelength > original / 1:
            divisors.append(factor)
        else:
            smooth = (original / wavelength - 1) / (4 - 1)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


@pytest.mark.parametrize(("factor", "original"), [(8.0, 8192), (32.0, 1024)])
def test_llama3_rope_scaling_is_found_in_its_divisors(tmp_path: Path, factor: float, original: int):
    divisors = llama3_divisors(factor, original)
    assert np.logical_and(divisors > 1, divisors < factor).any(), "the blend must be seen"
    path = tiny_gguf(
        tmp_path / "model.gguf",
        fields={"llama.rope.scaling.original_context_length": original},
        tensors={"rope_freqs.weight": divisors},
    )
    assert read_model_config(convert(path)).rope == RopeConfig(
        theta=500000.0,
        kind="llama3",
        factor=factor,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_len=original,
    )


def test_divisors_of_another_rule_are_refused(tmp_path: Path):
    divisors = np.linspace(1, 8, HEAD_DIM // 2, dtype=np.float32)
    path = tiny_gguf(tmp_path / "model.gguf", tensors={"rope_freqs.weight": divisors})
    with pytest.raises(CheckpointError, match=r"rope_freqs.weight is not llama3 scaling"):
        convert(path)


def test_without_weights_only_the_small_files_are_written(tmp_path: Path):
    directory = convert(tiny_gguf(tmp_path / "model.gguf"), with_weights=False)
    assert sorted(path.name for path in directory.iterdir()) == [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_every_end_token_of_the_file_ends_a_sequence(tmp_path: Path):
    fields = {"tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": END}
    directory = convert(tiny_gguf(tmp_path / "model.gguf", fields=fields))
    generation = json.loads((directory / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [END, 5]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"general.architecture": "mamba"}, "'mamba' is not supported.*llama, qwen2, qwen3"),
        ({"llama.expert_count": 8}, "mixture-of-experts"),
        ({"split.count": 3}, "one of 3 parts of a split GGUF"),
        ({"llama.block_count": 3}, "too few for 3 layers|tensors are missing"),
        ({"llama.block_count": 1 << 31}, "too few"),
        ({"llama.block_count": 1}, "do not belong to the architecture"),
        ({"llama.attention.head_count": 0}, "num_attention_heads must be a positive integer"),
        ({"llama.attention.head_count": "four"}, "must be int, got str"),
        ({"llama.rope.dimension_count": 8}, "a head is 16 wide"),
        ({"llama.rope.freq_base": float("nan")}, "rope_theta must be"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, "'yarn'"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer 'llama' is not supported.*gpt2"),
        ({"tokenizer.ggml.pre": "tekken"}, "'tekken' is not supported.*llama-bpe"),
        ({"tokenizer.ggml.token_type": [1]}, "1 token types"),
        ({"tokenizer.ggml.merges": ["h e", "x"]}, "must be pairs"),
        ({"tokenizer.ggml.merges": ["h unknown"]}, "out of vocabulary"),
        ({"tokenizer.ggml.eos_token_id": 9999}, "special token id 9999"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path: Path, fields: dict[str, Any], message: str):
    path = tiny_gguf(tmp_path / "model.gguf", fields=fields)
    with pytest.raises(CheckpointError, match=message):
        convert(path)


def test_a_missing_tensor_is_named(tmp_path: Path):
    path = tiny_gguf(tmp_path / "model.gguf", "qwen2")
    renamed = path.read_bytes().replace(b"blk.1.attn_q.bias", b"blk.1.attn_q.bi__")
    path.write_bytes(renamed)
    with pytest.raises(CheckpointError, match=r"1 tensors are missing, first 'blk.1.attn_q.bias'"):
        convert(path)


def test_more_tokens_than_embedding_rows_are_refused(tmp_path: Path):
    rows = np.zeros((VOCAB - 10, HIDDEN), np.float32)
    path = tiny_gguf(tmp_path / "model.gguf", tensors={"token_embd.weight": rows})
    with pytest.raises(CheckpointError, match=f"the embedding has {VOCAB - 10} rows"):
        convert(path)
