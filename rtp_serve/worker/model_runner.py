"""Runs a step: bookkeeping, forward pass, logits of the rows that need them, sampling.

It decides nothing: which sequences, how many tokens and which blocks come with the SchedulerOutput.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace

import numpy as np

from rtp_serve.engine.output import ModelOutput, SchedulerOutput
from rtp_serve.engine.request import TokenLogprobs
from rtp_serve.kv_cache.tensors import KVCacheTensors
from rtp_serve.models.model import LayerReport, Model
from rtp_serve.ops import Array
from rtp_serve.worker.expert_meter import ExpertMeter
from rtp_serve.worker.input_batch import BatchBuilder, InputBatch
from rtp_serve.worker.logprobs import token_logprobs
from rtp_serve.worker.sampler import NOT_FINITE, Sampled, sample, sampled_greedily
from rtp_serve.worker.sequence_table import SequenceTable

_PROMPT_ROWS = 64
"""Prompt positions whose logits are held at once."""


class ModelRunner:
    """One model, its KV cache and the sequences that run on them."""

    def __init__(
        self, model: Model, cache: KVCacheTensors, max_num_seqs: int, max_model_len: int
    ) -> None:
        self._model = model
        self._cache = cache
        self._table = SequenceTable(max_num_seqs, max_model_len, cache.spec.block_size)
        self._builder = BatchBuilder(self._table)
        self._expert_meter = ExpertMeter(model.expert_counts())

    @property
    def seq_ids(self) -> Collection[int]:
        """The sequences that it tracks."""
        return self._table.seq_ids

    def execute(self, scheduled: SchedulerOutput, report: LayerReport | None = None) -> ModelOutput:
        """Compute the step. A sequence whose logits are no numbers gets an error, others go on."""
        rows = self._table.apply(scheduled)
        if not len(rows):
            return ModelOutput(np.empty(0, np.int32))
        batch = self._builder.build(rows, scheduled)
        if report is None and not self._wants_prompt_logprobs(batch):
            output = self._output(batch, self._next(batch), (), {})
        else:
            output = self._compute(batch, report)
        loads = self._expert_meter.step()
        return replace(output, expert_loads=loads) if loads else output

    def check_invariants(self) -> None:
        """Recompute the books from scratch."""
        self._table.check_invariants()

    def _wants_prompt_logprobs(self, batch: InputBatch) -> bool:
        # A decode is of the prompt's last token or a later one, which predicts none of the prompt.
        return not batch.is_decode and any(
            self._table.tracked(row).sampling.prompt_logprobs is not None for row in batch.rows
        )

    def _next(self, batch: InputBatch) -> Sampled:
        """Of a step of which nothing but the next tokens is wanted. Every rank chooses for itself:
        the same tokens, from the same numbers."""
        model, inputs, cache, rows = self._model, batch.inputs, self._cache, batch.last_token
        if batch.sampling.is_plain_greedy:
            return sampled_greedily(model.next_greedy(inputs, cache, rows))
        return sample(model.next_logits(inputs, cache, rows), self._table, batch.sampling)

    def _compute(self, batch: InputBatch, report: LayerReport | None) -> ModelOutput:
        hidden = self._model.forward(batch.inputs, self._cache, report=report).last
        errors: dict[int, str] = {}
        entries = tuple(self._prompt_logprobs(batch, hidden, errors))
        if not len(batch.last_token):
            return ModelOutput(np.empty(0, np.int32), (), entries, tuple(errors.items()))
        return self._output(batch, self._choose(batch, hidden), entries, errors)

    def _choose(self, batch: InputBatch, hidden: Array) -> Sampled:
        if batch.sampling.is_plain_greedy:
            return sampled_greedily(self._model.greedy(hidden, batch.last_token))
        logits = self._model.logits(hidden, batch.last_token)
        return sample(logits, self._table, batch.sampling)

    def _output(
        self,
        batch: InputBatch,
        sampled: Sampled,
        prompt_logprobs: tuple[tuple[int, tuple[TokenLogprobs, ...]], ...],
        errors: dict[int, str],
    ) -> ModelOutput:
        rows = batch.sampling.rows
        self._table.append(rows, sampled.token_ids)
        for index, message in sampled.errors:
            errors[self._table.tracked(rows[index]).seq_id] = message
        return ModelOutput(
            sampled.token_ids, sampled.logprobs, prompt_logprobs, tuple(errors.items())
        )

    def _prompt_logprobs(
        self, batch: InputBatch, hidden: Array, errors: dict[int, str]
    ) -> Iterator[tuple[int, tuple[TokenLogprobs, ...]]]:
        """For each sequence that wants them, the prompt tokens that this step predicts."""
        for index, row in enumerate(batch.rows):
            sequence = self._table.tracked(row)
            num_top = sequence.sampling.prompt_logprobs
            if num_top is None:
                continue
            start, end = batch.inputs.attention.query_start_loc[index : index + 2]
            first = int(batch.inputs.positions[start]) + 1
            # The prompt's last token predicts the first output token, which is not of the prompt.
            targets = self._table.tokens(row)[first : sequence.num_prompt_tokens][: end - start]
            entries: list[TokenLogprobs] = []
            for done in range(0, len(targets), _PROMPT_ROWS):
                chunk = targets[done : done + _PROMPT_ROWS]
                places = np.arange(len(chunk))
                logits = self._model.logits(hidden, places + start + done)
                found = token_logprobs(logits, places, chunk, [num_top] * len(chunk))
                entries += [entry for entry in found if entry]
                if None in found:
                    errors[sequence.seq_id] = NOT_FINITE
                    break
            if entries:
                yield sequence.seq_id, tuple(entries)
