"""A scheduler in forty lines: gives every unfinished sequence its next chunk in each step."""

from dataclasses import dataclass, field

import numpy as np

from rtp_serve.engine.output import ModelOutput, NewSequence, SchedulerOutput
from rtp_serve.engine.request import TokenLogprobs
from rtp_serve.engine.sampling_params import SamplingParams
from rtp_serve.worker.model_runner import ModelRunner
from rtp_serve.worker.worker import Worker

BLOCK_SIZE = 16
GREEDY = SamplingParams(temperature=0.0)


@dataclass
class DrivenSequence:
    """What went into the runner and what came out."""

    seq_id: int
    prompt: list[int]
    sampling: SamplingParams = GREEDY
    seed: int = 0
    num_output: int = 8
    barred: tuple[int, ...] = ()
    output: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    error: str = ""
    version: int = 0
    num_computed: int = 0
    num_blocks: int = 0

    @property
    def is_finished(self) -> bool:
        return bool(self.error) or len(self.output) >= self.num_output


class Driver:
    """Hands out blocks in order and never takes them back; sequences end with their output."""

    def __init__(self, runner: ModelRunner | Worker, chunk: int = 1 << 30) -> None:
        self._runner = runner
        self._chunk = chunk
        self._next_block = 1
        self._step = 0
        self._known: set[int] = set()
        self._finished: list[int] = []

    def run(self, *sequences: DrivenSequence) -> None:
        """Step until every sequence has its output."""
        while unfinished := [sequence for sequence in sequences if not sequence.is_finished]:
            self.step(unfinished)
            self._finished += [sequence.seq_id for sequence in unfinished if sequence.is_finished]

    def forget(self, sequence: DrivenSequence) -> None:
        """Preempt: the runner forgets the sequence and its KV; the next step brings it again."""
        self._finished.append(sequence.seq_id)
        self._known.discard(sequence.seq_id)
        sequence.num_computed = sequence.num_blocks = 0

    def step(self, sequences: list[DrivenSequence]) -> ModelOutput:
        scheduled = self._schedule(sequences)
        output = self._runner.execute(scheduled)
        self._runner.check_invariants()
        self._update(sequences, scheduled, output)
        return output

    def _schedule(self, sequences: list[DrivenSequence]) -> SchedulerOutput:
        self._step += 1
        totals = [len(sequence.prompt) + len(sequence.output) for sequence in sequences]
        computed = [sequence.num_computed for sequence in sequences]
        ends = [min(pair) for pair in zip(totals, (c + self._chunk for c in computed), strict=True)]
        new = [
            NewSequence(
                sequence.seq_id,
                np.array(sequence.prompt + sequence.output, np.int32),
                len(sequence.prompt),
                (),
                sequence.sampling,
                sequence.seed,
                sequence.barred,
                sequence.version,
            )
            for sequence in sequences
            if sequence.seq_id not in self._known
        ]
        self._known |= {sequence.seq_id for sequence in new}
        finished, self._finished = tuple(self._finished), []
        return SchedulerOutput(
            self._step,
            tuple(sequence.seq_id for sequence in sequences),
            tuple(computed),
            tuple(end - start for start, end in zip(computed, ends, strict=True)),
            tuple(map(int.__eq__, ends, totals)),
            tuple(map(self._new_blocks, sequences, ends)),
            tuple(new),
            finished,
        )

    def _new_blocks(self, sequence: DrivenSequence, num_tokens: int) -> tuple[int, ...]:
        count = -(-num_tokens // BLOCK_SIZE) - sequence.num_blocks
        sequence.num_blocks += count
        self._next_block += count
        return tuple(range(self._next_block - count, self._next_block))

    def _update(
        self, sequences: list[DrivenSequence], scheduled: SchedulerOutput, output: ModelOutput
    ) -> None:
        by_seq_id = {sequence.seq_id: sequence for sequence in sequences}
        for sequence, count in zip(sequences, scheduled.num_scheduled_tokens, strict=True):
            sequence.num_computed += count
        for seq_id, entries in output.prompt_logprobs:
            by_seq_id[seq_id].prompt_logprobs += entries
        for seq_id, message in output.errors:
            by_seq_id[seq_id].error = message
        sampled = np.flatnonzero(scheduled.is_sampled)
        for place, index in enumerate(sampled):
            if output.token_ids[place] >= 0:
                sequences[index].output.append(int(output.token_ids[place]))
            if output.logprobs and (entry := output.logprobs[place]) is not None:
                sequences[index].logprobs.append(entry)
