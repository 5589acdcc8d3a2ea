"""Hugging Face's config.json in our words."""

import json
from pathlib import Path
from typing import Any

import pytest

from rtp_serve.config.model import (
    ModelConfig,
    MoEConfig,
    RopeConfig,
    parse_model_config,
    read_model_config,
)
from rtp_serve.errors import CheckpointError

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
}


def parse(generation: dict[str, Any] | None = None, **overrides: Any) -> ModelConfig:
    values = {key: value for key, value in (LLAMA | overrides).items() if value is not ...}
    return parse_model_config(values, generation or {})


def test_a_published_config_is_read_whole():
    assert parse() == ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        head_dim=64,
        max_model_len=131072,
        rms_norm_eps=1e-05,
        tie_word_embeddings=True,
        rope=RopeConfig(500000.0, "llama3", 32.0, 1.0, 4.0, 8192),
        dtype="bfloat16",
        eos_token_ids=(128001, 128008, 128009),
    )


def test_rope_parameters_say_the_same_as_rope_scaling():
    parameters = {**LLAMA["rope_scaling"], "rope_theta": 500000.0}
    assert parse(rope_parameters=parameters, rope_theta=..., rope_scaling=...) == parse()
    assert parse(rope_parameters=parameters) == parse()


def test_old_linear_scaling_stretches_the_context():
    config = parse(rope_scaling={"type": "linear", "factor": 4.0}, max_position_embeddings=4096)
    assert config.rope == RopeConfig(500000.0, "linear", 4.0)
    assert config.max_model_len == 16384


def test_null_means_absent():
    config = parse(rope_scaling=None, head_dim=None, num_key_value_heads=None, eos_token_id=None)
    assert config.rope == RopeConfig(500000.0)
    assert (config.head_dim, config.num_kv_heads, config.eos_token_ids) == (64, 32, ())


@pytest.mark.parametrize(
    ("architecture", "attention_bias", "expected"),
    [
        ("LlamaForCausalLM", ..., (False, False, False)),
        ("LlamaForCausalLM", True, (True, True, False)),
        ("Qwen2ForCausalLM", ..., (True, False, False)),
        ("Qwen2ForCausalLM", False, (True, False, False)),
        ("Qwen3ForCausalLM", False, (False, False, True)),
        ("Qwen3ForCausalLM", True, (True, True, True)),
    ],
)
def test_biases_and_head_norms_follow_the_architecture(
    architecture: str, attention_bias: Any, expected: tuple[bool, bool, bool]
):
    config = parse(architectures=[architecture], attention_bias=attention_bias)
    assert (config.qkv_bias, config.o_bias, config.qk_norm) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"torch_dtype": "float16"}, "float32"),
        ({"torch_dtype": "float32"}, "float32"),
        ({"torch_dtype": ..., "dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": ...}, "float32"),
    ],
)
def test_half_precision_is_computed_in_float32(names: dict[str, Any], expected: str):
    assert parse(**names).dtype == expected


def test_end_tokens_of_both_files_are_joined():
    assert parse({"eos_token_id": [7, 8]}, eos_token_id=8).eos_token_ids == (7, 8)


