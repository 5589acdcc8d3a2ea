"""What prefills cost on this replica, measured before it takes requests: the Master's start.

The steps go past the scheduler, to the executor: nothing of them is counted, registered with the
prefix cache or stored in tiers, and their blocks are as free afterwards as before.
"""

from dataclasses import dataclass
from random import Random

import numpy as np

from rtp_serve.clock import Clock
from rtp_serve.engine.executor import Executor
from rtp_serve.engine.output import Int32Array, NewSequence, SchedulerOutput
from rtp_serve.engine.sampling_params import SamplingParams
from rtp_serve.engine.version import ModelVersion
from rtp_serve.kv_cache.block_pool import BlockPool
from rtp_serve.routing.types import PrefillPoint

_WARM_UP = (16, 0)
_PREFILLS = ((64, 0), (256, 0), (64, 256))
"""(new tokens, context tokens): enough to tell the three coefficients of a prediction apart."""

_MAX_S = 1.0
"""Of all. One that would take longer by what the last one took is left out, as are those after it;
the first, which nothing is known of, is short."""

_SEQ_ID = 0
"""The engine's own begin at 1."""


@dataclass(frozen=True, slots=True)
class SelfBenchmark:
    """Of an engine in which nothing runs; for its thread."""

    executor: Executor
    pool: BlockPool
    block_size: int
    version: ModelVersion
    max_step_tokens: int
    clock: Clock
    rng: Random

    def measure(self) -> tuple[PrefillPoint, ...]:
        """Of prompts of random tokens, the shortest first; none if the model is very slow or there
        is no room. Raises what the executor raises."""
        started_s = self.clock.monotonic()
        points: list[PrefillPoint] = []
        for new, context in (_WARM_UP, *_PREFILLS):
            spent_s = self.clock.monotonic() - started_s
            last = points[-1] if points else PrefillPoint(1, 0, 0.0)
            expected_s = new * last.duration_s / last.num_new_tokens
            if spent_s + expected_s > _MAX_S or not self._has_room(new + context):
                break
            points.append(PrefillPoint(new, context, self._run(new, context)))
        return tuple(points[1:])

    def _has_room(self, num_tokens: int) -> bool:
        fits = num_tokens < self.version.model.max_model_len
        return fits and self._num_blocks(num_tokens) <= self.pool.num_free

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _run(self, num_new: int, num_context: int) -> float:
        """Seconds that a prompt takes. Its context is whatever is in its blocks, which takes as
        long as any other."""
        vocab_size, num_tokens = self.version.model.vocab_size, num_new + num_context
        token_ids = np.array([self.rng.randrange(vocab_size) for _ in range(num_tokens)], np.int32)
        block_ids = self.pool.allocate(self._num_blocks(num_tokens))
        started_s = self.clock.monotonic()
        try:
            for first in range(num_context, num_tokens, self.max_step_tokens):
                end = min(first + self.max_step_tokens, num_tokens)
                scheduled = self._step(token_ids, block_ids, first, end, first == num_context)
                self.executor.submit(scheduled).result()
            return self.clock.monotonic() - started_s
        finally:
            self.pool.release(block_ids)
            nothing = ()
            self.executor.submit(
                SchedulerOutput(
                    0, nothing, nothing, nothing, nothing, nothing, finished_seq_ids=(_SEQ_ID,)
                )
            ).result()

    def _step(
        self, token_ids: Int32Array, block_ids: list[int], first: int, end: int, is_new: bool
    ) -> SchedulerOutput:
        """Computes tokens `first` to `end` of a prompt."""
        new = NewSequence(
            seq_id=_SEQ_ID,
            token_ids=token_ids,
            num_prompt_tokens=len(token_ids),
            block_ids=(),
            sampling=SamplingParams(max_tokens=1, temperature=0.0),
            seed=0,
            version=self.version.number,
        )
        return SchedulerOutput(
            step=0,
            seq_ids=(_SEQ_ID,),
            num_computed_tokens=(first,),
            num_scheduled_tokens=(end - first,),
            is_sampled=(end == len(token_ids),),
            new_block_ids=(tuple(block_ids) if is_new else (),),
            new_seqs=(new,) if is_new else (),
        )
