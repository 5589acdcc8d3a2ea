"""What a request would take at each worker: the numbers that policies choose by."""

import numpy as np

from rtp_serve.native.worker_numbers import WorkerColumns, WorkerNumbers
from rtp_serve.routing.fleet import Fleet
from rtp_serve.routing.ledger import Ledger
from rtp_serve.routing.lower_tiers import LowerTiers
from rtp_serve.routing.predictor import PrefillPredictor
from rtp_serve.routing.types import Candidates, Floats, Ints, RequestFeatures


class Estimates:
    """Reads what the others know; changes nothing."""

    def __init__(
        self,
        block_size: int,
        fleet: Fleet,
        ledger: Ledger,
        predictor: PrefillPredictor,
        lower: LowerTiers,
    ) -> None:
        self._block_size = block_size
        self._fleet, self._predictor, self._lower = fleet, predictor, lower
        self._numbers = WorkerNumbers(
            WorkerColumns(
                num_blocks=fleet.num_blocks,
                num_free_blocks=fleet.num_free_blocks,
                reserved_blocks=ledger.reserved_blocks,
                num_in_flight=ledger.num_in_flight,
                num_decoding=fleet.num_decoding,
                pending_s=ledger.pending_s,
                head_s=ledger.head_s,
                head_start_s=ledger.head_start_s,
                base_s=predictor.base_s,
                token_s=predictor.token_s,
                attention_s=predictor.attention_s,
            )
        )

    def free_blocks(self, slots: Ints, demand: int) -> tuple[Ints, int]:
        """Neither held nor promised, [num_slots], and how many slots have `demand` of them."""
        return self._numbers.free_blocks(slots, demand)

    def make(
        self,
        request: RequestFeatures,
        slots: Ints,
        cached_blocks: Ints,
        free_blocks: Ints,
        mean_s: float,
        now: float,
    ) -> Candidates:
        """Of the workers at `slots`, of which there is at least one. `cached_blocks` of the prompt
        are on their devices, [slots of the fleet]; `free_blocks` is what they have left,
        [num_candidates]; `mean_s` is the mean prefill time of late."""
        numbers = self._numbers.of(
            slots, free_blocks, cached_blocks, request.num_tokens, self._block_size, now
        )
        cached, prefill_s = numbers.num_cached_tokens, numbers.prefill_s
        most_cached = numbers.most_cached_tokens
        load_s = np.zeros(len(slots))
        if len(self._lower):
            cached, prefill_s, load_s = self._restored(request, slots, cached, prefill_s)
            most_cached = int(cached.max())
        return Candidates(
            worker_ids=self._fleet.worker_ids(slots),
            slots=slots,
            wait_s=numbers.wait_s,
            prefill_s=prefill_s,
            load_s=load_s,
            num_cached_tokens=cached,
            num_in_flight=numbers.num_in_flight,
            num_decoding=numbers.num_decoding,
            free_fraction=numbers.free_fraction,
            num_tokens=request.num_tokens,
            num_remote_tokens=most_cached,
            mean_prefill_s=mean_s,
        )

    def _restored(
        self, request: RequestFeatures, slots: Ints, cached: Ints, prefill_s: Floats
    ) -> tuple[Ints, Floats, Floats]:
        """With what tiers would give, where that is faster than to compute it."""
        found, seconds = self._lower.match(request.block_hashes)
        stores = self._fleet.store_slots[slots]
        size, last = self._block_size, request.num_tokens - 1
        reach = np.where(stores >= 0, np.minimum(found[stores] * size, last), 0)
        reach = np.maximum(reach, cached)
        load_s = np.where(stores >= 0, seconds[stores], 0.0) * (reach - cached)
        after_s = self._predictor.predict(slots, request.num_tokens - reach, reach)
        is_faster = (reach > cached) & (load_s + after_s < prefill_s)
        return (
            np.where(is_faster, reach, cached),
            np.where(is_faster, after_s, prefill_s),
            np.where(is_faster, load_s, 0.0),
        )