@pytest.mark.parametrize("value", [128256, -1, True, [128256, 7], "7"])
def test_an_end_token_outside_the_vocabulary_is_none(value: Any):
    config = parse({"eos_token_id": value}, eos_token_id=7)
    assert config.eos_token_ids == (7,)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "unsupported architecture .*GPT2LMHeadModel"),
        ({"architectures": ...}, "unsupported architecture .*supported: LlamaForCausalLM"),
        ({"hidden_size": ...}, "hidden_size must be a positive integer, got None"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer, got 0"),
        ({"vocab_size": "many"}, "vocab_size must be a positive integer, got 'many'"),
        ({"num_key_value_heads": 5}, r"num_attention_heads \(32\) is not a multiple of"),
        ({"head_dim": 63}, "head_dim must be even, got 63"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'; supported: 'silu'"),
        ({"mlp_bias": True}, "mlp_bias true is not supported"),
        ({"use_sliding_window": True}, "use_sliding_window true is not supported"),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types 'sliding_attention'",
        ),
        ({"quantization_config": {"bits": 4}}, "quantization_config is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope type 'yarn'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor must be a number above 0"),
        ({"rope_scaling": "linear"}, "rope parameters must be an object, got 'linear'"),
        ({"rope_scaling": ..., "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_theta": "big"}, "rope_theta must be a number above 0, got 'big'"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a number above 0, got nan"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps must be a number above 0, got 1000"),
        ({"architectures": 5}, "architectures must be a list, got 5"),
        ({"layer_types": 5}, "layer_types must be a list, got 5"),
        ({"rope_scaling": {"mrope_section": 5}}, "mrope_section must be a list, got 5"),
    ],
    ids=str,
)
def test_what_cannot_be_computed_is_refused_by_name(overrides: dict[str, Any], expected: str):
    with pytest.raises(CheckpointError, match=expected):
        parse(**overrides)


@pytest.mark.parametrize("text", ["{", "[1]", '"x"', "\xff", "[" * 100_000])
def test_a_malformed_file_is_a_checkpoint_error(tmp_path: Path, text: str):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_model_config(tmp_path)


def test_a_directory_without_config_is_a_checkpoint_error(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"cannot read .*config\.json"):
        read_model_config(tmp_path)


def test_the_generation_config_is_read_where_it_is(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert read_model_config(tmp_path).eos_token_ids == (128001, 128008, 128009)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert read_model_config(tmp_path).eos_token_ids == (5, 128001, 128008, 128009)


QWEN3_30B_A3B: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 151936,
}
QWEN15_MOE_A2_7B: dict[str, Any] = QWEN3_30B_A3B | {
    "architectures": ["Qwen2MoeForCausalLM"],
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "norm_topk_prob": False,
}


def parse_moe(raw: dict[str, Any] = QWEN3_30B_A3B, **overrides: Any) -> ModelConfig:
    values = {key: value for key, value in (raw | overrides).items() if value is not ...}
    return parse_model_config(values, {})


def test_a_published_mixture_of_experts_is_read_whole():
    config = parse_moe()
    assert config.moe == MoEConfig(128, 8, 768, norm_topk_prob=True)
    assert config.qk_norm
    assert not config.qkv_bias
    assert all(map(config.is_sparse, range(48)))


def test_a_shared_expert_comes_with_the_architecture():
    config = parse_moe(QWEN15_MOE_A2_7B)
    assert config.moe == MoEConfig(60, 4, 1408, shared_expert_intermediate_size=5632)
    assert config.qkv_bias
    assert not config.qk_norm
    assert not parse_moe(QWEN15_MOE_A2_7B, qkv_bias=False).qkv_bias


def test_both_spellings_of_the_number_of_experts_are_read():
    assert parse_moe(num_experts=..., num_local_experts=128) == parse_moe()


def test_some_layers_are_dense():
    config = parse_moe(decoder_sparse_step=2, mlp_only_layers=[3])
    assert [layer for layer in range(8) if config.is_sparse(layer)] == [1, 5, 7]
    assert not any(map(parse().is_sparse, range(16)))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"num_experts": ...}, "num_experts must be a positive integer, got None"),
        ({"num_experts": 4096}, r"num_experts \(4096\) is above 1024"),
        ({"num_experts_per_tok": 129}, r"num_experts_per_tok \(129\) is above 64"),
        ({"num_experts": 4}, r"num_experts_per_tok \(8\) is above 4"),
        ({"moe_intermediate_size": 776}, "moe_intermediate_size must be a multiple of 32"),
        ({"hidden_size": 2064}, "hidden_size must be a multiple of 32"),
        ({"mlp_only_layers": ["0"]}, "mlp_only_layers must list numbers of layers"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step must be a positive integer, got 0"),
    ],
    ids=str,
)
def test_experts_that_cannot_be_computed_are_refused_by_name(
    overrides: dict[str, Any], expected: str
):
    with pytest.raises(CheckpointError, match=expected):
        parse_moe(**overrides)
