"""A step as one call gives the bits of the same step op by op, in logits, tokens and cache."""

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rtp_serve import ops
from rtp_serve.config.model import read_model_config
from rtp_serve.kv_cache.tensors import KVCacheTensors
from rtp_serve.models.llama import Decoder
from rtp_serve.models.model import ModelInputs
from rtp_serve.ops import sampling
from rtp_serve.ops.draws import NO_TOKEN
from rtp_serve.worker.loading import load_model
from tests.checkpoints import tiny_config, write_checkpoint
from tests.kernels.levels import DTYPES, ISAS, bits, using
from tests.worker.engines import BLOCK_SIZE, make_cache, make_prompt

CONFIGS = {
    "llama": tiny_config(),
    "tied": tiny_config(tie_word_embeddings=True),
    "qwen3": tiny_config("Qwen3ForCausalLM", head_dim=32),
    "qwen3-moe": tiny_config("Qwen3MoeForCausalLM", mlp_only_layers=[1]),
}
PROMPTS = (make_prompt(37), make_prompt(5, seed=1), make_prompt(16, seed=2))
BLOCKS = np.array([[1, 2, 3], [4, 0, 0], [5, 6, 0]], np.int32)
ROWS = np.array([2, 0, 1])


def make_model(directory: Path, dtype: torch.dtype) -> Decoder:
    config = read_model_config(directory)
    model = load_model(directory, config, dtype, max_positions=512).model
    assert isinstance(model, Decoder)
    return model


