"""What an ingress notes of a stream so that another replica can go on with it."""

from dataclasses import replace

from rtp_serve.engine.request import FinishReason, Request, SequenceDelta
from rtp_serve.errors import EngineDead, ModelChanged


class EngineFailed(EngineDead):
    """The engine that ran the stream has given all of its streams up, or has computed wrongly."""


class StreamJournal:
    """A request, and what the client has got of each of its sequences."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._emitted: list[list[int]] = [[] for _ in range(request.sampling.n)]
        self._ended: set[int] = set()
        self._fingerprint = ""
        self._resumed: frozenset[int] = frozenset()
        self._surplus = [0] * request.sampling.n

    @property
    def rest(self) -> Request:
        """What is still to be generated, for any replica with the model that the stream began on.

        It has no `indices` when everything has been.
        """
        if not self._ended and not any(self._emitted):
            return self._request
        emitted = tuple(
            None if index in self._ended else tuple(token_ids)
            for index, token_ids in enumerate(self._emitted)
        )
        return replace(self._request, emitted=emitted, fingerprint=self._fingerprint)

    def follow(self, rest: Request) -> None:
        """Deltas that are taken from now on are of this `rest`, which may be one of earlier."""
        self._resumed = frozenset(i for i, token_ids in enumerate(self._emitted) if token_ids)
        self._surplus = [
            len(token_ids) - len(rest.emitted_tokens(index))
            for index, token_ids in enumerate(self._emitted)
        ]

    def take(self, delta: SequenceDelta) -> SequenceDelta | None:
        """Note a delta and return it as the client is to get it, None if the client has it all.

        Raises EngineFailed for one that says so or has other tokens than the client, ModelChanged
        for one of another model; then nothing of it was noted.
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
        if delta.index in self._ended:
            return None
        news = self._without_surplus(delta)
        self._emitted[delta.index] += news.token_ids
        if delta.finish_reason is not None:
            self._ended.add(delta.index)
        elif not news.token_ids and delta.token_ids:
            return None
        return _continued(news) if delta.index in self._resumed else news

    def _without_surplus(self, delta: SequenceDelta) -> SequenceDelta:
        """Without tokens that the client got of another attempt after this one's `rest`."""
        surplus = self._surplus[delta.index]
        if not surplus:
            return delta
        expected = self._emitted[delta.index][-surplus:]
        num_known = min(surplus, len(delta.token_ids))
        if delta.token_ids[:num_known] != tuple(expected[:num_known]):
            raise EngineFailed("the replica generates other tokens than the one before it")
        self._surplus[delta.index] -= num_known
        return replace(
            delta, token_ids=delta.token_ids[num_known:], logprobs=delta.logprobs[num_known:]
        )


def _continued(delta: SequenceDelta) -> SequenceDelta:
    """Without what an earlier attempt has told: the model, and of the prompt what was cached and
    its logprobs."""
    return replace(
        delta,
        fingerprint="",
        num_cached_tokens=0,
        num_host_tokens=0,
        num_disk_tokens=0,
        num_remote_tokens=0,
        prompt_logprobs=(),
    )
