"""Sublayers of which several ranks have a part: in one call the same bits as op by op."""

import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import rtp_kernels
from rtp_serve import ops
from rtp_serve.config.model import read_model_config
from rtp_serve.errors import RankError, RankLate, RankLost, RanksAborted
from rtp_serve.models.layers.decoder_layer import DecoderLayer
from rtp_serve.models.layers.linear import PackedLinear
from rtp_serve.models.llama import Decoder
from rtp_serve.models.model import ModelInputs
from rtp_serve.native.rank_group import RankGroup
from rtp_serve.parallel.shared_memory import SharedMemory
from rtp_serve.worker.loading import load_model
from tests.checkpoints import tiny_config, write_checkpoint
from tests.kernels.levels import DTYPES, ISAS, bits, using
from tests.worker.engines import make_cache, make_prompt, whole_prompt
from tests.worker.test_sublayers import mixed_step

CONFIGS = {
    "llama": tiny_config(),
    "qwen3": tiny_config("Qwen3ForCausalLM", head_dim=32),
    "wide": tiny_config(hidden_size=80, intermediate_size=200, num_hidden_layers=2),
}
SLOTS = {"a row at a time": 1024, "some rows": 8192, "all rows": 1 << 17}
_numbers = itertools.count()


class Rank:
    """Layers that are one rank's part: weights of its own, as no rank's are another's."""

    def __init__(self, model: Decoder, group: RankGroup) -> None:
        self.model = model
        self.group = group
        self._collectives = SharedMemory(group)

    def together(self, steps: list[ModelInputs], num_threads: int = 1) -> list[torch.Tensor]:
        """Every step in one call; the residual stream after each, and the cache."""
        rtp_kernels.set_num_threads(num_threads)
        sublayers = [
            part
            for index, layer in enumerate(self.model.layers)
            for part in parts_of(layer, index, self.group)
        ]
        cache = make_cache(self.model.config, self.dtype)
        residuals = [self.embedded(step) for step in steps]
        for step, residual in zip(steps, residuals, strict=True):
            ops.run_sublayers(sublayers, residual, step.positions, cache.data, step.attention)
        return [*residuals, cache.data]

    def op_by_op(self, steps: list[ModelInputs]) -> list[torch.Tensor]:
        for layer in self.model.layers:
            layer.attention.o_proj = self._reduced(layer.attention.o_proj)
            layer.mlp.down_proj = self._reduced(layer.mlp.down_proj)
        cache = make_cache(self.model.config, self.dtype)
        residuals = [self.embedded(step) for step in steps]
        for step, residual in zip(steps, residuals, strict=True):
            metadata = ops.to_device(step.attention, torch.device("cpu"))
            for layer in self.model.layers:
                layer(residual, torch.from_numpy(step.positions), cache, metadata)
        return [*residuals, cache.data]

    @property
    def dtype(self) -> torch.dtype:
        return self.model.norm.spec.weight.dtype

    def embedded(self, step: ModelInputs) -> torch.Tensor:
        """The same on all ranks."""
        generator = torch.Generator().manual_seed(len(step.token_ids))
        shape = len(step.token_ids), self.model.config.hidden_size
        return torch.randn(shape, generator=generator).to(self.dtype)

    def _reduced(self, linear: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        def apply(x: torch.Tensor) -> torch.Tensor:
            sums = ops.linear(x, linear.weight, out_dtype=torch.float32)
            self._collectives.all_reduce(sums)
            return sums

        return apply


def parts_of(layer: DecoderLayer, index: int, group: RankGroup | None) -> list[ops.Sublayer | None]:
    attention, mlp = layer.attention, layer.mlp
    norms = attention._q_norm, attention._k_norm
    head_norms = (norms[0].spec, norms[1].spec) if norms[0] and norms[1] else None
    qkv, o, gate_up, down = (
        linear.weight
        for linear in (attention.qkv_proj, attention.o_proj, mlp.gate_up_proj, mlp.down_proj)
        if isinstance(linear, PackedLinear)
    )
    heads, rope = attention._heads, attention._rotary.rope
    return [
        ops.attention_sublayer(
            index, heads, layer.input_norm.spec, qkv, o, rope, head_norms, group
        ),
        ops.mlp_sublayer(layer.mlp_norm.spec, gate_up, down, group),
    ]


def make_ranks(
    tmp_path: Path,
    config: dict[str, Any],
    dtype: torch.dtype = torch.bfloat16,
    world_size: int = 2,
    **group: Any,
) -> list[Rank]:
    name = f"test-sublayers-{os.getpid()}-{next(_numbers)}"
    ranks = []
    for rank in range(world_size):
        directory = write_checkpoint(tmp_path / str(rank), config, seed=rank)
        model = load_model(directory, read_model_config(directory), dtype, max_positions=512).model
        assert isinstance(model, Decoder)
        ranks.append(Rank(model, RankGroup(name, rank, world_size, **group)))
    return ranks


def run_all(ranks: list[Rank], body: Callable[[Rank], Any]) -> list[Any]:
    """body(rank) in a thread each; what they return or raise."""
    results: list[Any] = [None] * len(ranks)

    def run(index: int) -> None:
        try:
            with torch.inference_mode():
                results[index] = body(ranks[index])
        except RankError as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def assert_same(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    for first, second in zip(one, other, strict=True):
        assert torch.equal(bits(first), bits(second))


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_ranks_together_give_the_bits_of_single_ops(
    name: str, dtype: torch.dtype, slots: str, num_threads: int, tmp_path: Path
):
    ranks = make_ranks(tmp_path, CONFIGS[name], dtype, slot_bytes=SLOTS[slots], timeout_s=60)
    steps = mixed_step(150)
    together = run_all(ranks, lambda rank: rank.together(steps, num_threads))
    single = run_all(ranks, lambda rank: rank.op_by_op(steps))
    for one, other in zip(together, single, strict=True):
        assert_same(one, other)
    assert_same(together[0][:2], together[1][:2])  # the residual stream is everybody's
    assert not torch.equal(together[0][2], together[1][2])  # keys and values are a rank's own


@pytest.mark.parametrize("isa", ISAS)
def test_three_ranks_on_every_instruction_set(isa: str, tmp_path: Path):
    ranks = make_ranks(tmp_path, CONFIGS["llama"], world_size=3)
    steps = mixed_step(40)
    with using(isa):
        together = run_all(ranks, lambda rank: rank.together(steps))
        single = run_all(ranks, lambda rank: rank.op_by_op(steps))
    for one, other in zip(together, single, strict=True):
        assert_same(one, other)


def test_calls_and_single_ops_in_turns_change_no_bits(tmp_path: Path):
    """Many calls with more threads than cores, each cutting the slots in another way."""
    ranks = make_ranks(tmp_path, CONFIGS["llama"], slot_bytes=1 << 14, timeout_s=60)
    prompts = [whole_prompt(make_prompt(length)) for length in (1, 70, 9, 33, 200, 2)]
    expected = run_all(ranks, lambda rank: rank.together(prompts))

    def turns(rank: Rank) -> list[list[torch.Tensor]]:
        found = []
        for _ in range(8):
            found.append(rank.together(prompts, num_threads=3))
            rank.group.barrier()
        return found

    for found, wanted in zip(run_all(ranks, turns), expected, strict=True):
        for each in found:
            assert_same(each, wanted)


def abort(rank: Rank) -> None:
    rank.group.abort()


def leave(rank: Rank) -> None:
    rank.group.close()


def stay_away(rank: Rank) -> None:
    """And live."""


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize(
    ("what", "error"), [(abort, RanksAborted), (leave, RankLost), (stay_away, RankLate)]
)
def test_a_group_that_ends_ends_the_call_and_leaves_the_threads_whole(
    what: Callable[[Rank], None], error: type[RankError], num_threads: int, tmp_path: Path
):
    ranks = make_ranks(tmp_path, CONFIGS["llama"], timeout_s=0.3)
    steps = mixed_step(40)

    def compute(rank: Rank) -> tuple[RankError, list[torch.Tensor]]:
        with pytest.raises(error) as caught:
            rank.together(steps, num_threads)
        # The same team, for work of no group.
        alone = Rank(rank.model, rank.group)
        alone.group = None  # type: ignore[assignment]
        return caught.value, alone.together(steps, num_threads)

    ended, alone = run_all(ranks, lambda rank: (compute if rank is ranks[0] else what)(rank))[0]
    assert ended.rank == 1
    ranks[0].group = None  # type: ignore[assignment]
    (expected,) = run_all(ranks[:1], lambda rank: rank.together(steps))
    assert_same(alone, expected)


def test_sublayers_of_two_groups_are_refused(tmp_path: Path):
    first, second = make_ranks(tmp_path, CONFIGS["llama"])
    step = whole_prompt(make_prompt(5))
    layers = [
        *parts_of(first.model.layers[0], 0, first.group),
        *parts_of(first.model.layers[0], 0, second.group),
    ]
    cache = make_cache(first.model.config, first.dtype)
    with pytest.raises(ValueError, match="of several groups"):
        ops.run_sublayers(
            [part for part in layers if part is not None],
            first.embedded(step),
            step.positions,
            cache.data,
            step.attention,
        )


def test_a_row_must_fit_in_a_slot(tmp_path: Path):
    config = tiny_config(hidden_size=2048, num_hidden_layers=1)
    first, _ = make_ranks(tmp_path, config, slot_bytes=4096)
    with pytest.raises(ValueError, match="slots must have 8192 bytes at least"):
        parts_of(first.model.layers[0], 0, first.group)
