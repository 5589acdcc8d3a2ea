"""The ops in plain torch: what the kernels are tested against, and what runs where they are not.

Any device. Arithmetic in fp32, rounded once to the type of the inputs. Not batch-invariant.
"""

from collections.abc import Sequence

import torch

from rtp_serve.ops.tensor import Device, Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    inverse_rms = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * inverse_rms * weight.float()).to(x.dtype)


def rotary(
    query: Tensor, key: Tensor, positions: Tensor, cos_sin: Tensor, sections: Sequence[int] = ()
) -> None:
    if positions.dim() == 1:
        angles = cos_sin[positions]
    else:
        owner = torch.repeat_interleave(torch.tensor(list(sections), device=cos_sin.device))
        rows = positions[torch.cat((owner, owner))].T
        angles = cos_sin.gather(0, rows)
    cosine, sine = angles[:, None, :].chunk(2, dim=-1)
    for heads in (query, key):
        low, high = heads.float().chunk(2, dim=-1)
        heads.copy_(torch.cat((low * cosine - high * sine, high * cosine + low * sine), dim=-1))


def silu_and_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)


def route(logits: Tensor, top_k: int, is_renormalized: bool) -> tuple[Tensor, Tensor]:
    ids = logits.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = logits.softmax(dim=-1).gather(1, ids)
    if is_renormalized:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return ids.int(), weights


def sigmoid(x: Tensor) -> Tensor:
    return torch.sigmoid(x)


def experts(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """gate_up [num_experts * 2 * intermediate_size, hidden_size] and down, plain; ids that are not
    theirs are of other ranks."""
    hidden_size, size = x.shape[1], down.shape[1]
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in range(len(down) // hidden_size):
        rows, places = torch.nonzero(ids == expert, as_tuple=True)
        if not len(rows):
            continue
        own = slice(expert * 2 * size, (expert + 1) * 2 * size)
        hidden = silu_and_mul(x[rows] @ gate_up[own].T)
        outputs = hidden.float() @ down[expert * hidden_size :][:hidden_size].float().T
        out[rows] += weights[rows, places, None] * outputs
    return out


def write_kv(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
) -> None:
    used = slots >= 0
    block_size = key_cache.shape[2]
    blocks = slots[used] // block_size
    offsets = slots[used] % block_size
    key_cache[blocks, :, offsets] = key[used]
    value_cache[blocks, :, offsets] = value[used]


def gather_kv(cache: Tensor, block_ids: Tensor) -> Tensor:
    return cache[block_ids]


def scatter_kv(data: Tensor, cache: Tensor, block_ids: Tensor) -> None:
    cache[block_ids] = data


def paged_attention(  # noqa: PLR0913
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    scale: float,
    window: int = 0,
    ancestor_mask: Tensor | None = None,
) -> Tensor:
    out = torch.zeros(query.shape, dtype=query.dtype, device=query.device)
    starts = query_start_loc.tolist()
    for seq, (start, end, seq_len) in enumerate(
        zip(starts, starts[1:], seq_lens.tolist(), strict=False)
    ):
        key = _gather(key_cache, block_tables[seq], seq_len)
        value = _gather(value_cache, block_tables[seq], seq_len)
        masks = None if ancestor_mask is None else ancestor_mask[start:end]
        visible = _visible(end - start, seq_len, window, masks, query.device)
        out[start:end] = _attend(query[start:end], key, value, visible, scale)
    return out


def _gather(cache: Tensor, block_table: Tensor, seq_len: int) -> Tensor:
    """[num_kv_heads, seq_len, head_dim], fp32."""
    num_blocks = -(-seq_len // cache.shape[2])
    blocks = cache[block_table[:num_blocks].long()].transpose(0, 1)
    return blocks.reshape(cache.shape[1], -1, cache.shape[3])[:, :seq_len].float()


def _visible(
    query_len: int, seq_len: int, window: int, masks: Tensor | None, device: Device
) -> Tensor:
    """[query_len, seq_len], bool. A window keeps the last `window` of the keys a row would see."""
    context = seq_len - query_len
    keys = torch.arange(seq_len, device=device)
    own = torch.arange(context, seq_len, device=device)
    visible = keys[None, :] <= own[:, None]
    if masks is not None:
        bits = (masks[:, None] >> (keys - context).clamp(0, 63)) & 1
        in_tree = (keys < context) | ((bits == 1) & (keys - context < 64))
        visible = torch.where(masks[:, None] == 0, visible, in_tree)
    if window > 0:
        later = visible.flip(1).cumsum(1).flip(1)
        visible = visible & (later <= window)
    return visible


def _attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float) -> Tensor:
    """query [n, num_heads, head_dim]; key, value [num_kv_heads, seq_len, head_dim]."""
    group = query.shape[1] // key.shape[0]
    heads = query.float().transpose(0, 1)
    key, value = key.repeat_interleave(group, 0), value.repeat_interleave(group, 0)
    scores = (heads @ key.transpose(1, 2) * scale).masked_fill(~visible, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(0, 1).to(query.dtype)
