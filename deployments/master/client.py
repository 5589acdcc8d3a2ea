"""How an ingress has its requests routed.

    attempt ─► Master, 50 ms ─► Route ─► replica
                  ✗ silent ─► the same library on its last snapshot ─► Route ─► replica
                                  ✗ knows of nobody ─► Serve's router

While the Master is silent nobody waits for it: it is looked for beside the requests, and asked
again when it has answered.
"""

import asyncio
import logging
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from math import ceil

from deployments.live_replicas import Replicas
from deployments.master.channel import MasterSilent
from deployments.master.connection import MasterConnection
from deployments.master.figures import RoutingFigures
from deployments.master.stand_in import StandIn
from deployments.master.wire import (
    Ended,
    Ruling,
    SnapshotPart,
    decode_part,
    decode_ruling,
    decode_standing,
    encode,
)
from deployments.replica_model import ReplicaModel
from rtp_serve.clock import Clock
from rtp_serve.engine.request import Request
from rtp_serve.engine.request_check import max_output_tokens
from rtp_serve.errors import EngineDead, MasterUnavailable, Overloaded
from rtp_serve.routing.standing import FleetStanding
from rtp_serve.routing.types import Outcome, RequestFeatures, WorkerId

ANSWER_TIMEOUT_S = 0.05
REFRESH_S = 3.0
"""Between two snapshots."""

REPORTS_S = 3.0
"""A new Master has heard of all replicas that there are after so long, or they are gone."""

_MODEL_REFRESH_S = 10.0
_SNAPSHOT_TIMEOUT_S = 2.0
_START_TIMEOUT_S = 15.0
"""The first time the Master's process may have to start."""

_FIGURES_TIMEOUT_S = 3.0
_MIN_PAUSE_S, _MAX_PAUSE_S = 0.05, 1.0

_MIDDLE_PRIORITY = 50
_MAX_PRIORITY = 100

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Route:
    """Where an attempt goes."""

    request_id: str
    """Under which it is booked."""

    replica: str
    """Runs the stream."""

    prefill: str
    """Computes the prompt, if the replica that runs the stream has others do that."""


