"""Where a prompt is computed: on the decode replica itself, or on a prefill replica.

    local    wait_D + prefill(n_eff, D) + κ · n_run · ΔITL
    remote   wait_P + prefill(n_eff, P) + exposed transfer + round trip

in seconds until the first token; the smaller one is taken. `n_eff` is what the prompt has beyond
each side's cached blocks. The third term of `local` is what the sequences that run there lose:
each of `n_run` has its tokens later by ΔITL in all, and κ says how many seconds of this prompt's
time one second of theirs is worth; 0 while they keep their promise anyway.
"""

from dataclasses import dataclass
from enum import StrEnum


class ChoiceReason(StrEnum):
    """Why there."""

    LOCAL_FASTER = "local_faster"
    REMOTE_FASTER = "remote_faster"
    TOO_SHORT = "too_short"
    """What is to be computed is not worth asking for."""

    NO_PREFILL_REPLICA = "no_prefill_replica"
    CIRCUIT_OPEN = "circuit_open"
    """All prefill replicas have failed too often lately."""

    UNSUPPORTED = "unsupported"
    """The request is of a kind that is not disaggregated."""


@dataclass(frozen=True, slots=True)
class LocalTimes:
    """Of the decode replica."""

    wait_s: float
    """Until it would begin."""

    prefill_s: float
    num_running: int = 0
    """Sequences that decode there."""

    itl_increase_s: float = 0.0
    """ΔITL: by how much later each of them has its tokens, over the whole prefill."""


@dataclass(frozen=True, slots=True)
class RemoteTimes:
    """Of the best prefill replica."""

    wait_s: float
    prefill_s: float
    exposed_transfer_s: float = 0.0
    """From the last layer computed to the last layer copied."""

    round_trip_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, and the numbers it was chosen by; for the log and the metric."""

    reason: ChoiceReason
    local_s: float
    """As above, with its third term."""

    interference_s: float
    """That term."""

    remote_s: float | None = None
    """None if there is nobody to ask."""

    @property
    def is_local(self) -> bool:
        return self.reason is not ChoiceReason.REMOTE_FASTER


@dataclass(frozen=True, slots=True)
class ChoicePolicy:
    """What is fixed."""

    kappa: float = 1.0
    """Seconds of a prompt's time that one second of a running sequence's is worth."""

    min_tokens: int = 32
    """Fewer are computed locally, whatever is predicted."""

    def choose(
        self,
        num_tokens: int,
        local: LocalTimes,
        remote: RemoteTimes | None,
        obstacle: ChoiceReason | None = None,
    ) -> Choice:
        """`num_tokens` are to be computed, if locally. `remote` of None is nobody to ask, and
        `obstacle` another reason for computing locally. Equal times are local."""
        interference_s = self.kappa * local.num_running * local.itl_increase_s
        local_s = local.wait_s + local.prefill_s + interference_s
        remote_s = None if remote is None else _total_s(remote)
        reason = obstacle or self._reason(num_tokens, local_s, remote_s)
        return Choice(reason, local_s, interference_s, remote_s)

    def _reason(self, num_tokens: int, local_s: float, remote_s: float | None) -> ChoiceReason:
        if num_tokens < self.min_tokens:
            return ChoiceReason.TOO_SHORT
        if remote_s is None:
            return ChoiceReason.NO_PREFILL_REPLICA
        if local_s <= remote_s:
            return ChoiceReason.LOCAL_FASTER
        return ChoiceReason.REMOTE_FASTER


def _total_s(remote: RemoteTimes) -> float:
    return remote.wait_s + remote.prefill_s + remote.exposed_transfer_s + remote.round_trip_s
