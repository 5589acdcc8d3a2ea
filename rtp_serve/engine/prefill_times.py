"""How long the engine worked on each prompt.

The Master takes a worker's queue for one line and adds up what is predicted for the prompts in it.
So the times of prompts that are computed in the same steps must add up to the time of these steps:
a step's time is shared out by tokens. Sequences that decode beside get none of it: what they make
longer is the prompts' wait, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from rtp_serve.engine.output import SchedulerOutput
from rtp_serve.engine.request import Request
from rtp_serve.engine.sequence import Sequence
from rtp_serve.routing.types import PrefillPoint


@dataclass(slots=True)
class _Prefill:
    """A sequence without its first token."""

    num_context_tokens: int
    """It found so many computed."""

    num_new_tokens: int = 0
    duration_s: float = 0.0


class PrefillTimes:
    """Of the sequences that are admitted from now on; for the engine's thread.

    One that is preempted starts anew: what it computes then, after what it finds then, is a prefill
    like any other.
    """

    def __init__(self) -> None:
        self._prefills: dict[int, _Prefill] = {}

    def __len__(self) -> int:
        """Sequences that have begun and have no token."""
        return len(self._prefills)

    def stepped(
        self, scheduled: SchedulerOutput, seqs: Mapping[int, Sequence], elapsed_s: float
    ) -> list[tuple[Request, PrefillPoint]]:
        """A step has taken so long, and its sequences have its tokens. Returns what it took those
        that have their first one."""
        for seq_id in scheduled.finished_seq_ids:
            self._prefills.pop(seq_id, None)
        for new in scheduled.new_seqs:
            if seqs[new.seq_id].first_token_s is None:
                context = scheduled.num_computed_tokens[scheduled.seq_ids.index(new.seq_id)]
                self._prefills[new.seq_id] = _Prefill(context)
        return self._share(scheduled, seqs, elapsed_s) if self._prefills else []

    def _share(
        self, scheduled: SchedulerOutput, seqs: Mapping[int, Sequence], elapsed_s: float
    ) -> list[tuple[Request, PrefillPoint]]:
        rows = list(
            zip(
                scheduled.seq_ids,
                scheduled.num_scheduled_tokens,
                scheduled.is_sampled,
                strict=True,
            )
        )
        # One that was preempted after its first token computes many again.
        num_shared = sum(n for seq_id, n, _ in rows if n > 1 or seq_id in self._prefills)
        ended = []
        for seq_id, num_tokens, is_sampled in rows:
            prefill = self._prefills.get(seq_id)
            if prefill is None:
                continue
            prefill.num_new_tokens += num_tokens
            prefill.duration_s += elapsed_s * num_tokens / num_shared
            if is_sampled:
                del self._prefills[seq_id]
                seq = seqs[seq_id]
                if seq.num_output_tokens > seq.num_emitted_tokens:  # else it could not be computed
                    ended.append((seq.request, _point(prefill)))
        return ended


def _point(prefill: _Prefill) -> PrefillPoint:
    return PrefillPoint(prefill.num_new_tokens, prefill.num_context_tokens, prefill.duration_s)
