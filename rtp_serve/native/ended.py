"""What the compiled waits raise, as errors of this package."""

from rtp_serve.errors import ChannelClosed, RankError, RankLate, RankLost, RanksAborted

_WRITER = -1
_KINDS: dict[str, tuple[type[RankError], str]] = {
    "lost": (RankLost, "has died or left"),
    "timeout": (RankLate, "did not come in time"),
    "aborted": (RanksAborted, "has ended the work of all ranks"),
    "closed": (ChannelClosed, "has closed"),
}


def error_of(ended: Exception) -> RankError:
    """Of the compiled module's `Ended`; its rank is None where it is the writer's doing."""
    how, rank = ended.args
    kind, what = _KINDS[how]
    if rank == _WRITER:
        return kind(f"the writer of steps {what}")
    return kind(f"rank {rank} {what}", rank)
