from pathlib import Path

import pytest

from benchmarks.routing_cells import Cell, Play, play, ratios, worst_ratio
from benchmarks.routing_decisions import Size, decision_s
from rtp_serve.simulation.report import Summary

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


def test_tails_may_be_three_percent_longer_and_means_may_not():
    bars = [(1.0, 2.0, 4.0), (1.0, 1.0, 1.0)]
    assert worst_ratio([(0.9, 2.06, 4.0), (0.5, 0.5, 0.5)], bars) == pytest.approx(1.0)
    assert worst_ratio([(1.02, 2.06, 4.0), (0.5, 0.5, 0.5)], bars) == pytest.approx(1.02)


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
