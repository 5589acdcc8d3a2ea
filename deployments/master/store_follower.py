"""What a replica tells the Master of its node's KV store, beside its own blocks.

    store ◄── what is new since then? ── follower ── with the next report ──► Master
                                             └────── up to here I know it ◄─────┘

Every replica of the node does so. What the Master knows is what all of them ask from, so mostly one
has news, and after a restart of the Master or the store there is no gap to be found.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace

from rtp_serve.kv_store import tier_counts
from rtp_serve.kv_store.client import TierNews, TierPosition
from rtp_serve.routing.block_stream import Tier
from rtp_serve.routing.block_teller import tell_store
from rtp_serve.routing.report import WorkerReport

PERIOD_S = 1.0
"""Between two questions to the store."""

AskStore = Callable[[Mapping[tier_counts.Tier, TierPosition]], tuple[TierNews, ...]]
"""`StoreClient.news`: it may wait."""


class StoreFollower:
    """Belongs to one event loop."""

    def __init__(self, store: str, ask: AskStore) -> None:
        self.known: Mapping[Tier, TierPosition] | None = None
        """To the Master; None before it has said."""

        self._store = store
        self._ask = ask
        self._news: tuple[TierNews, ...] = ()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def has_news(self) -> bool:
        return bool(self._news)

    def added_to(self, report: WorkerReport) -> WorkerReport:
        """With what there is to tell, once."""
        if not self._news:
            return report
        deltas, pages = tell_store(self._store, self._news)
        self._news = ()
        return replace(report, deltas=report.deltas + deltas, pages=report.pages + pages)

    async def _run(self) -> None:
        while True:
            if self.known is not None and not self._news:
                known = {tier_counts.Tier(tier.value): each for tier, each in self.known.items()}
                self._news = await asyncio.to_thread(self._ask, known)
            await asyncio.sleep(PERIOD_S)
