"""What went between an engine's device and the tiers below it."""

from dataclasses import dataclass
from enum import StrEnum


class Tier(StrEnum):
    """Below the device."""

    HOST = "host"
    DISK = "disk"
    REMOTE = "remote"
    """Other nodes' arenas."""


@dataclass(slots=True)
class TierCounts:
    """Blocks since the start."""

    restored: int = 0
    restore_s: float = 0.0
    """Spent restoring them."""

    mismatches: int = 0
    stored: int = 0
    not_stored: int = 0
    """Left out because too many waited already."""
