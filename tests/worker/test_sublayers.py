"""A model whose layers run as compiled sublayers gives the bits of the same one op by op."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rtp_kernels
from rtp_kernels import _C
from rtp_serve import ops
from rtp_serve.config.model import RopeConfig, read_model_config
from rtp_serve.kv_cache.tensors import KVCacheTensors
from rtp_serve.models.layers.linear import PackedLinear
from rtp_serve.models.llama import Decoder
from rtp_serve.models.model import ModelInputs
from rtp_serve.worker.loading import load_model
from tests.checkpoints import tiny_config, write_checkpoint
from tests.kernels.levels import DTYPES, ISAS, bits, using
from tests.worker.engines import BLOCK_SIZE, make_cache, make_prompt, whole_prompt

CONFIGS = {
    "llama": tiny_config(),
    "biased": tiny_config(attention_bias=True),
    "multi-head": tiny_config(num_key_value_heads=4),
    "qwen3": tiny_config("Qwen3ForCausalLM", head_dim=32),
    "qwen3-moe": tiny_config("Qwen3MoeForCausalLM", mlp_only_layers=[1]),
    "qwen2-moe": tiny_config("Qwen2MoeForCausalLM", norm_topk_prob=False, num_hidden_layers=2),
    "wide": tiny_config(hidden_size=80, intermediate_size=200, num_hidden_layers=2),
}
MASK = np.array([0b1, 0b11, 0b111, 0b1011])


def make_model(tmp_path: Path, config: dict[str, Any], dtype: torch.dtype) -> Decoder:
    directory = write_checkpoint(tmp_path, config)
    model = load_model(directory, read_model_config(directory), dtype, max_positions=512).model
    assert isinstance(model, Decoder)
    return model


def kernel_of(model: Decoder, path: str) -> _C.LinearWeight:
    linear = model.linear(path)
    assert isinstance(linear, PackedLinear)
    assert linear.weight.kernel is not None
    return linear.weight.kernel


def op_by_op(model: Decoder) -> None:
    for layer in model.layers:
        layer.sublayers = tuple
    model._runs.clear()


def mixed_step(context: int) -> list[ModelInputs]:
    """A prompt of `context` tokens; then a step that decodes it beside a new prompt of 40."""
    first = whole_prompt(make_prompt(context))
    used = -(-(context + 1) // BLOCK_SIZE)
    blocks = np.arange(1, used + 4, dtype=np.int32)
    tables = np.zeros((2, used), np.int32)
    tables[0], tables[1, :3] = blocks[:used], blocks[used:]
    slots = np.concatenate(([BLOCK_SIZE + context], np.arange(40) + blocks[used] * BLOCK_SIZE))
    metadata = ops.AttentionMetadata(
        slots=slots,
        block_tables=tables,
        query_start_loc=np.array([0, 1, 41], np.int32),
        seq_lens=np.array([context + 1, 40], np.int32),
    )
    positions = np.concatenate(([context], np.arange(40)))
    return [first, ModelInputs(np.array(make_prompt(41, seed=1)), positions, metadata)]


def run(model: Decoder, steps: list[ModelInputs]) -> tuple[list[torch.Tensor], KVCacheTensors]:
    cache = make_cache(model.config, model.norm.spec.weight.dtype)
    with torch.inference_mode():
        return [model.forward(step, cache).last for step in steps], cache


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_states_and_cache_have_the_same_bits(
    name: str, dtype: torch.dtype, isa: str, num_threads: int, tmp_path: Path
):
    model = make_model(tmp_path, CONFIGS[name], dtype)
    steps = mixed_step(150)
    with using(isa, num_threads):
        together, cache = run(model, steps)
        op_by_op(model)
    with using(isa):
        single, single_cache = run(model, steps)
    for one, other in zip(together, single, strict=True):
        assert torch.equal(bits(one), bits(other))
    assert torch.equal(bits(cache.data), bits(single_cache.data))


@pytest.mark.parametrize(
    "change",
    [{"window": 5}, {"ancestor_mask": np.pad(MASK, (0, 56))}],
    ids=["window", "tree"],
)
def test_windows_and_trees_have_the_same_bits(change: dict[str, Any], tmp_path: Path):
    model = make_model(tmp_path, CONFIGS["llama"], torch.bfloat16)
    inputs = whole_prompt(make_prompt(60))
    plain, _ = run(model, [inputs])
    inputs = replace(inputs, attention=replace(inputs.attention, **change))
    together, _ = run(model, [inputs])
    op_by_op(model)
    single, _ = run(model, [inputs])
    assert torch.equal(bits(together[0]), bits(single[0]))
    assert not torch.equal(bits(together[0]), bits(plain[0]))


def test_three_rows_of_positions_have_the_same_bits(tmp_path: Path):
    directory = write_checkpoint(tmp_path, CONFIGS["llama"])
    config = replace(read_model_config(directory), rope=RopeConfig(mrope_sections=(4, 2, 2)))
    model = load_model(directory, config, torch.bfloat16, max_positions=512).model
    assert isinstance(model, Decoder)
    positions = np.stack([np.arange(60), np.arange(60) * 3, np.arange(60)[::-1]])
    inputs = whole_prompt(make_prompt(60), positions=np.ascontiguousarray(positions))
    together, _ = run(model, [inputs])
    op_by_op(model)
    single, _ = run(model, [inputs])
    assert torch.equal(bits(together[0]), bits(single[0]))


@pytest.mark.parametrize(
    "config",
    [tiny_config(), tiny_config(intermediate_size=8192), CONFIGS["qwen2-moe"]],
    ids=["little", "much", "experts"],
)
def test_threads_that_are_put_aside_change_no_bits(config: dict[str, Any], tmp_path: Path):
    """More threads than cores, so that some are always late, with places for all and for two."""
    model = make_model(tmp_path, config, torch.float32)
    steps = mixed_step(150)
    with using(ISAS[-1], 1):
        expected, expected_cache = run(model, steps)
    wrong: list[int] = []

    def compute(caller: int) -> None:
        rtp_kernels.set_num_threads(3)
        for _ in range(10):
            actual, cache = run(model, steps)
            same = [torch.equal(bits(a), bits(b)) for a, b in zip(actual, expected, strict=True)]
            if not all(same) or not torch.equal(bits(cache.data), bits(expected_cache.data)):
                wrong.append(caller)

    with using(ISAS[-1]):
        threads = [threading.Thread(target=compute, args=(caller,)) for caller in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_one_layer_may_go_op_by_op(tmp_path: Path):
    model = make_model(tmp_path, CONFIGS["qwen3"], torch.bfloat16)
    expected, _ = run(model, mixed_step(70))
    original = model.linear("layers.1.mlp.down_proj")
    model.replace_linear("layers.1.mlp.down_proj", lambda x: original(x))
    actual, _ = run(model, mixed_step(70))
    (runs,) = model._runs.values()
    assert [(len(run.layers), bool(run.sublayers)) for run in runs] == [
        (1, True),
        (1, False),
        (1, True),
    ]
    assert torch.equal(bits(actual[1]), bits(expected[1]))


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"positions": np.full(20, 512)}, "positions must be from 0 to 511, got 512"),
        ({"positions": np.full(20, -1)}, "positions must not be negative"),
        ({"slots": np.full(20, 16 * 16)}, r"slots\[0\] must be from -1 to 255, got 256"),
        ({"seq_lens": np.array([19], np.int32)}, r"seq_lens\[0\] is 19, less than its 20"),
        ({"block_tables": np.array([[1, 16]], np.int32)}, "must be from 0 to 15, got 16"),
    ],
)
def test_a_wrong_step_is_refused_before_anything_is_written(
    replaced: dict[str, Any], message: str, tmp_path: Path
):
    model = make_model(tmp_path, CONFIGS["llama"], torch.float32)
    inputs = whole_prompt(make_prompt(20))
    if "positions" in replaced:
        inputs = replace(inputs, **replaced)
    else:
        inputs = replace(inputs, attention=replace(inputs.attention, **replaced))
    cache = make_cache(model.config)
    with pytest.raises(ValueError, match=message):
        model.forward(inputs, cache)
    assert not cache.data.any()


def test_a_sublayer_refuses_what_does_not_fit(tmp_path: Path):
    model = make_model(tmp_path, CONFIGS["llama"], torch.float32)
    weight = torch.ones(64)
    gate_up, down = (kernel_of(model, f"layers.0.mlp.{name}_proj") for name in ("gate_up", "down"))
    with pytest.raises(ValueError, match=r"down must be \[64, 96\]"):
        _C.mlp_sublayer(weight, 1e-5, gate_up, gate_up)
    with pytest.raises(TypeError, match="norm must be float32"):
        _C.mlp_sublayer(weight.bfloat16(), 1e-5, gate_up, down)
    with pytest.raises(ValueError, match=r"norm must have shape \[64\]"):
        _C.mlp_sublayer(torch.ones(63), 1e-5, gate_up, down)