class MasterClient:
    """Belongs to one event loop."""

    def __init__(
        self,
        connection: MasterConnection,
        stand_in: StandIn,
        model: ReplicaModel,
        live: Replicas,
        clock: Clock,
    ) -> None:
        """`live` are the replicas that run streams."""
        self.figures = RoutingFigures()
        self._connection = connection
        self._stand_in = stand_in
        self._model = model
        self._live = live
        self._clock = clock
        self._is_up = False
        self._was_up: bool | None = None  # None: not known yet
        self._ready_since_s: float | None = None  # a Master that is not asked yet
        self._silent = asyncio.Event()
        self._seen: frozenset[str] = frozenset()
        self._tasks: tuple[asyncio.Task[None], ...] = ()

    def start(self) -> None:
        self._tasks = (
            asyncio.create_task(self._keep()),
            asyncio.create_task(self._watch_model()),
        )

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._connection.close()

    async def choose(self, request: Request, excluded: Collection[str]) -> Route | None:
        """Where to send an attempt, but not to those excluded; None for wherever Serve wants.

        Raises Overloaded for one that the fleet has no time for.
        """
        features = await self._features(request, excluded)
        if features is None:
            return None
        ruling = await self._ask(features)
        if ruling is None or ruling.outcome is Outcome.NO_WORKER:
            why = "silent" if ruling is None else ruling.reason
            ruling = self._stand_in.schedule(features)
            self._note("snapshot", request, ruling)
            if ruling.outcome is not Outcome.NO_WORKER:
                self.figures.fell_back("snapshot", why)
        else:
            self._note("master", request, ruling)
        return self._route(request, ruling)

    def ended(self, route: Route, *, is_finished: bool) -> None:
        """An attempt is over. Of one that its replica has finished the Master hears from there."""
        self._stand_in.ended(route.request_id)
        if self._is_up and not is_finished:
            self._connection.tell("ended", encode(Ended(lost=(route.request_id,))))

    async def standing(self) -> FleetStanding:
        """What the Master knows. Raises MasterUnavailable."""
        try:
            data = await self._connection.ask("figures", timeout_s=_FIGURES_TIMEOUT_S)
        except MasterSilent as error:
            raise MasterUnavailable(f"the Master does not answer: {error}") from error
        return decode_standing(data)

    # -- one decision --

    async def _features(
        self, request: Request, excluded: Collection[str]
    ) -> RequestFeatures | None:
        try:
            model = await self._model.get()
        except EngineDead:
            return None
        tokens = request.prompt_token_ids
        if len(request.indices) == 1:  # it is computed with what was generated elsewhere
            tokens += request.emitted_tokens(request.indices[0])
        return RequestFeatures(
            request_id=request.request_id,
            num_tokens=len(tokens),
            block_hashes=model.block_hashes(tokens, request.cache_salt),
            arrival_s=self._clock.monotonic(),
            max_new_tokens=max_output_tokens(request, model),
            slo_class=request.slo_class,
            priority=min(max(_MIDDLE_PRIORITY - request.priority, 1), _MAX_PRIORITY),
            tenant=request.cache_salt.partition("/")[0],
            excluded=frozenset(map(WorkerId, {*excluded, *self._withdrawn()})),
        )

    def _withdrawn(self) -> frozenset[str]:
        """Replicas that Serve gives nothing any more, though the Master may not know it yet. Of
        one that has switched it does."""
        names = self._live.all_names
        if names is None:
            return frozenset()
        self._seen |= names
        return self._seen - names

    async def _ask(self, features: RequestFeatures) -> Ruling | None:
        """None if the Master is silent."""
        if not self._is_up:
            return None
        asked_s = self._clock.monotonic()
        try:
            data = await self._connection.ask(
                "schedule", encode(features), timeout_s=ANSWER_TIMEOUT_S
            )
        except MasterSilent as error:
            self._down(error)
            return None
        self.figures.answered(self._clock.monotonic() - asked_s)
        return decode_ruling(data)

    def _note(self, by: str, request: Request, ruling: Ruling) -> None:
        # Reasons of what was not routed have numbers in them.
        reason = ruling.reason if ruling.outcome is Outcome.ROUTED else ruling.outcome.value
        self.figures.decided(by, request.slo_class, ruling.outcome, reason)

    def _route(self, request: Request, ruling: Ruling) -> Route | None:
        """Raises Overloaded."""
        if ruling.outcome is Outcome.REJECTED:
            if request.emitted:  # it was admitted when it began
                self.figures.fell_back("serve", "rejected")
                return None
            raise Overloaded(ruling.reason, ceil(ruling.retry_after_s))
        if ruling.worker_id is None or ruling.decode_worker_id is None:
            self.figures.fell_back("serve", ruling.outcome.value)
            return None
        replica = ruling.decode_worker_id
        route = Route(request.request_id, replica, ruling.worker_id)
        if self._live.names is not None and replica not in self._live.names:
            self.ended(route, is_finished=False)
            self.figures.fell_back("serve", "withdrawn")
            return None
        return route

    # -- beside the requests --

    async def _keep(self) -> None:
        """Have the Master's snapshot, and the Master again when it was silent."""
        pause_s = _MIN_PAUSE_S
        while True:
            try:
                await self._connection.find()
                while True:
                    if await self._refresh():
                        pause_s = _MIN_PAUSE_S
                        await self._rest()
                    else:
                        await asyncio.sleep(_MIN_PAUSE_S)
            except MasterSilent as error:
                self._down(error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    async def _rest(self) -> None:
        """Until the next refresh is due. Raises MasterSilent as soon as a request finds it so."""
        try:
            async with asyncio.timeout(REFRESH_S):
                await self._silent.wait()
        except TimeoutError:
            return
        raise MasterSilent("a request was not answered")

    async def _refresh(self) -> bool:
        """Take the snapshot of a Master that can decide; whether it can. Raises MasterSilent."""
        timeout_s = _START_TIMEOUT_S if self._was_up is None else _SNAPSHOT_TIMEOUT_S
        wanted = encode(self._stand_in.wanted)
        data = await self._connection.ask("snapshot", wanted, timeout_s=timeout_s)
        part = decode_part(data)
        if not part.is_ready or not (self._is_up or self._knows_all(part)):
            return False
        self._stand_in.take(part)
        names = self._live.all_names or frozenset()
        self._seen &= names | self._stand_in.worker_ids
        self._up()
        return True

    def _knows_all(self, part: SnapshotPart) -> bool:
        """Whether the replicas of the last snapshot that are still there have reported to the
        Master, or had the time. Until then that snapshot knows more: what others have cached would
        be computed again."""
        now = self._clock.monotonic()
        if self._ready_since_s is None:
            self._ready_since_s = now
        told = {each.status.worker_id for each in part.snapshot.workers}
        known = self._stand_in.worker_ids & (self._live.all_names or frozenset())
        return known <= told or now - self._ready_since_s >= REPORTS_S

    async def _watch_model(self) -> None:
        """Prompts are hashed as the model's blocks are, which other weights would change."""
        while True:
            await asyncio.sleep(_MODEL_REFRESH_S)
            with suppress(EngineDead):
                await self._model.refresh()

    # A change of state is one line in the log, however often it is found again.

    def _up(self) -> None:
        if self._was_up is False:
            logger.warning("the Master answers again")
        self._is_up = self._was_up = True
        self._silent.clear()

    def _down(self, error: MasterSilent) -> None:
        if self._was_up is not False:
            logger.warning("the Master does not answer, so its last snapshot decides: %s", error)
        self._is_up = self._was_up = False
        self._ready_since_s = None
        self._silent.set()
