"""Our models against transformers on the same random weights, in fp32."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from rtp_serve.config.model import read_model_config
from rtp_serve.worker.loading import load_model
from tests.checkpoints import LINEAR_ROPE, LLAMA3_ROPE, tiny_config, write_checkpoint
from tests.worker.driver import DrivenSequence, Driver
from tests.worker.engines import all_logits, make_cache, make_prompt, make_runner, whole_prompt

CONFIGS = {
    "llama": tiny_config(),
    "llama-tied": tiny_config(tie_word_embeddings=True),
    "llama-llama3-rope": tiny_config(rope_scaling=LLAMA3_ROPE, rope_theta=500000.0),
    "llama-linear-rope": tiny_config(rope_scaling=LINEAR_ROPE),
    "llama-biased": tiny_config(attention_bias=True),
    "llama-multi-head": tiny_config(num_key_value_heads=4),
    "qwen2": tiny_config("Qwen2ForCausalLM"),
    "qwen2-tied": tiny_config("Qwen2ForCausalLM", tie_word_embeddings=True),
    "qwen3": tiny_config("Qwen3ForCausalLM", head_dim=32),
    "qwen3-tied": tiny_config("Qwen3ForCausalLM", tie_word_embeddings=True),
    "qwen3-moe": tiny_config("Qwen3MoeForCausalLM"),
    "qwen3-moe-softmax-of-all": tiny_config("Qwen3MoeForCausalLM", norm_topk_prob=False),
    "qwen3-moe-some-dense": tiny_config("Qwen3MoeForCausalLM", mlp_only_layers=[1]),
    "qwen3-moe-every-second": tiny_config("Qwen3MoeForCausalLM", decoder_sparse_step=2),
    "qwen2-moe": tiny_config("Qwen2MoeForCausalLM"),
    "qwen2-moe-unbiased": tiny_config(
        "Qwen2MoeForCausalLM", qkv_bias=False, norm_topk_prob=False, num_experts_per_tok=8
    ),
}
LENGTH = 75


@contextmanager
def reference_model(directory: Path) -> Iterator[PreTrainedModel]:
    with torch.inference_mode():
        yield AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_greedy_tokens_are_those_of_transformers(name: str, tmp_path: Path):
    directory = write_checkpoint(tmp_path, CONFIGS[name])
    prompt = make_prompt(LENGTH)
    config = read_model_config(directory)
    model = load_model(directory, config, torch.float32, max_positions=256).model
    sequence = DrivenSequence(1, prompt, num_output=64)
    Driver(make_runner(directory), chunk=23).run(sequence)
    with reference_model(directory) as reference:
        expected = reference(torch.tensor([prompt])).logits[0]
        logits = all_logits(model, model.forward(whole_prompt(prompt), make_cache(config)).last)
        greedy = reference.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=64, min_new_tokens=64,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    assert (logits - expected).abs().max() <= 1e-3
    assert sequence.output == greedy[0, LENGTH:].tolist()
    assert len(set(sequence.output)) > 8, "too repetitive to tell anything"


def test_both_spellings_of_rope_give_the_same_model(tmp_path: Path):
    published = tiny_config(rope_scaling=LLAMA3_ROPE, rope_theta=500000.0)
    current: dict[str, Any] = {
        **tiny_config(),
        "rope_parameters": {**LLAMA3_ROPE, "rope_theta": 500000.0},
    }
    del current["rope_theta"]
    directory = write_checkpoint(tmp_path, published)
    first = read_model_config(directory)
    (directory / "config.json").write_text(json.dumps(current), encoding="utf-8")
    assert read_model_config(directory) == first
    with reference_model(directory) as reference:
        model = load_model(directory, first, torch.float32, max_positions=256).model
        prompt = make_prompt(LENGTH)
        logits = all_logits(model, model.forward(whole_prompt(prompt), make_cache(first)).last)
        assert (logits - reference(torch.tensor([prompt])).logits[0]).abs().max() <= 1e-3


def test_bfloat16_stays_near_transformers_in_bfloat16(tmp_path: Path):
    directory = write_checkpoint(
        tmp_path, tiny_config(torch_dtype="bfloat16"), dtype=torch.bfloat16
    )
    config = read_model_config(directory)
    model = load_model(directory, config, torch.bfloat16, max_positions=256).model
    prompt = make_prompt(LENGTH)
    with torch.inference_mode():
        reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        expected = reference(torch.tensor([prompt])).logits[0]
        cache = make_cache(config, torch.bfloat16)
        logits = all_logits(model, model.forward(whole_prompt(prompt), cache).last)
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().mean() <= 0.02 * expected.std()
