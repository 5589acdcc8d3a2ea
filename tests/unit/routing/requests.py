"""What tests of routing ask with."""

from typing import Any

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.routing.types import RequestFeatures, WorkerId, WorkerStatus


def keys(*names: object) -> tuple[BlockHash, ...]:
    return tuple(BlockHash(str(name).encode()) for name in names)


def make_request(request_id: str = "r", num_tokens: int = 64, **fields: Any) -> RequestFeatures:
    """Without blocks, unless told otherwise."""
    fields = {"block_hashes": (), "arrival_s": 0.0, "max_new_tokens": 16} | fields
    return RequestFeatures(request_id, num_tokens, **fields)


def make_status(worker: str = "w0", epoch: int = 1, **fields: Any) -> WorkerStatus:
    """Of a worker with room."""
    fields = {"num_blocks": 1000, "num_free_blocks": 1000} | fields
    return WorkerStatus(WorkerId(worker), epoch, **fields)
