"""What a decode replica knows of times: its own, and those of prefill replicas, as of late."""

import logging
from dataclasses import dataclass

from deployments.kv_transfer.peers import ANYBODY, Peers
from deployments.kv_transfer.wire import PrefillLoad
from rtp_serve.disaggregation.choice import (
    Choice,
    ChoicePolicy,
    ChoiceReason,
    LocalTimes,
    RemoteTimes,
)
from rtp_serve.engine.async_engine import AsyncEngine
from rtp_serve.engine.request import Request

logger = logging.getLogger("ray.serve")

_ROUND_TRIP_S = 0.005
"""Of a control call, measured with idle replicas; a busy one shows in its wait."""

_WEIGHT = 0.2
"""Of the newest measurement."""


@dataclass(slots=True)
class _Peer:
    token_s: float
    num_tokens_behind: int


class Predictions:
    """For one event loop."""

    def __init__(self, engine: AsyncEngine, policy: ChoicePolicy, peers: Peers) -> None:
        """`peers` are those that can be asked."""
        self._engine = engine
        self._policy = policy
        self._peers = peers
        self._known: dict[str, _Peer] = {}
        self._num_tokens_out = 0
        self._exposed_s = 0.0

    def choose(
        self, request: Request, obstacle: ChoiceReason | None = None, preferred: str = ANYBODY
    ) -> Choice:
        """Where the prompt is computed, by what is known now of this replica and of the one that
        would be asked: `preferred`, or the soonest. What is not known takes no time."""
        block_size = self._engine.block_size
        num_cached = self._engine.num_cached_blocks(request) * block_size
        num_tokens = len(request.prompt_token_ids) - num_cached
        stats = self._engine.stats
        prefill_s = num_tokens * stats.token_s
        local = LocalTimes(
            wait_s=stats.num_tokens_behind * stats.token_s,
            prefill_s=prefill_s,
            num_running=stats.num_running,
            itl_increase_s=prefill_s,
        )
        remote = self._remote(num_tokens, preferred)
        choice = self._policy.choose(num_tokens, local, remote, obstacle)
        logger.debug("prefill of %s, %d tokens: %s", request.request_id, num_tokens, choice)
        return choice

    def begun(self, num_tokens: int) -> None:
        """So many tokens were asked of prefill replicas."""
        self._num_tokens_out += num_tokens

    def ended(self, num_tokens: int) -> None:
        """They are computed, or nobody waits for them any more."""
        self._num_tokens_out -= num_tokens

    def heard(self, replica: str, load: PrefillLoad) -> None:
        """What a prefill replica says of itself."""
        if load.token_s:
            self._known[replica] = _Peer(load.token_s, load.num_tokens_behind)

    def lost(self, replica: str) -> None:
        self._known.pop(replica, None)

    def brought(self, exposed_s: float) -> None:
        """A transfer: what it took beyond the first token."""
        self._exposed_s += _WEIGHT * (exposed_s - self._exposed_s)

    def _remote(self, num_tokens: int, preferred: str) -> RemoteTimes:
        names = self._peers.names
        known = {name: peer for name, peer in self._known.items() if names is None or name in names}
        if preferred in known:
            known = {preferred: known[preferred]}
        if not known:
            return RemoteTimes(0.0, 0.0)
        # Of some it is not said yet who will be asked for them.
        unasked = (self._num_tokens_out - self._peers.total_tokens) / len(names or known)
        times = (
            RemoteTimes(
                max(peer.num_tokens_behind, self._peers.num_tokens(name) + unasked) * peer.token_s,
                num_tokens * peer.token_s,
                self._exposed_s,
                _ROUND_TRIP_S,
            )
            for name, peer in known.items()
        )
        return min(times, key=lambda each: each.wait_s + each.prefill_s)
