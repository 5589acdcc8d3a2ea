"""The memory of the KV cache: two layouts of the same blocks."""

import pytest
import torch

from rtp_serve import ops
from rtp_serve.kv_cache.spec import KVCacheSpec, KVFormat
from rtp_serve.kv_cache.tensors import KVCacheTensors

SPEC = KVCacheSpec(num_layers=3, num_kv_heads=2, head_dim=8)


def filled(num_blocks: int = 6, spec: KVCacheSpec = SPEC) -> KVCacheTensors:
    """Every element differs from its neighbours."""
    cache = KVCacheTensors(spec, num_blocks)
    for index in range(spec.num_layers):
        for part in cache.layer(index):
            part.copy_(torch.randn(part.shape))
    return cache


@pytest.mark.parametrize(
    ("format_", "dtype"), [(KVFormat.BF16, torch.bfloat16), (KVFormat.FP32, torch.float32)]
)
def test_memory_starts_as_zeros_in_the_device_layout(format_: KVFormat, dtype: torch.dtype):
    spec = KVCacheSpec(num_layers=2, num_kv_heads=3, head_dim=8, format=format_)
    cache = KVCacheTensors(spec, 5)
    for index in range(2):
        for part in cache.layer(index):
            assert part.shape == (5, 3, 16, 8)
            assert part.dtype == dtype
            assert part[0].is_contiguous()
            assert not part.any()


def test_layers_do_not_overlap():
    cache = KVCacheTensors(SPEC, 4)
    for index in range(3):
        key, value = cache.layer(index)
        key.fill_(2 * index + 1)
        value.fill_(2 * index + 2)
    constants = [int(part.unique()) for index in range(3) for part in cache.layer(index)]
    assert constants == [1, 2, 3, 4, 5, 6]


def test_export_is_the_canonical_layout_in_the_order_asked_for():
    """Of what ops wrote into the layers' slots."""
    cache = KVCacheTensors(SPEC, 6)
    tokens = torch.randn(3, 2, 6 * 16, 2, 8).to(torch.bfloat16)
    for index in range(3):
        ops.write_kv(*tokens[index], *cache.layer(index), torch.arange(6 * 16))
    data = cache.export_blocks([4, 1])
    assert data.shape == (2, 3, 2, 2, 16, 8)
    assert data.is_contiguous()
    assert data[0].nbytes == SPEC.block_bytes
    blocks = tokens.unflatten(2, (6, 16)).transpose(3, 4)
    for i, block_id in enumerate((4, 1)):
        assert torch.equal(data[i], blocks[:, :, block_id])


def test_export_is_a_copy():
    cache = filled()
    data = cache.export_blocks([2])
    before = data.clone()
    cache.layer(0)[0].zero_()
    assert torch.equal(data, before)


def test_import_into_other_blocks_of_another_cache_restores_the_content():
    source, target = filled(), filled(9)
    untouched = target.export_blocks([0, 2, 3, 4, 5, 6, 7])
    target.import_blocks([8, 1], source.export_blocks([3, 5]))
    assert torch.equal(target.export_blocks([8, 1]), source.export_blocks([3, 5]))
    assert torch.equal(target.export_blocks([0, 2, 3, 4, 5, 6, 7]), untouched)


def test_no_blocks_move_nothing():
    cache = filled()
    data = cache.export_blocks([])
    assert data.shape[0] == 0
    cache.import_blocks([], data)


def test_copy_block_copies_every_layer():
    cache = filled()
    source = cache.export_blocks([2])
    cache.copy_block(2, 5)
    assert torch.equal(cache.export_blocks([5]), source)
    assert torch.equal(cache.export_blocks([2]), source)


def test_import_of_another_shape_or_type_is_refused():
    cache = filled()
    data = cache.export_blocks([1, 2])
    with pytest.raises(ValueError, match=r"data must be \[1, 3, 2, 2, 16, 8\] torch.bfloat16"):
        cache.import_blocks([1], data)
    with pytest.raises(ValueError, match=r"got .* torch.float32"):
        cache.import_blocks([1, 2], data.float())


@pytest.mark.parametrize("block_id", [-1, 6])
def test_a_block_outside_the_cache_is_refused(block_id: int):
    cache = filled()
    with pytest.raises(ValueError, match=f"from 0 to 5, got {block_id}"):
        cache.export_blocks([0, block_id])
    with pytest.raises(ValueError, match=f"from 0 to 5, got {block_id}"):
        cache.copy_block(0, block_id)


def test_memory_of_any_size_starts_as_zeros():
    large = KVCacheTensors(SPEC, num_blocks=12_000)
    assert large.data.nbytes > 16 << 20
    assert not large.data.any()
    large.layer(2)[1][11_999].fill_(1)
    assert large.data.sum() == SPEC.num_kv_heads * SPEC.block_size * SPEC.head_dim
