"""Several ranks give the tokens of one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rtp_serve.engine.sampling_params import SamplingParams
from tests.checkpoints import random_tensors, tiny_config, write_checkpoint
from tests.worker.driver import DrivenSequence, Driver
from tests.worker.engines import make_prompt
from tests.worker.ranks import Ranks

CONFIGS = {
    "llama": tiny_config(attention_bias=True),
    "llama-tied": tiny_config(tie_word_embeddings=True),
    "llama-multi-head": tiny_config(num_key_value_heads=4),
    "qwen2": tiny_config("Qwen2ForCausalLM"),
    "qwen3": tiny_config("Qwen3ForCausalLM", head_dim=32),
}
SPARSE = {
    "qwen3-moe": tiny_config("Qwen3MoeForCausalLM", moe_intermediate_size=96),
    "qwen3-moe-not-renormalized": tiny_config(
        "Qwen3MoeForCausalLM", moe_intermediate_size=64, norm_topk_prob=False
    ),
    "qwen3-moe-some-dense": tiny_config(
        "Qwen3MoeForCausalLM", moe_intermediate_size=64, mlp_only_layers=[1]
    ),
    "qwen2-moe": tiny_config("Qwen2MoeForCausalLM", moe_intermediate_size=64),
}
UNEVEN = tiny_config(
    hidden_size=96, num_attention_heads=9, num_key_value_heads=3, intermediate_size=100,
    vocab_size=251,
)  # fmt: skip


def outputs(directory: Path, chunk: int = 23, **parallel: Any) -> list[list[int]]:
    sequences = [
        DrivenSequence(seq_id, make_prompt(5 + 17 * seq_id, seq_id, 250), num_output=40)
        for seq_id in range(4)
    ]
    Driver(Ranks(directory, dtype="float32", **parallel), chunk).run(*sequences)
    return [sequence.output for sequence in sequences]


@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_are_those_of_one_rank(name: str, tp: int, tmp_path: Path):
    directory = write_checkpoint(tmp_path, CONFIGS[name])
    alone = outputs(directory)
    assert len({token for tokens in alone for token in tokens}) > 16, "too repetitive"
    assert outputs(directory, tp=tp) == alone


@pytest.mark.parametrize("layout", [(2, 1), (1, 2), (2, 2), (1, 4)], ids="tp{0[0]} ep{0[1]}".format)
@pytest.mark.parametrize("name", SPARSE)
def test_experts_may_be_on_several_ranks(name: str, layout: tuple[int, int], tmp_path: Path):
    directory = write_checkpoint(tmp_path, SPARSE[name])
    tp, ep = layout
    alone = outputs(directory)
    assert len({token for tokens in alone for token in tokens}) > 16, "too repetitive"
    assert outputs(directory, tp=tp, ep=ep) == alone


@pytest.mark.parametrize("tp", [2, 3, 9])
def test_heads_columns_and_tokens_need_not_divide_evenly(tp: int, tmp_path: Path):
    directory = write_checkpoint(tmp_path, UNEVEN)
    assert outputs(directory, tp=tp) == outputs(directory)


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        (tiny_config(), {"tp": 2}),
        (tiny_config("Qwen3MoeForCausalLM", moe_intermediate_size=64), {"tp": 2}),
        (tiny_config("Qwen2MoeForCausalLM"), {"ep": 2}),
        (tiny_config("Qwen3MoeForCausalLM", moe_intermediate_size=64), {"tp": 2, "ep": 2}),
    ],
)
def test_several_ranks_do_not_care_for_batch_or_chunk(
    config: dict[str, Any], layout: dict[str, int], tmp_path: Path
):
    directory = write_checkpoint(tmp_path, config, dtype=torch.bfloat16)
    ranks = {**layout, "dtype": "bfloat16"}
    together = [DrivenSequence(i, make_prompt(20 + i, i), num_output=20) for i in range(5)]
    Driver(Ranks(directory, **ranks), chunk=7).run(*together)
    for sequence in together:
        alone = DrivenSequence(sequence.seq_id, sequence.prompt, num_output=20)
        Driver(Ranks(directory, **ranks)).run(alone)
        assert alone.output == sequence.output


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.8, top_p=0.9, repetition_penalty=1.2),
        SamplingParams(temperature=0.0, logprobs=3, prompt_logprobs=2),
        SamplingParams(temperature=0.0, logit_bias={7: 2.0}, bad_words=((5,), (7, 8))),
    ],
)
def test_every_kind_of_sampling_gives_what_one_rank_gives(sampling: SamplingParams, tmp_path: Path):
    directory = write_checkpoint(tmp_path)
    found = []
    for tp in (1, 2):
        sequence = DrivenSequence(1, make_prompt(30), sampling, seed=5, num_output=24)
        Driver(Ranks(directory, tp=tp, dtype="float32"), chunk=11).run(sequence)
        found.append(sequence)
    alone, ranks = found
    assert ranks.output == alone.output
    for mine, expected in zip(ranks.logprobs, alone.logprobs, strict=True):
        assert mine.logprob == pytest.approx(expected.logprob, abs=1e-4)
    assert len(ranks.prompt_logprobs) == len(alone.prompt_logprobs)


def test_logits_that_are_no_numbers_end_the_sequence_on_every_rank(tmp_path: Path):
    tensors = random_tensors(tiny_config())
    tensors["lm_head.weight"][200] = torch.nan
    directory = write_checkpoint(tmp_path, tensors=tensors)
    sequence = DrivenSequence(1, make_prompt(9))
    Driver(Ranks(directory, tp=2)).run(sequence)
    assert sequence.error
