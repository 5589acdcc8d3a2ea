"""A follower's process: its plan comes on standard input.

Ctrl-C in a terminal is for the leader, which ends its followers.
"""

import signal
import sys

import msgspec

from rtp_serve.observability.logging import configure_logging
from rtp_serve.worker.ranks.joining import follow
from rtp_serve.worker.ranks.plan import RankPlan


def main() -> None:
    """Follow until the leader ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure_logging()
    follow(msgspec.msgpack.decode(sys.stdin.buffer.read(), type=RankPlan))


if __name__ == "__main__":
    main()
