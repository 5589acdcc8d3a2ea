"""The ingress's EngineClient: a control call by handle, tokens by the token channel."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from itertools import chain
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.exposition import merge_expositions
from deployments.master.client import MasterClient
from deployments.replica_model import ReplicaModel
from deployments.replica_search import StreamLimits
from deployments.resumption_figures import ResumptionFigures
from deployments.role_pool import RolePool
from deployments.stream_runner import StreamRunner
from deployments.token_stream.listener import TokenListener
from rtp_serve.engine.cache_answers import CacheStats, Pinned, Trimmed
from rtp_serve.engine.client import Reloaded, ServedModel
from rtp_serve.engine.request import Request, SequenceDelta
from rtp_serve.errors import EngineDead, NoKVTiers, NoMaster, ReloadFailed, RtpServeError
from rtp_serve.routing.standing import FleetStanding
from rtp_serve.routing.types import Role

_STATUS_TIMEOUT_S = 10.0
# Who scrapes figures waits no longer for a replica that hangs.
_FIGURES_TIMEOUT_S = 3.0
# A large model is read for minutes, and before it the streams on an older version end.
_RELOAD_TIMEOUT_S = 3600.0


class ReplicaClient:
    """Runs requests on replicas; belongs to one event loop."""

    def __init__(
        self,
        handle: DeploymentHandle,
        listener: TokenListener,
        limits: StreamLimits,
        helpers: Sequence[DeploymentHandle] = (),
        master: MasterClient | None = None,
        model: ReplicaModel | None = None,
        streaming: RolePool | None = None,
    ) -> None:
        """`helpers` lead to engines that need run no streams, as prefill replicas: they are
        reloaded, asked for figures and told of caches like the others, and need not be there.
        Without `master` Serve chooses the replicas. `model` is theirs, of `handle`. `streaming` run
        streams, by default the replicas behind `handle`."""
        self._handle = handle
        self._helpers = helpers
        self._master = master
        self._figures = ResumptionFigures()
        streaming = streaming or RolePool(Role.MIXED, handle)
        self._streams = StreamRunner(streaming, listener, limits, self._figures, master)
        self._model = model or ReplicaModel(handle, limits.replica_timeout_s)

    @property
    def num_calls(self) -> int:
        """Control calls of streams that are open."""
        return self._streams.num_calls

    def generate(self, request: Request) -> AsyncGenerator[SequenceDelta, None]:
        return self._streams.generate(request)

    async def served_model(self) -> ServedModel:
        return await self._model.get()

    async def reload(self) -> list[Reloaded]:
        results = await self._ask_all("reload", _RELOAD_TIMEOUT_S)
        failed = [result for result in results if isinstance(result, Exception)]
        if failed:
            reasons = "; ".join(map(_reason, failed))
            raise ReloadFailed(
                f"{len(failed)} of {len(results)} replicas go on with the weights they had: "
                f"{reasons}"
            )
        return results

    async def cache_stats(self) -> list[CacheStats]:
        return await self._broadcast("cache_stats")

    async def trim_cache(self, num_bytes: int) -> list[Trimmed]:
        return await self._ask_stores("trim_cache", num_bytes)

    async def pin_prefix(
        self, token_ids: Sequence[int], cache_salt: str, ttl_s: float
    ) -> list[Pinned]:
        return await self._ask_stores("pin_prefix", tuple(token_ids), cache_salt, ttl_s)

    async def fleet_standing(self) -> FleetStanding:
        if self._master is None:
            raise NoMaster
        return await self._master.standing()

    async def _ask_stores(self, method: str, *arguments: Any) -> list[Any]:
        """The answers of one replica of each node's store. Raises NoKVTiers or EngineDead."""
        replicas = one_of_each_store(await self.cache_stats())
        if not replicas:
            raise NoKVTiers
        answers = await self._broadcast(method, replicas, *arguments)
        by_store = [answer for answer in answers if answer is not None]
        if not by_store:
            raise EngineDead("the replicas that were to ask their stores are gone")
        return by_store

    async def check_health(self) -> None:
        if all(isinstance(each, Exception) for each in await self._ask("check_health")):
            raise EngineDead("no replica answers")

    async def metrics_text(self) -> str:
        """The streams' figures, and those of the replicas that answer."""
        try:
            texts = await self._broadcast("metrics_text", timeout_s=_FIGURES_TIMEOUT_S)
        except EngineDead:
            texts = []
        routing = self._master.figures.render() if self._master is not None else ""
        return self._figures.render() + routing + merge_expositions(dict(texts))

    async def _broadcast(
        self, method: str, *arguments: Any, timeout_s: float = _STATUS_TIMEOUT_S
    ) -> list[Any]:
        """The answers of the replicas that answer. Raises EngineDead when none does."""
        results = await self._ask_all(method, timeout_s, *arguments)
        answers = [result for result in results if not isinstance(result, Exception)]
        if not answers:
            raise EngineDead("no replica answers")
        return answers

    async def _ask_all(self, method: str, timeout_s: float, *arguments: Any) -> list[Any]:
        """What each replica and helper returns or raises. Raises EngineDead when there is no
        replica to ask."""
        own, *others = await asyncio.gather(
            *(
                self._ask(method, *arguments, timeout_s=timeout_s, handle=handle)
                for handle in (self._handle, *self._helpers)
            ),
            return_exceptions=True,
        )
        if isinstance(own, BaseException):
            raise own
        helped = [each for each in others if not isinstance(each, BaseException)]
        return [*own, *chain.from_iterable(helped)]

    async def _ask(
        self,
        method: str,
        *arguments: Any,
        timeout_s: float = _STATUS_TIMEOUT_S,
        handle: DeploymentHandle | None = None,
    ) -> list[Any]:
        """What each of a deployment's replicas returns or raises."""
        try:
            response = (handle or self._handle).broadcast(method, *arguments)
            results = await response.results_async(timeout_s=timeout_s, return_exceptions=True)
        except (RayError, RayServeException, TimeoutError) as error:
            raise EngineDead(f"no replica answers: {type(error).__name__}") from error
        if not results:
            raise EngineDead("no replica answers")
        return list(results)


def one_of_each_store(stats: Sequence[CacheStats]) -> frozenset[str]:
    """Replicas, one for each store, that can ask it: rather one that has an answer from it now."""
    chosen: dict[str, CacheStats] = {}
    for each in stats:
        if each.tiers is None:
            continue
        if each.tiers.store not in chosen or each.tiers.stats.is_answering:
            chosen[each.tiers.store] = each
    return frozenset(each.replica for each in chosen.values())


def _reason(error: Exception) -> str:
    """Without the traceback that Ray puts into the text."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return cause.message if isinstance(cause, RtpServeError) else type(cause).__name__
