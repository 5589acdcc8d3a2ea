"""What a replica tells the Master, for as long as it lives.

connecting ── found ──► reports, one at a time ── no answer ──► pause ──► connecting
                          └─ after a restart of the Master all blocks, else what has changed

Nothing that the Master does or fails to do is felt by the engine.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from deployments.master.channel import MasterSilent
from deployments.master.connection import MasterConnection
from deployments.master.names import booked
from deployments.master.store_follower import StoreFollower
from deployments.master.wire import Ended, decode_heard, encode
from rtp_serve.clock import Clock
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.routing.report import Reporter, WorkerReport
from rtp_serve.routing.types import Role, WorkerId

PERIOD_S = 0.05
"""Between two reports while there is news."""

_HEARTBEAT_S = 1.0
_TIMEOUT_S = 2.0
_START_TIMEOUT_S = 15.0
"""The first time the Master's process may have to start."""

_MIN_PAUSE_S, _MAX_PAUSE_S = 0.05, 0.5

logger = logging.getLogger(__name__)


class MasterLink:
    """Belongs to one event loop."""

    def __init__(
        self,
        worker_id: WorkerId,
        reporter: Reporter,
        connection: MasterConnection,
        clock: Clock,
        role: Callable[[], Role],
        prefetch: Callable[[Sequence[BlockHash]], None],
        store: StoreFollower | None = None,
    ) -> None:
        """`role` is that of the moment; the reporter's is passed over. `prefetch` is called with
        chains that are worth having here, and returns at once. `store` is that of the tiers below
        the device."""
        self._worker_id = worker_id
        self._reporter = reporter
        self._connection = connection
        self._clock = clock
        self._role = role
        self._prefetch = prefetch
        self._store = store
        self._told_role: Role | None = None
        self._instance = ""
        self._is_up: bool | None = None  # None: not known yet
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())
        if self._store is not None:
            self._store.start()

    async def close(self) -> None:
        """Leave. A Master that does not hear it finds the replica silent."""
        if self._task is None:
            return
        if self._store is not None:
            await self._store.close()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        with suppress(MasterSilent):
            left = encode(Ended(left=(self._worker_id,)))
            await self._connection.ask("ended", left, timeout_s=_MAX_PAUSE_S)
        self._connection.close()

    async def _run(self) -> None:
        pause_s = _MIN_PAUSE_S
        while True:
            try:
                await self._connection.find()
                while True:
                    await self._report()
                    pause_s = _MIN_PAUSE_S
                    await self._until_due()
            except MasterSilent as error:
                self._down(error)
            # What was in the report may be lost.
            self._reporter.send_all()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    async def _report(self) -> None:
        """Raises MasterSilent."""
        role = self._told_role = self._role()
        report = _named(self._reporter.take(), role)
        if self._store is not None:
            report = self._store.added_to(report)
        data = encode(report)
        heard = decode_heard(await self._connection.ask("report", data, timeout_s=self._timeout_s))
        if heard.needs_snapshot or heard.instance != (self._instance or heard.instance):
            self._reporter.send_all()
        for chain in heard.to_prefetch:
            self._prefetch(chain)
        if self._store is not None:
            self._store.known = heard.tiers
        self._up(heard.instance)

    @property
    def _timeout_s(self) -> float:
        return _START_TIMEOUT_S if self._is_up is None else _TIMEOUT_S

    async def _until_due(self) -> None:
        beat_s = self._clock.monotonic() + _HEARTBEAT_S
        await asyncio.sleep(PERIOD_S)
        while not self._has_news and self._clock.monotonic() < beat_s:
            await asyncio.sleep(PERIOD_S)

    @property
    def _has_news(self) -> bool:
        if self._store is not None and self._store.has_news:
            return True
        return self._reporter.has_news or self._role() is not self._told_role

    # A change of state is one line in the log, however often it is found again.

    def _up(self, instance: str) -> None:
        if self._is_up is False:
            logger.warning("the Master answers again")
        self._instance, self._is_up = instance, True

    def _down(self, error: MasterSilent) -> None:
        if self._is_up is not False:
            logger.warning(
                "the Master does not answer, so requests are routed without it: %s", error
            )
        self._is_up = False


def _named(report: WorkerReport, role: Role) -> WorkerReport:
    """With the worker's role, and the requests' names as the Master knows them. One that has
    switched may have requests of its former role; what runs streams has names that stay the same.
    """
    status = replace(report.status, role=role)
    if role is Role.MIXED:
        return replace(report, status=status)
    return replace(
        report,
        status=replace(
            status,
            waiting_ids=tuple(map(booked, status.waiting_ids)),
            running_ids=tuple(map(booked, status.running_ids)),
            prefilled=tuple(
                replace(each, request_id=booked(each.request_id)) for each in status.prefilled
            ),
            finished_ids=tuple(map(booked, status.finished_ids)),
        ),
    )
