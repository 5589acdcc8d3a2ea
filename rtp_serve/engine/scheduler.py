"""Which sequences run in a step, and by how many tokens. Policy only: no tensors, no time.

There are no phases. A sequence is behind by `num_tokens - num_computed_tokens`; each step lets it
catch up within the token budget. Decode is being one token behind; a long prompt is being many
behind; a prefix hit or a preemption only changes how many.

A step is filled in this order:

    1. running sequences, oldest (or most urgent) first, each at least one token
    2. waiting sequences in queue order, as long as seats, blocks and budget last

When blocks run out, the last running sequence is preempted: it gives its blocks back, waits at the
front of the queue, and is computed again later, partly out of the prefix cache.
"""

from collections import Counter
from dataclasses import dataclass, field
from itertools import compress

import numpy as np

from rtp_serve.config.engine import SchedulerConfig
from rtp_serve.engine.output import ModelOutput, NewSequence, SchedulerOutput
from rtp_serve.engine.queue import make_waiting_queue
from rtp_serve.engine.receiving import Receiving
from rtp_serve.engine.request import FinishReason, SequenceDelta, TokenLogprobs
from rtp_serve.engine.sequence import Sequence, SequenceStatus
from rtp_serve.engine.tiering import RestoreStart, Tiering
from rtp_serve.kv_cache.manager import NO_HIT, KVCacheManager, PrefixHit


@dataclass(slots=True)
class SchedulerCounters:
    """Totals since start; whoever reports them takes differences."""

    num_preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    partial_hits: int = 0
    """Of those, tokens of blocks that gave only what they begin with."""


@dataclass(slots=True)
class _StepPlan:
    """The rows of a step while they are being chosen."""

    budget: int
    seqs: list[Sequence] = field(default_factory=list)
    num_scheduled: list[int] = field(default_factory=list)
    new_block_ids: list[tuple[int, ...]] = field(default_factory=list)
    new_seqs: list[NewSequence] = field(default_factory=list)

    def add(self, seq: Sequence, num_tokens: int, block_ids: list[int]) -> None:
        self.budget -= num_tokens
        self.seqs.append(seq)
        self.num_scheduled.append(num_tokens)
        self.new_block_ids.append(tuple(block_ids))


