from pathlib import Path

import pytest

from benchmarks.routing_cells import Cell, Play, least_work_s, play, ratios
from benchmarks.routing_decisions import Size, decision_s
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.simulation.engine_model import EngineModel
from rtp_serve.simulation.report import Summary
from rtp_serve.simulation.requests import Trace, TracedRequest

EXCERPT = Path(__file__).parents[2] / "benchmarks" / "traces" / "mooncake_conversation.jsonl"


def summary(ttft_s: float) -> Summary:
    return Summary(1, 0, ttft_s, ttft_s, ttft_s, ttft_s, 0.0, 0.0, 0.0)


def test_the_worst_of_rivals_is_not_what_counts():
    cell = Cell(EXCERPT, 0, 1, 2, 0.5)
    waits = {"round-robin": 4.0, "power-of-two": 2.0, "prefix-affinity": 8.0, "shortest-ttft": 3.0}
    results = {(cell, policy): [summary(each)] for policy, each in waits.items()}
    results[cell, "priced"] = [summary(1.0), summary(2.0)]
    results[cell, "weighted-score"] = [summary(0.1)]  # told, but no rival
    assert ratios(results, lambda each: each.ttft_p95_s) == {cell: 0.75}


def test_the_least_work_computes_each_block_once():
    block = (BlockHash(b"a"), BlockHash(b"b"))
    requests = tuple(TracedRequest(float(at), 40, 1, block) for at in range(2))
    model = EngineModel(prefill_base_s=0.0, prefill_token_s=1.0, prefill_attention_s=0.0)
    assert least_work_s(Trace("t", 16, requests), model) == 40 + 8


@pytest.mark.parametrize("policy", ["priced", "round-robin"])
def test_a_cell_is_played_the_same_each_time(policy: str):
    which = Play(Cell(EXCERPT, 0.0, 0.2, 3, 0.7), policy, (), 0)
    first = play(which)
    assert first == play(which)
    assert first.num_requests == 200


def test_decisions_are_timed_one_by_one():
    took = decision_s(Size(4, 1000), 300)
    assert len(took) == 300
    assert all(each > 0 for each in took)
