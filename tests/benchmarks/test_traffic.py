import pytest

from benchmarks.traffic import combined_rate, decode_bytes, layer_shapes, prefill_flops
from rtp_serve.config.model import ModelConfig, parse_model_config
from tests.checkpoints import random_tensors, tiny_config


def model_of(**overrides: object) -> ModelConfig:
    return parse_model_config(tiny_config(**overrides), {})


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_decode_step_reads_every_matrix_but_a_gathered_embedding(is_tied: bool):
    config = tiny_config(tie_word_embeddings=is_tied)
    tensors = random_tensors(config)
    matrices = sum(each.numel() for each in tensors.values() if each.dim() == 2)
    gathered = 0 if is_tied else tensors["model.embed_tokens.weight"].numel()
    read = decode_bytes(parse_model_config(config, {}), context_tokens=10)
    assert read.weights == 4 * (matrices - gathered)
    assert read.kv == 10 * 4 * 2 * config["num_hidden_layers"] * 2 * config["head_dim"]


def test_attention_of_a_prefill_is_the_causal_half():
    model = model_of()
    by_hand = sum(
        2 * 2 * model.num_heads * model.head_dim * (position + 1) for position in range(37)
    )
    assert prefill_flops(model, 37).attention == model.num_layers * by_hand


def test_the_head_of_a_prefill_counts_for_one_row():
    model = model_of()
    short, long = prefill_flops(model, 1), prefill_flops(model, 50)
    assert long.head == short.head == 2 * model.vocab_size * model.hidden_size
    assert long.linear == 50 * short.linear
    assert short.linear == sum(2 * shape.num_weights for shape in layer_shapes(model))


def test_the_combined_rate_is_total_work_over_total_time():
    assert combined_rate({"a": 30.0, "b": 10.0}, {"a": 10.0, "b": 2.0}) == 40 / (3 + 5)
