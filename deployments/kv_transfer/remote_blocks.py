"""Blocks of a prefill replica whose memory cannot be mapped, as on another node.

They come through Ray's object store, as answers to calls that Serve brings to that very replica.
"""

from collections.abc import Sequence

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from rtp_serve.disaggregation.protocol import Span, TransferKey
from rtp_serve.disaggregation.transport.checksummed import ExportedBlocks, import_blocks
from rtp_serve.disaggregation.transport.parts import KVParts

_TIMEOUT_S = 10.0


class RemoteBlocks:
    """A `BlockSource`."""

    def __init__(
        self, handle: DeploymentHandle, replica: str, key: TransferKey, target: KVParts
    ) -> None:
        self._handle = handle
        self._replica = replica
        self._key = key
        self._target = target

    def copy(self, source_ids: Sequence[int], target_ids: Sequence[int], layers: Span) -> bool:
        exported = self._fetch(tuple(source_ids), layers)
        return exported is not None and import_blocks(self._target, target_ids, layers, exported)

    def is_valid(self) -> bool:
        """What was not fetched may be gone: then `copy` says so."""
        return True

    def _fetch(self, block_ids: tuple[int, ...], layers: Span) -> ExportedBlocks | None:
        response = self._handle.export_blocks.remote(
            self._key, block_ids, layers, replica=self._replica
        )
        try:
            exported: ExportedBlocks | None = response.result(timeout_s=_TIMEOUT_S)
        except (RayError, RayServeException, TimeoutError):
            return None
        return exported
