"""Models with experts: where their weights come from, what is counted, what is read."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import rtp_kernels
from rtp_serve.config.model import read_model_config
from rtp_serve.engine.output import ExpertLoad
from rtp_serve.errors import CheckpointError
from rtp_serve.models.model import Model
from rtp_serve.worker.expert_meter import ExpertMeter
from rtp_serve.worker.loading import load_model
from tests.checkpoints import random_tensors, tiny_config, write_checkpoint
from tests.kernels.levels import ISAS, bits, using
from tests.worker.engines import make_cache, make_prompt, whole_prompt

CONFIG = tiny_config("Qwen2MoeForCausalLM", mlp_only_layers=[1])
LENGTH = 40


def make_model(directory: Path, dtype: torch.dtype = torch.float32) -> Model:
    return load_model(directory, read_model_config(directory), dtype, max_positions=128).model


def hidden(model: Model, tokens: list[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    with torch.inference_mode():
        return model.forward(whole_prompt(tokens), make_cache(model.config, dtype)).last


def op_by_op(model: Model) -> None:
    path = "layers.0.attention.o_proj"
    for index in range(model.config.num_layers):
        path = f"layers.{index}.attention.o_proj"
        original = model.linear(path)
        model.replace_linear(path, lambda x, original=original: original(x))


@pytest.mark.parametrize("is_op_by_op", [False, True])
def test_each_token_is_counted_for_each_of_its_experts(is_op_by_op: bool, tmp_path: Path):
    model = make_model(write_checkpoint(tmp_path, CONFIG))
    expected = make_model(tmp_path)
    if is_op_by_op:
        op_by_op(model)
    for _ in range(2):
        hidden(model, make_prompt(LENGTH))
        hidden(expected, make_prompt(LENGTH))
    counts = model.expert_counts()
    assert list(counts) == [0, 2]
    for layer, count in counts.items():
        assert count.sum() == 2 * LENGTH * 3
        assert count.max() <= 2 * LENGTH
        assert np.array_equal(count, expected.expert_counts()[layer])


def test_a_dense_model_counts_nothing(tmp_path: Path):
    assert make_model(write_checkpoint(tmp_path, tiny_config())).expert_counts() == {}


def test_loads_are_told_for_stretches_of_steps():
    counts = {3: np.zeros(4, np.int64)}
    meter = ExpertMeter(counts)
    told = []
    for _ in range(128):
        counts[3] += [2, 0, 1, 1]
        told += meter.step()
    assert told == [ExpertLoad(3, mean=64.0, largest=128)] * 2
    assert ExpertMeter({}).step() == ()


def test_a_missing_expert_is_named(tmp_path: Path):
    tensors = random_tensors(CONFIG)
    del tensors["model.layers.2.mlp.experts.5.up_proj.weight"]
    write_checkpoint(tmp_path, CONFIG, tensors)
    with pytest.raises(
        CheckpointError, match=r"missing model\.layers\.2\.mlp\.experts\.5\.up_proj"
    ):
        make_model(tmp_path)


@pytest.mark.parametrize("isa", ISAS)
def test_weights_of_experts_that_no_token_goes_to_do_not_count(isa: str, tmp_path: Path):
    tensors = random_tensors(CONFIG)
    model = make_model(write_checkpoint(tmp_path / "clean", CONFIG, tensors))
    tokens = make_prompt(2)
    with using(isa, 2):
        expected = hidden(model, tokens)
        counts = model.expert_counts()
        assert any((count == 0).any() for count in counts.values())
        for layer, count in counts.items():
            for expert in np.flatnonzero(count == 0):
                for name in ("gate", "up", "down"):
                    path = f"model.layers.{layer}.mlp.experts.{expert}.{name}_proj.weight"
                    tensors[path] = torch.full_like(tensors[path], torch.nan)
        poisoned = make_model(write_checkpoint(tmp_path / "poisoned", CONFIG, tensors))
        assert torch.equal(bits(hidden(poisoned, tokens)), bits(expected))


def test_threads_that_are_put_aside_change_nothing_of_a_short_step(tmp_path: Path):
    """One thread routes all rows of such a step, and others do so again if it is late."""
    config = CONFIG | {"num_hidden_layers": 12, "mlp_only_layers": []}
    model = make_model(write_checkpoint(tmp_path, config))
    tokens = make_prompt(8)
    with using(num_threads=1):
        expected = hidden(model, tokens)
    wrong: list[int] = []

    def compute(caller: int) -> None:
        rtp_kernels.set_num_threads(3)
        for _ in range(100):
            if not torch.equal(bits(hidden(model, tokens)), bits(expected)):
                wrong.append(caller)

    threads = [threading.Thread(target=compute, args=(caller,)) for caller in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_replaced_shared_expert_goes_op_by_op(tmp_path: Path):
    model = make_model(write_checkpoint(tmp_path, CONFIG))
    tokens = make_prompt(LENGTH)
    expected = hidden(model, tokens)
    path = "layers.0.mlp.shared_expert.down_proj"
    original = model.linear(path)
    model.replace_linear(path, lambda x: original(x))
    assert torch.equal(bits(hidden(model, tokens)), bits(expected))
    model.replace_linear(path, lambda x: original(x) * 1.5)
    assert not torch.equal(hidden(model, tokens), expected)


def test_other_routing_gives_another_model(tmp_path: Path):
    directory = write_checkpoint(tmp_path, CONFIG)
    config = read_model_config(directory)
    assert config.moe is not None
    other = replace(config, moe=replace(config.moe, norm_topk_prob=False))
    model = load_model(directory, other, torch.float32, max_positions=128).model
    tokens = make_prompt(LENGTH)
    assert not torch.allclose(hidden(model, tokens), hidden(make_model(directory), tokens))