def step(computed: list[int], lengths: list[int], token_ids: list[int]) -> ModelInputs:
    """Each sequence's tokens from `computed` to its length."""
    spans = [np.arange(start, end) for start, end in zip(computed, lengths, strict=True)]
    blocks = [BLOCKS[i, span // BLOCK_SIZE] for i, span in enumerate(spans)]
    slots = [
        block.astype(np.int64) * BLOCK_SIZE + span % BLOCK_SIZE
        for block, span in zip(blocks, spans, strict=True)
    ]
    metadata = ops.AttentionMetadata(
        slots=np.concatenate(slots),
        block_tables=BLOCKS,
        query_start_loc=np.cumsum([0, *map(len, spans)]).astype(np.int32),
        seq_lens=np.array(lengths, np.int32),
    )
    return ModelInputs(np.array(token_ids), np.concatenate(spans), metadata)


def prompts() -> ModelInputs:
    lengths = [len(prompt) for prompt in PROMPTS]
    return step([0] * len(PROMPTS), lengths, [*chain(*PROMPTS)])


def decode() -> ModelInputs:
    lengths = [len(prompt) for prompt in PROMPTS]
    return step(lengths, [length + 1 for length in lengths], [7, 99, 200])


def begun(model: Decoder) -> KVCacheTensors:
    """A cache that holds the prompts."""
    cache = make_cache(model.config, model.norm.spec.weight.dtype)
    model.forward(prompts(), cache)
    return cache


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_one_call_has_the_bits_of_single_ops(
    name: str, dtype: torch.dtype, isa: str, num_threads: int, tmp_path: Path
):
    model = make_model(write_checkpoint(tmp_path, CONFIGS[name]), dtype)
    with using(isa):
        cache = begun(model)
        hidden = model.forward(decode(), cache).last
        expected = model.logits(hidden, ROWS)
    with using(isa, num_threads):
        one_cache = begun(model)
        assert model._bound_to(one_cache) is not None
        logits = model.next_logits(decode(), one_cache, ROWS)
        token_ids = model.next_greedy(decode(), one_cache, ROWS)
    assert np.array_equal(logits.view(np.int32), expected.view(np.int32))
    assert np.array_equal(token_ids, sampling.greedy(expected))
    assert torch.equal(bits(one_cache.data), bits(cache.data))


def test_a_row_without_numbers_has_no_token(tmp_path: Path):
    model = make_model(write_checkpoint(tmp_path, CONFIGS["llama"]), torch.float32)
    cache = begun(model)
    cache.data[4] = torch.nan
    assert model.next_greedy(decode(), cache, np.arange(3)).tolist().count(NO_TOKEN) == 1
    assert model.next_greedy(decode(), cache, np.array([1])).tolist() == [NO_TOKEN]


def test_every_cache_is_written_by_its_own_steps(tmp_path: Path):
    model = make_model(write_checkpoint(tmp_path, CONFIGS["llama"]), torch.float32)
    first, second = begun(model), begun(model)
    before = first.data.clone()
    model.next_greedy(decode(), second, ROWS)
    assert torch.equal(first.data, before)
    model.next_greedy(decode(), first, ROWS)
    assert torch.equal(first.data, second.data)
    assert not torch.equal(first.data, before)


@pytest.mark.parametrize("path", ["layers.1.mlp.down_proj", "lm_head"])
def test_a_replaced_linear_is_computed_with(path: str, tmp_path: Path):
    model = make_model(write_checkpoint(tmp_path, CONFIGS["llama"]), torch.float32)
    cache = begun(model)
    before = model.next_logits(decode(), cache, ROWS)
    original = model.linear(path)
    model.replace_linear(path, lambda x: original(x) * 1.5)
    after = model.next_logits(decode(), cache, ROWS)
    assert model._bound_to(cache) is None
    assert np.array_equal(after, model.logits(model.forward(decode(), cache).last, ROWS))
    assert not np.array_equal(after, before)
    model.replace_linear(path, original)
    assert np.array_equal(model.next_logits(decode(), cache, ROWS), before)


def test_embeddings_may_be_given(tmp_path: Path):
    model = make_model(write_checkpoint(tmp_path, CONFIGS["llama"]), torch.float32)
    cache = begun(model)
    expected = model.next_logits(decode(), cache, ROWS)
    embeds = model.embedding(decode().token_ids)
    given = replace(decode(), token_ids=np.zeros(3, np.int64), embeds=embeds)
    assert np.array_equal(model.next_logits(given, cache, ROWS), expected)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"token_ids": np.array([0, 256, 1])}, r"token_ids\[1\] must be from 0 to 255, got 256"),
        ({"rows": np.array([3])}, r"rows\[0\] must be from 0 to 2, got 3"),
        ({"positions": np.array([1, 2, 512])}, "positions must be from 0 to 511, got 512"),
    ],
)
def test_a_wrong_step_is_refused_before_anything_is_written(
    replaced: dict[str, Any], message: str, tmp_path: Path
):
    model = make_model(write_checkpoint(tmp_path, CONFIGS["llama"]), torch.float32)
    cache = make_cache(model.config)
    rows = replaced.pop("rows", ROWS)
    with pytest.raises(ValueError, match=message):
        model.next_logits(replace(decode(), **replaced), cache, rows)
    assert not cache.data.any()


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_rows_wanted_of_a_long_step_have_the_bits_of_the_whole_of_it(
    name: str, dtype: torch.dtype, isa: str, num_threads: int, tmp_path: Path
):
    """Of the last layer no other rows are computed; keys and values of all are written."""
    model = make_model(write_checkpoint(tmp_path, CONFIGS[name]), dtype)
    inputs = prompts()
    assert len(inputs.token_ids) >= len(PROMPTS) + 32
    with using(isa):
        cache = make_cache(model.config, model.norm.spec.weight.dtype)
        hidden = model.forward(inputs, cache).last
    ends = np.array(inputs.attention.query_start_loc[1:], np.int64) - 1
    for rows in (ends, ends[[2, 0]], np.array([3, 39, 40, 20]), ends[:0]):
        with using(isa):
            expected = model.logits(hidden, rows)
        with using(isa, num_threads):
            own_cache = make_cache(model.config, model.norm.spec.weight.dtype)
            logits = model.next_logits(inputs, own_cache, rows)
            token_ids = model.next_greedy(inputs, own_cache, rows)
        assert np.array_equal(logits.view(np.int32), expected.view(np.int32))
        assert np.array_equal(token_ids, sampling.greedy(expected))
        assert torch.equal(bits(own_cache.data), bits(cache.data))
