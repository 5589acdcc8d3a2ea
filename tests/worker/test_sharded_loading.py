"""Ranks get the rows and columns that are theirs, read by one of them or each for itself."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rtp_serve import ops
from rtp_serve.config.model import read_model_config
from rtp_serve.config.parallel import ParallelConfig
from rtp_serve.errors import CheckpointError
from rtp_serve.loader.checkpoint import Checkpoint
from rtp_serve.loader.identity import total
from rtp_serve.loader.local_files import LocalFiles
from rtp_serve.loader.rank_group import RankGroup
from rtp_serve.loader.read_plan import ALIGNMENT, DEFAULT_SIZES, ReadSizes
from rtp_serve.loader.weights import LoadedWeights, LoadSettings, load_weights
from rtp_serve.models.shards import shard_specs, take_columns, take_rows
from rtp_serve.models.weights import TensorSpec, Weights, WeightSpec
from rtp_serve.parallel.partition import RankPart, partition
from rtp_serve.worker.loading import read_by
from tests.checkpoints import tiny_config, write_checkpoint
from tests.worker.test_weight_loading import by_library, specs_of

DTYPE = torch.bfloat16
SMALL = ReadSizes(read_bytes=2 * ALIGNMENT, gap_bytes=0)


class CountingFiles(LocalFiles):
    """Notes who asked for which file, and how many bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes_by_file: dict[str, int] = {}
        self._count_lock = threading.Lock()

    def __call__(self, file: Path, offset: int, into: memoryview) -> int:
        count = super().__call__(file, offset, into)
        with self._count_lock:
            self.bytes_by_file[file.name] = self.bytes_by_file.get(file.name, 0) + count
        return count


def shards_of(directory: Path, rank: int, world_size: int) -> tuple[WeightSpec, ...]:
    config = read_model_config(directory)
    part = partition(config, ParallelConfig(tp=world_size))[rank]
    return shard_specs(specs_of(directory), config, part)


def load_all(
    directory: Path,
    world_size: int,
    files: LocalFiles,
    *,
    together: bool,
    sizes: ReadSizes = SMALL,
) -> list:
    """Each rank's weights, or its error."""
    group = RankGroup(world_size)
    config = read_model_config(directory)

    def load(rank: int) -> LoadedWeights:
        member = group.member(rank) if together else None
        settings = LoadSettings(sizes, num_threads=2, read_into=files, member=member)
        specs = shards_of(directory, rank, world_size)
        return load_weights(Checkpoint(directory), specs, config, DTYPE, settings=settings)

    with ThreadPoolExecutor(world_size) as pool:
        futures = [pool.submit(load, rank) for rank in range(world_size)]
        return [each.exception(timeout=60) or each.result() for each in futures]


def assert_shard(weights: Weights, specs: Sequence[WeightSpec], tensors: dict[str, Tensor]) -> None:
    def stacked(parts: Sequence[TensorSpec]) -> Tensor:
        wanted = [tensors[part.name].to(DTYPE)[slice(*part.row_range)] for part in parts]
        return torch.cat(
            [
                rows[:, slice(*part.columns)] if part.columns else rows
                for rows, part in zip(wanted, parts, strict=True)
            ]
        )

    for spec in specs:
        if not spec.is_matrix:
            assert torch.equal(weights.vector(spec.path), stacked(spec.parts))
            continue
        expected = ops.pack_weight(
            stacked(spec.parts), stacked(spec.biases) if spec.biases else None
        )
        found = weights.matrix(spec.path)
        assert torch.equal(found.data, expected.data), spec.path
        assert (found.bias is None) == (expected.bias is None)
        assert expected.bias is None or torch.equal(found.bias, expected.bias)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_a_rank_gets_its_rows_and_columns(
    tmp_path: Path, world_size: int, together: bool, stored: torch.dtype
):
    config = tiny_config(attention_bias=True)
    directory = write_checkpoint(tmp_path, config, num_shards=3, dtype=stored)
    tensors = by_library(directory)
    with CountingFiles() as files:
        loaded = load_all(directory, world_size, files, together=together)
    for rank, each in enumerate(loaded):
        assert_shard(each.weights, shards_of(directory, rank, world_size), tensors)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_find_the_identity_that_one_finds_alone(tmp_path: Path, world_size: int):
    directory = write_checkpoint(tmp_path, num_shards=3)
    with CountingFiles() as files:
        (alone,) = load_all(directory, 1, files, together=False)
        ranks = load_all(directory, world_size, files, together=True)
    assert {each.identity for each in ranks} == {alone.identity}


LARGER = {"hidden_size": 128, "intermediate_size": 320, "head_dim": 48, "vocab_size": 1001}


