"""The engine without a server: prompts in, the time of every token out."""

import itertools
import time
from collections.abc import Generator, Sequence

from rtp_serve.build import OpenStore, build_core
from rtp_serve.config.engine import EngineConfig
from rtp_serve.engine.request import Request, SequenceDelta
from rtp_serve.engine.sampling_params import SamplingParams
from rtp_serve.errors import RtpServeError


class InProcessEngine:
    """Greedy generation to a fixed length, all prompts of a call at once."""

    def __init__(self, config: EngineConfig, open_store: OpenStore | None = None) -> None:
        self._core = build_core(config, open_store=open_store)
        self._names = (f"bench-{number}" for number in itertools.count())

    def steps(
        self, prompts: Sequence[tuple[int, ...]], output_tokens: int
    ) -> Generator[list[SequenceDelta], None, None]:
        """One step's deltas at a time, until all are finished and stored.

        May be closed before that, and others begun meanwhile: each goes on with all that there is.
        """
        sampling = SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True)
        requests = [Request(next(self._names), prompt, sampling, 0) for prompt in prompts]
        for request in requests:
            self._core.add_request(request)
        while self._core.has_work:
            deltas = self._core.step()
            for delta in deltas:
                if delta.error:
                    raise RtpServeError(f"the engine failed a request: {delta.error}")
            yield deltas

    def token_times(
        self, prompts: Sequence[tuple[int, ...]], output_tokens: int
    ) -> list[list[float]]:
        """Seconds from the call to each token, a list for each prompt in order of first tokens."""
        times: dict[str, list[float]] = {}
        started_s = time.perf_counter()
        for deltas in self.steps(prompts, output_tokens):
            now_s = time.perf_counter() - started_s
            for delta in deltas:
                times.setdefault(delta.request_id, []).extend([now_s] * len(delta.token_ids))
        return list(times.values())

    @property
    def num_storing(self) -> int:
        """Blocks that are on their way to the host tier."""
        tiers = self._core.tiers
        return tiers.num_storing if tiers is not None else 0

    def close(self) -> None:
        self._core.shutdown()
