"""All ranks of a model in this process, a thread each."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rtp_serve.clock import WallClock
from rtp_serve.config.engine import CacheConfig, EngineConfig, SchedulerConfig, WeightStoreConfig
from rtp_serve.config.parallel import ParallelConfig
from rtp_serve.engine.output import ModelOutput, SchedulerOutput
from rtp_serve.parallel.in_process import InProcessGroup
from rtp_serve.worker.rank_worker import RankWorker
from tests.worker.engines import MAX_NUM_SEQS


class Ranks:
    """Runs each step on all of them; what they give must be the same."""

    def __init__(self, directory: Path, *, tp: int = 1, ep: int = 1, **config: Any) -> None:
        settings = EngineConfig(
            model=str(directory),
            cache=CacheConfig(num_blocks=128),
            scheduler=SchedulerConfig(max_num_seqs=MAX_NUM_SEQS),
            weight_store=WeightStoreConfig(enable=False),
            parallel=ParallelConfig(tp=tp, ep=ep),
            num_threads=1,
            **config,
        )
        group = InProcessGroup(tp * ep)
        self.workers = [
            RankWorker(settings, group.member(rank), WallClock()) for rank in range(tp * ep)
        ]
        self._threads = ThreadPoolExecutor(tp * ep)
        list(self._threads.map(RankWorker.load, self.workers))

    def execute(self, scheduled: SchedulerOutput) -> ModelOutput:
        first, *others = self._threads.map(lambda rank: rank.execute(scheduled), self.workers)
        for other in others:
            assert other.token_ids.tolist() == first.token_ids.tolist()
            assert other.logprobs == first.logprobs
            assert other.prompt_logprobs == first.prompt_logprobs
            assert other.errors == first.errors
        return first

    def check_invariants(self) -> None:
        for worker in self.workers:
            worker.check_invariants()