@pytest.mark.parametrize(
    ("config", "parallel"),
    [
        (tiny_config(attention_bias=True, **LARGER), {"tp": 2}),
        (tiny_config("Qwen2ForCausalLM", num_key_value_heads=1, **LARGER), {"tp": 4}),
        (tiny_config("Qwen3ForCausalLM", tie_word_embeddings=True, **LARGER), {"tp": 4}),
        (
            tiny_config("Qwen2MoeForCausalLM", moe_intermediate_size=64, **LARGER),
            {"tp": 2, "ep": 2},
        ),
        (tiny_config("Qwen3MoeForCausalLM", moe_intermediate_size=96, **LARGER), {"tp": 2}),
        (tiny_config("Qwen3MoeForCausalLM", **LARGER), {"ep": 2}),
    ],
)
def test_shares_of_ranks_that_load_apart_add_up(
    tmp_path: Path, config: dict, parallel: dict[str, int]
):
    """However the model is divided among them; with one other byte in a matrix, to something
    else."""
    directory = write_checkpoint(tmp_path, config)
    model = read_model_config(directory)
    parts = partition(model, ParallelConfig.model_validate(parallel))

    def loaded(specs: Sequence[WeightSpec], ranks_before: Sequence[RankPart] = ()) -> int:
        settings = LoadSettings(elsewhere=read_by(model, ranks_before))
        checkpoint = Checkpoint(directory)
        return load_weights(checkpoint, specs, model, DTYPE, settings=settings).share

    def of_all() -> int:
        specs = specs_of(directory)
        return total([loaded(shard_specs(specs, model, p), parts[: p.rank]) for p in parts])

    whole = loaded(specs_of(directory))
    assert of_all() == whole
    change_weight(directory)
    assert of_all() == loaded(specs_of(directory)) != whole


def change_weight(directory: Path) -> None:
    """One element of the last layer's keys' projection."""
    name, file = "model.layers.2.self_attn.k_proj.weight", directory / "model.safetensors"
    tensors = load_file(file)
    tensors[name][-1, 5] += 1
    save_file(tensors, file)


def test_together_every_byte_is_read_once(tmp_path: Path):
    directory = write_checkpoint(tmp_path, num_shards=3)
    sizes = {path.name: path.stat().st_size for path in directory.glob("*.safetensors")}
    bytes_read = {}
    for together in (True, False):
        with CountingFiles() as files:
            load_all(directory, 4, files, together=together, sizes=DEFAULT_SIZES)
            bytes_read[together] = files.bytes_by_file
    assert bytes_read[True] == sizes
    assert all(bytes_read[False][name] > 2 * sizes[name] for name in sizes)


def test_a_file_that_nobody_can_read_is_an_error_of_every_rank(tmp_path: Path):
    directory = write_checkpoint(tmp_path, num_shards=3)
    name = "model-00002-of-00003.safetensors"

    class BrokenFiles(LocalFiles):
        def __call__(self, file: Path, offset: int, into: memoryview) -> int:
            if file.name == name:
                raise OSError(5, "Input/output error")
            return super().__call__(file, offset, into)

    with BrokenFiles() as files:
        for error in load_all(directory, 4, files, together=True):
            assert isinstance(error, CheckpointError)
            assert f"{name}: [Errno 5] Input/output error" in str(error)


@pytest.mark.parametrize("world_size", [2, 4])
def test_shards_of_all_ranks_are_the_whole_model(tmp_path: Path, world_size: int):
    directory = write_checkpoint(tmp_path, tiny_config(num_key_value_heads=4))
    shards = [shards_of(directory, rank, world_size) for rank in range(world_size)]
    for whole, *ranks in zip(specs_of(directory), *shards, strict=True):
        if not whole.is_matrix:
            assert all(each == whole for each in ranks)
        elif whole.path.endswith(("o_proj", "down_proj")):
            assert sum(each.num_columns for each in ranks) == whole.num_columns
            assert {each.num_rows for each in ranks} == {whole.num_rows}
        else:
            assert sum(each.num_rows for each in ranks) == whole.num_rows
            assert {each.num_columns for each in ranks} == {whole.num_columns}


def test_rows_are_taken_part_by_part():
    spec = WeightSpec("w", (TensorSpec("a", (7, 5)), TensorSpec("b", (3, 5))), ())
    taken = take_rows(spec, [(2, 4), (1, 2)])
    assert [each.rows for each in taken.parts] == [(2, 4), (1, 2)]
    assert taken.num_rows == 3


def test_a_divided_sum_has_its_bias_once():
    bias = (TensorSpec("a.bias", (4,)),)
    spec = WeightSpec("w", (TensorSpec("a.weight", (4, 4)),), bias)
    assert [take_columns(spec, (0, 2), rank).biases for rank in range(2)] == [bias, ()]
    assert take_rows(spec, [(2, 4)]).biases[0].rows == (2, 4)
