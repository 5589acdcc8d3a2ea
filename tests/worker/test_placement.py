"""The plan's numbers, against hand counts and against what ranks really load."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rtp_serve.cli.plan import print_plan
from rtp_serve.config.engine import CacheConfig, EngineConfig
from rtp_serve.config.model import ModelConfig, read_model_config
from rtp_serve.config.parallel import ParallelConfig
from rtp_serve.errors import ConfigError
from rtp_serve.models.specs import decoder_specs
from rtp_serve.worker.placement import Placement, place
from tests.checkpoints import tiny_config, write_checkpoint
from tests.worker.ranks import Ranks

ROOT = Path(__file__).parents[2]
QWEN3_235B = ROOT / "configs" / "shapes" / "qwen3-235b-a22b"
GB = 10**9


def placed(model: ModelConfig, memory: int | None = None, **settings: Any) -> Placement:
    tp, ep = settings.pop("tp", 1), settings.pop("ep", 1)
    return place(model, EngineConfig(parallel=ParallelConfig(tp=tp, ep=ep), **settings), memory)


def test_a_235b_model_over_eight_ranks_by_hand():
    cache = CacheConfig(memory=16 * GB)
    placement = placed(read_model_config(QWEN3_235B), 80 * GB, ep=8, cache=cache)
    attention = (8 + 1 + 1) * 128 * 4096 + 4096 * 8 * 128
    experts, router, norms = 16 * 3 * 1536 * 4096, 128 * 4096, 2 * 4096 + 2 * 128
    layers = 94 * (attention + experts + router + norms)
    vocabulary = 2 * 4096 * 151936
    assert sum(rank.weight_bytes for rank in placement.ranks) == 2 * (
        8 * (layers + 4096) + vocabulary
    )
    assert placement.capacity.num_blocks == 16 * GB // (94 * 2 * 16 * 128 * 2)
    assert placement.fits


def test_what_does_not_fit_says_what_would():
    model = read_model_config(QWEN3_235B)
    cache = CacheConfig(memory=16 * GB)
    placement = placed(model, 80 * GB, ep=2, cache=cache)
    assert not placement.fits
    assert list(placement.remedies()) == ["engine.parallel: {tp: 1, ep: 8}"]
    for remedy in placed(model, 80 * GB, ep=8, cache=CacheConfig(memory=40 * GB)).remedies():
        if remedy.startswith("engine.cache.memory"):
            memory = int(remedy.split()[1])
            assert placed(model, 80 * GB, ep=8, cache=CacheConfig(memory=memory)).fits
            break
    else:
        pytest.fail("less memory for blocks would do")
    assert not list(placed(model, 1 * GB, ep=8, cache=cache).remedies())


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        (tiny_config(attention_bias=True), {"tp": 2}),
        (tiny_config("Qwen3ForCausalLM", tie_word_embeddings=True), {"tp": 4}),
        (tiny_config("Qwen2MoeForCausalLM", moe_intermediate_size=64), {"tp": 2, "ep": 2}),
    ],
)
def test_ranks_load_what_the_plan_says(
    config: dict[str, Any], layout: dict[str, int], tmp_path: Path
):
    directory = write_checkpoint(tmp_path, config)
    placement = placed(
        read_model_config(directory), dtype="float32", cache=CacheConfig(num_blocks=128), **layout
    )
    ranks = Ranks(directory, dtype="float32", **layout)
    for planned, worker in zip(placement.ranks, ranks.workers, strict=True):
        assert worker.tensors.data.nbytes == planned.kv_bytes
        assert worker.capacity.num_blocks == placement.capacity.num_blocks
    # What the ranks have together is the model, but for what several of them hold.
    whole = sum(
        tensor.num_rows * (tensor.num_columns if len(tensor.shape) == 2 else 1)
        for spec in decoder_specs(placement.model)
        for tensor in spec.tensors
    )
    assert sum(rank.weight_bytes for rank in placement.ranks) >= whole * torch.float32.itemsize


def test_the_command_prints_a_line_a_rank(capsys: pytest.CaptureFixture[str]):
    path = str(ROOT / "configs" / "qwen3_235b.yaml")
    print_plan(path, "80GB", str(QWEN3_235B / "config.json"))
    lines = capsys.readouterr().out.splitlines()
    first = next(line for line in lines if line.lstrip().startswith("0 "))
    assert first.split()[:5] == ["0", "0", "0-7", "0-0", "0-15"]
    assert sum("54.9" in line for line in lines) == 8
    with pytest.raises(ConfigError, match="do not fit"):
        print_plan(path, "60GB", str(QWEN3_235B))
    assert "would fit with engine.parallel: {tp: 1, ep: 16}" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--rank-memory"):
        print_plan(path, "plenty", str(QWEN3_235B))
