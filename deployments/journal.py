"""What an ingress notes of a stream so that another replica can go on with it."""

from dataclasses import replace

from rtp_serve.engine.request import FinishReason, Request, SequenceDelta
from rtp_serve.errors import EngineDead, ModelChanged


class EngineFailed(EngineDead):
    """The engine that ran the stream has given all of its streams up."""


class StreamJournal:
    """A request, and what the client has got of each of its sequences."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._emitted: list[list[int]] = [[] for _ in range(request.sampling.n)]
        self._ended: set[int] = set()
        self._fingerprint = ""
        self._resumed: frozenset[int] = frozenset()

    @property
    def rest(self) -> Request:
        """What is still to be generated, for any replica with the model that the stream began on.

        Deltas that are taken from now on are this request's.
        """
        self._resumed = frozenset(i for i, token_ids in enumerate(self._emitted) if token_ids)
        if not self._resumed and not self._ended:
            return self._request
        emitted = tuple(
            None if index in self._ended else tuple(token_ids)
            for index, token_ids in enumerate(self._emitted)
        )
        return replace(self._request, emitted=emitted, fingerprint=self._fingerprint)

    def take(self, delta: SequenceDelta) -> SequenceDelta:
        """Note a delta and return it as the client is to get it.

        Raises EngineFailed for one that says so, ModelChanged for one of another model; then
        nothing of it was noted.
        """
        if delta.finish_reason is FinishReason.ABORT:
            raise EngineFailed(delta.error or "the engine ended the stream")
        if delta.fingerprint:
            if self._fingerprint not in ("", delta.fingerprint):
                raise ModelChanged(
                    f"the stream began with the model {self._fingerprint}; the replica went on "
                    f"with {delta.fingerprint}"
                )
            self._fingerprint = delta.fingerprint
        self._emitted[delta.index] += delta.token_ids
        if delta.finish_reason is not None:
            self._ended.add(delta.index)
        return _continued(delta) if delta.index in self._resumed else delta


def _continued(delta: SequenceDelta) -> SequenceDelta:
    """Without what an earlier attempt has told: the model, and what was cached of the prompt."""
    return replace(
        delta,
        fingerprint="",
        num_cached_tokens=0,
        num_host_tokens=0,
        num_disk_tokens=0,
        num_remote_tokens=0,
    )