class Scheduler:
    """Waiting and running sequences over one KV cache."""

    def __init__(
        self,
        config: SchedulerConfig,
        cache: KVCacheManager,
        max_model_len: int,
        receiving: Receiving,
        tiering: Tiering | None = None,
    ) -> None:
        """`tiering` is None where the device's cache is the only one."""
        self._config = config
        self._tiering = tiering
        self._receiving = receiving
        self._cache = cache
        self._max_model_len = max_model_len
        self._waiting = make_waiting_queue(config.policy)
        self._running: list[Sequence] = []
        self._forgotten: list[int] = []
        self._step = 0
        # The sequences of steps under way, in batch order.
        self._seqs_by_step: dict[int, list[Sequence]] = {}
        self.counters = SchedulerCounters()

    @property
    def max_step_tokens(self) -> int:
        return self._config.max_num_batched_tokens

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + (self._tiering.num_restoring if self._tiering else 0)

    @property
    def num_tokens_behind(self) -> int:
        """Tokens that are to be computed before each sequence gets its next one; of what waits,
        those that are cached too."""
        seqs = [*self._running, *self._waiting]
        return sum(seq.num_tokens - seq.num_computed_tokens for seq in seqs)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def is_decoding(self) -> bool:
        """Whether a running sequence has begun its answer."""
        return any(seq.num_output_tokens for seq in self._running)

    @property
    def has_work(self) -> bool:
        return self.has_candidates or (self._tiering is not None and self._tiering.is_active)

    @property
    def has_candidates(self) -> bool:
        """Whether any sequence could be in the next step."""
        return bool(self._running) or len(self._waiting) > 0

    def add(self, seq: Sequence) -> None:
        """Queue a sequence that is new here."""
        assert seq.status is SequenceStatus.WAITING, f"{seq} is not new"
        self._waiting.push(seq, holds_blocks=self._receiving.holds_for(seq.request.request_id))

    def take_restored(self) -> None:
        """Let sequences whose restore has ended wait in front of all others."""
        if self._tiering is not None:
            for seq in reversed(self._tiering.take_finished()):
                self._waiting.push_front(seq)

    def abort(self, seq: Sequence) -> None:
        """End a sequence between steps, wherever it is, and take its blocks back."""
        match seq.status:
            case SequenceStatus.WAITING | SequenceStatus.PREEMPTED:
                self._waiting.remove(seq)
            case SequenceStatus.RESTORING:
                assert self._tiering is not None, f"{seq} is restored from nowhere"
                self._tiering.abort(seq)
            case SequenceStatus.RUNNING:
                self._running.remove(seq)
                self._forgotten.append(seq.seq_id)
        self._finish(seq, FinishReason.ABORT)

    def schedule(self) -> SchedulerOutput:
        """Choose the rows of the next step and give them their blocks."""
        self._cache.begin_step()
        if self._config.policy == "priority":
            self._running.sort(key=lambda seq: seq.order)
        plan = _StepPlan(self._config.max_num_batched_tokens)
        num_preempted = self._schedule_running(plan)
        if num_preempted == 0 or not self._running:
            self._schedule_waiting(plan)
        return self._close(plan)

    def _schedule_running(self, plan: _StepPlan) -> int:
        """Let running sequences catch up; returns how many were preempted for it."""
        num_preempted = 0
        i = 0
        while i < len(self._running):
            seq = self._running[i]
            num_later = len(self._running) - i - 1
            num_behind = seq.num_computable_tokens - seq.num_computed_tokens
            num_tokens = min(num_behind, plan.budget - num_later)
            assert num_tokens >= 1, f"{seq} got {num_tokens} tokens of budget {plan.budget}"
            block_ids = self._cache.extend(seq, num_tokens)
            if block_ids is None:
                self._preempt_last()
                num_preempted += 1
                continue
            plan.add(seq, num_tokens, block_ids)
            i += 1
        return num_preempted

    def _preempt_last(self) -> None:
        seq = self._running[-1]
        self._leave_tail(seq)
        self._suspend(seq)
        seq.prompt_logprobs.clear()
        seq.status = SequenceStatus.PREEMPTED
        seq.was_restored = False
        self._waiting.push_front(seq)
        self.counters.num_preemptions += 1

    def _suspend(self, seq: Sequence) -> None:
        """Take a running sequence's blocks back; it will start anew from what is cached then."""
        self._running.remove(seq)
        self._cache.free(seq)
        seq.num_computed_tokens = 0
        self._forgotten.append(seq.seq_id)

    def _leave_tail(self, seq: Sequence) -> None:
        """It will not wait for blocks that are restored while it computes those before them."""
        if seq.num_head_tokens:
            assert self._tiering is not None, f"{seq} is restored from nowhere"
            self._tiering.abort(seq)

    def _end_head(self, seq: Sequence) -> None:
        """It has computed what it was to compute before those that are restored."""
        assert self._tiering is not None, f"{seq} is restored from nowhere"
        self._tiering.hold_head(seq)
        self._suspend(seq)

    def _schedule_waiting(self, plan: _StepPlan) -> None:
        while len(self._waiting) and plan.budget > 0:
            if len(self._running) >= self._config.max_num_seqs:
                return
            seq = self._waiting.peek()
            match self._begin_restore(seq):
                case RestoreStart.BEGUN:
                    self._waiting.pop()
                    continue
                case RestoreStart.LATER:
                    return
            hit = self._start(seq, plan.budget)
            while hit is None and not self._running and self._one_gives_back():
                hit = self._start(seq, plan.budget)
            if hit is None:
                return
            self._waiting.pop()
            self._admit(seq, hit, plan)

    def _begin_restore(self, seq: Sequence) -> RestoreStart:
        if self._tiering is None or _computes_all(seq):
            return RestoreStart.NOTHING
        return self._tiering.begin_restore(seq)

    def _start(self, seq: Sequence, budget: int) -> PrefixHit | None:
        """Give a sequence its blocks: what it begins with, or None if there are too few.

        A donor that is copied takes a block more for this step, and is done without if that is
        the one that lacks.
        """
        self._receiving.end(seq.request.request_id)
        hit = NO_HIT if _computes_all(seq) else self._cache.lookup(seq)
        if hit.num_tokens >= seq.num_head_tokens:  # somebody else has computed them
            self._leave_tail(seq)
        while not self._cache.start(seq, hit, _num_to_compute(seq, hit, budget)):
            if hit.donor is None:
                return None
            hit = hit.without_donor()
        return hit

    def _one_gives_back(self) -> bool:
        """Of those that wait and hold blocks, the last one does without, and later finds in the
        cache what is left of them. Else it and one that lacks blocks could wait for each other."""
        for seq in reversed([*self._waiting]):
            if self._receiving.holds_for(seq.request.request_id):
                self._receiving.end(seq.request.request_id)
                return True
        return False

    def _admit(self, seq: Sequence, hit: PrefixHit, plan: _StepPlan) -> None:
        if seq.status is SequenceStatus.WAITING:
            # Who gave the first token has said what was cached of the prompt.
            seq.num_cached_tokens = 0 if seq.num_emitted_tokens else hit.num_tokens
            self.counters.prefix_queries += seq.num_tokens
            self.counters.prefix_hits += hit.num_tokens
            self.counters.partial_hits += hit.num_partial_tokens
        num_tokens = _num_to_compute(seq, hit, plan.budget)
        num_cached_blocks = len(hit.block_ids)
        seq.status = SequenceStatus.RUNNING
        self._running.append(seq)
        plan.new_seqs.append(
            NewSequence(
                seq_id=seq.seq_id,
                token_ids=np.asarray(seq.token_ids, np.int32),
                num_prompt_tokens=seq.num_prompt_tokens,
                block_ids=tuple(seq.block_ids[:num_cached_blocks]),
                sampling=seq.request.sampling,
                seed=seq.seed,
                barred_token_ids=tuple(sorted(seq.stop_token_ids)),
                version=seq.version.number,
            )
        )
        plan.add(seq, num_tokens, seq.block_ids[num_cached_blocks:])

    def _close(self, plan: _StepPlan) -> SchedulerOutput:
        self._step += 1
        self._seqs_by_step[self._step] = plan.seqs
        forgotten, self._forgotten = tuple(self._forgotten), []
        return SchedulerOutput(
            step=self._step,
            seq_ids=tuple([seq.seq_id for seq in plan.seqs]),
            num_computed_tokens=tuple([seq.num_computed_tokens for seq in plan.seqs]),
            num_scheduled_tokens=tuple(plan.num_scheduled),
            is_sampled=tuple(
                [
                    seq.num_computed_tokens + num_tokens == seq.num_tokens
                    for seq, num_tokens in zip(plan.seqs, plan.num_scheduled, strict=True)
                ]
            ),
            new_block_ids=tuple(plan.new_block_ids),
            new_seqs=tuple(plan.new_seqs),
            finished_seq_ids=forgotten,
            block_copies=self._cache.take_copies(),
        )

    def abandon(self, scheduled: SchedulerOutput) -> None:
        """A step has failed: nothing that its sequences hold is to be trusted."""
        for seq in self._seqs_by_step.pop(scheduled.step):
            seq.num_computed_tokens = 0
        self._cache.end_copies(scheduled.block_copies)
        self._cache.forget_all()

    def update(self, scheduled: SchedulerOutput, output: ModelOutput) -> list[SequenceDelta]:
        """Take in what the model made of the step: a delta per sequence that got a token."""
        seqs = self._seqs_by_step.pop(scheduled.step)
        self._cache.end_copies(scheduled.block_copies)
        for seq, num_tokens in zip(seqs, scheduled.num_scheduled_tokens, strict=True):
            seq.num_computed_tokens += num_tokens
        for seq_id, entries in output.prompt_logprobs:
            _find(seqs, seq_id).prompt_logprobs.extend(entries)
        deltas = [self._fail(_find(seqs, seq_id), error) for seq_id, error in output.errors]
        sampled = compress(seqs, scheduled.is_sampled)
        token_ids = output.token_ids.tolist()
        logprobs = output.logprobs or (None,) * len(token_ids)
        for seq, token_id, entry in zip(sampled, token_ids, logprobs, strict=True):
            if seq.finish_reason is None:
                deltas.append(self._append(seq, token_id, entry))
        self._running = [seq for seq in self._running if seq.finish_reason is None]
        for seq in seqs:
            if seq.finish_reason is None and seq.num_computed_tokens == seq.num_head_tokens:
                self._end_head(seq)
        return deltas

    def _append(self, seq: Sequence, token_id: int, entry: TokenLogprobs | None) -> SequenceDelta:
        """Give a sequence its sampled token, and end it if that was its last."""
        seq.token_ids.append(token_id)
        num_output = seq.num_output_tokens
        is_first = num_output == seq.num_emitted_tokens + 1
        reason = self._finish_reason(seq, token_id, num_output)
        if reason is not None:
            self._finish_running(seq, reason)
        return SequenceDelta(
            request_id=seq.request.request_id,
            index=seq.index,
            token_ids=(token_id,),
            logprobs=(entry,) if entry is not None else (),
            finish_reason=reason,
            stop_token_id=token_id if reason is FinishReason.STOP else None,
            num_cached_tokens=seq.num_cached_tokens,
            num_host_tokens=min(seq.num_host_tokens, seq.num_cached_tokens),
            num_disk_tokens=min(seq.num_disk_tokens, seq.num_cached_tokens),
            num_remote_tokens=min(seq.num_remote_tokens, seq.num_cached_tokens),
            prompt_logprobs=_first_prompt_logprobs(seq) if num_output == 1 else (),
            fingerprint=seq.version.model.fingerprint if is_first else "",
        )

    def _fail(self, seq: Sequence, error: str) -> SequenceDelta:
        """End a sequence that the model could not compute; the others go on."""
        self._finish_running(seq, FinishReason.ERROR)
        return SequenceDelta(
            seq.request.request_id, seq.index, finish_reason=FinishReason.ERROR, error=error
        )

    def _finish_running(self, seq: Sequence, reason: FinishReason) -> None:
        self._forgotten.append(seq.seq_id)
        self._finish(seq, reason)

    def _finish_reason(self, seq: Sequence, token_id: int, num_output: int) -> FinishReason | None:
        if token_id in seq.stop_token_ids and num_output >= seq.request.sampling.min_tokens:
            return FinishReason.STOP
        if num_output >= seq.max_tokens or seq.num_tokens >= self._max_model_len:
            return FinishReason.LENGTH
        return None

    def _finish(self, seq: Sequence, reason: FinishReason) -> None:
        self._leave_tail(seq)
        self._cache.free(seq, is_sound=reason is not FinishReason.ERROR)
        seq.status = SequenceStatus.FINISHED
        seq.finish_reason = reason

    def check_invariants(self, others: Counter[int]) -> None:
        """Every held block is held by exactly the sequences that list it, and by `others`."""
        self._cache.pool.check_invariants()
        holders = others.copy()
        for seq in self._running:
            assert seq.status is SequenceStatus.RUNNING, f"{seq} is in the running list"
            holders.update(seq.block_ids)
        for seq in self._waiting:
            assert not seq.block_ids, f"{seq} waits but holds blocks"
        if self._tiering is not None:
            holders += self._tiering.holders()
        self._cache.pool.check_holders(holders)


def _computes_all(seq: Sequence) -> bool:
    """The prompt's own log-probabilities are wanted, which no cache has."""
    return seq.request.sampling.prompt_logprobs is not None and seq.num_output_tokens == 0


def _num_to_compute(seq: Sequence, hit: PrefixHit, budget: int) -> int:
    return min(seq.num_computable_tokens - hit.num_tokens, budget)


def _find(seqs: list[Sequence], seq_id: int) -> Sequence:
    return next(seq for seq in seqs if seq.seq_id == seq_id)


def _first_prompt_logprobs(seq: Sequence) -> tuple[TokenLogprobs | None, ...]:
    if seq.request.sampling.prompt_logprobs is None:
        return ()
    return (None, *seq.prompt_logprobs)
