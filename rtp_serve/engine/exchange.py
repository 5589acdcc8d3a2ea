"""An engine's dealings with others: prompts that they compute for it, and it for them."""

from collections import Counter
from dataclasses import dataclass

from rtp_serve.disaggregation.memory import KVMemory
from rtp_serve.engine.publishing import Publishing
from rtp_serve.engine.receiving import Receiving


@dataclass(frozen=True, slots=True)
class Exchange:
    """Of one engine; for its thread."""

    receiving: Receiving
    """The scheduler's."""

    publishing: Publishing

    memory: KVMemory | None = None
    """Where the blocks are; None if this process does not see it."""

    @property
    def is_active(self) -> bool:
        """Whether blocks are held for anybody."""
        return self.receiving.is_active or self.publishing.is_active

    def holders(self) -> Counter[int]:
        """Every block that is held, and how often. For tests and idle debug runs."""
        return self.receiving.holders() + self.publishing.holders()
