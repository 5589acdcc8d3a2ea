"""What a follower is told when it is started, and who starts it."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Protocol

import msgspec

from rtp_serve.worker.ranks.connections import Address


class Transport(StrEnum):
    """How ranks reach each other within a step."""

    SHARED_MEMORY = "shared_memory"
    """Of one node."""

    GLOO = "gloo"
    """Over TCP."""


class Meeting(msgspec.Struct, frozen=True):
    """Where the ranks of a group find each other."""

    transport: Transport
    session: str
    """A name that no other group of ranks has."""

    host: str = ""
    port: int = 0
    """Of gloo's store, in the leader's process."""


class Seat(msgspec.Struct, frozen=True):
    """A rank's place among those of its node."""

    place: int
    num_places: int


class RankPlan(msgspec.Struct, frozen=True):
    """How a follower joins. It has a key in it: not for logs."""

    rank: int
    world_size: int
    seat: Seat

    config: dict[str, Any]
    """An EngineConfig's fields."""

    leader: Address
    key: bytes
    """Of connections to the leader."""

    meeting: Meeting


class RankProcess(Protocol):
    """A follower's process, as who started it sees it."""

    @property
    def is_alive(self) -> bool: ...

    def kill(self) -> None:
        """End it, whatever it does. It may have ended already."""
        ...

    def dismiss(self) -> None:
        """It has nothing more to do: see that it is gone, with patience for it to go by itself."""
        ...


class RankStarter(Protocol):
    """Knows where ranks may run."""

    @property
    def nodes(self) -> Sequence[str]:
        """The node of each rank; the first is this process's."""
        ...

    @property
    def host(self) -> str:
        """Under which the other ranks reach this process."""
        ...

    def start(self, plan: RankPlan) -> RankProcess:
        """Start the follower, and return at once."""
        ...
