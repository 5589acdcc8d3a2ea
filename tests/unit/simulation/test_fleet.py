from itertools import islice, pairwise
from random import Random

import pytest

from rtp_serve.config.routing import RoutingConfig
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.routing.policies.registry import POLICIES
from rtp_serve.routing.types import Role
from rtp_serve.simulation.chats import Assistants, Conversations, assistants, conversations, turns
from rtp_serve.simulation.engine_model import EngineModel
from rtp_serve.simulation.fleet import SimulatedFleet
from rtp_serve.simulation.report import Summary, summarise, table
from rtp_serve.simulation.requests import Trace, TracedRequest
from rtp_serve.simulation.served_table import ServedTable

MODEL = EngineModel(prefill_base_s=0.0, prefill_token_s=0.001, prefill_attention_s=0.0)
"""1,000 tokens a second."""

SMALL = Assistants(num_requests=600, requests_per_s=12, num_assistants=12, num_new_tokens=3)


def replay(
    trace: Trace, num_workers: int = 2, model: EngineModel = MODEL, **config: object
) -> ServedTable:
    settings = RoutingConfig.model_validate({"block_size": trace.block_size} | config)
    fleet = SimulatedFleet(settings, [model] * num_workers, Random(0))
    served = fleet.play(trace.requests)
    fleet.master.check_invariants()
    assert fleet.master.num_in_flight == 0
    return served


def trace_of(*requests: TracedRequest) -> Trace:
    return Trace("test", 16, requests)


def request(at: float, num_tokens: int, num_new: int = 1, *names: str) -> TracedRequest:
    return TracedRequest(at, num_tokens, num_new, tuple(BlockHash(n.encode()) for n in names))


def test_a_request_alone_takes_its_prefill_and_its_steps():
    served = replay(trace_of(request(1.0, 500, 11)))
    assert served.ttft_s == pytest.approx([0.5])
    assert served.itl_s[0] == pytest.approx(MODEL.decode_step_s(1, 500), rel=1e-3)


def test_prompts_of_one_worker_are_computed_one_after_the_other():
    trace = trace_of(*(request(0.0, 500) for _ in range(3)))
    served = replay(trace, num_workers=1)
    assert served.ttft_s == pytest.approx([0.5, 1.0, 1.5])


def test_a_prefix_that_was_computed_is_not_computed_again():
    names = [f"b{i}" for i in range(31)]
    trace = trace_of(request(0.0, 500, 1, *names), request(5.0, 500, 1, *names))
    served = replay(trace)
    assert served.num_cached_tokens.tolist() == [0, 496]
    assert served.ttft_s[1] == pytest.approx(0.004)


def test_decoding_and_prefill_slow_each_other_down():
    trace = trace_of(request(0.0, 100, 200), request(0.5, 4096))
    served = replay(trace, num_workers=1)
    assert served.ttft_s[1] > 4.096 + MODEL.step_s
    alone = replay(trace_of(request(0.0, 100, 200)), num_workers=1)
    assert served.e2e_s[0] > alone.e2e_s[0] + 3.9


def test_a_sequence_waits_for_memory():
    model = EngineModel(num_blocks=70, prefill_base_s=0.0, prefill_token_s=0.001)
    trace = trace_of(request(0.0, 600, 300), request(0.0, 600, 1))
    served = replay(trace, num_workers=1, model=model)
    assert served.ttft_s[1] > served.e2e_s[0]


@pytest.mark.parametrize("policy", list(POLICIES))
def test_every_policy_serves_everything_and_the_books_balance(policy: str):
    trace = assistants(SMALL, Random(1))
    served = replay(trace, 4, policy=policy)
    assert ((served.ttft_s > 0) & (served.e2e_s >= served.ttft_s)).all()


def test_the_same_seed_gives_the_same_replay():
    def once() -> Summary:
        return summarise(replay(assistants(SMALL, Random(1)), 4, policy="power-of-two"))

    assert once() == once()


@pytest.mark.parametrize(
    ("num_blocks", "roles", "ttft_s", "e2e_s", "num_cached_tokens"),
    [
        pytest.param(900, None, 50.1454945129915, 1385.6756180698324, 659792, id="mixed"),
        pytest.param(250, None, 491.56935586183124, 1815.3907769892487, 159584, id="little memory"),
        pytest.param(
            900,
            [Role.PREFILL] * 2 + [Role.DECODE] * 4,
            69.2124468737678,
            1355.5944166831698,
            472208,
            id="disaggregated",
        ),
    ],
)
def test_a_replay_has_the_figures_that_it_always_had(
    num_blocks: int,
    roles: list[Role] | None,
    ttft_s: float,
    e2e_s: float,
    num_cached_tokens: int,
):
    """Sums of all requests; what is to make replays faster must not change them."""
    shape = Conversations(num_conversations=150, conversations_per_s=3.0)
    config = RoutingConfig(block_size=shape.block_size)
    fleet = SimulatedFleet(config, [EngineModel(num_blocks=num_blocks)] * 6, Random(0), roles)
    served = fleet.play(turns(shape, Random(1)))
    fleet.master.check_invariants()
    assert served.ttft_s.sum() == pytest.approx(ttft_s, rel=1e-12)
    assert served.e2e_s.sum() == pytest.approx(e2e_s, rel=1e-12)
    assert served.num_cached_tokens.sum() == num_cached_tokens


def test_a_sequence_that_ends_with_a_prefill_ends_as_early_as_it_always_did():
    """As above; with two workers and little memory, what comes first of equal times is seen."""
    shape = Assistants(num_requests=1500, requests_per_s=40, num_assistants=12, num_new_tokens=30)
    classes = {"default": {"ttft": [{"ttft_s": 0.5}]}}
    model = EngineModel(num_blocks=300)
    served = replay(assistants(shape, Random(1)), 2, model, slo_classes=classes)
    assert served.ttft_s.sum() == pytest.approx(1200.2839787993366, rel=1e-12)
    assert served.e2e_s.sum() == pytest.approx(2121.787097272937, rel=1e-12)
    assert (served.num_cached_tokens.sum(), served.is_rejected.sum()) == (9456, 537)


def test_prices_beat_turns_on_shared_beginnings():
    trace = assistants(SMALL, Random(1))
    model = EngineModel(prefill_base_s=0.0, prefill_token_s=0.001, num_blocks=150)
    ours, turns = (
        summarise(replay(trace, 6, model, policy=policy), skip=0.2)
        for policy in ("priced", "round-robin")
    )
    assert ours.hit_rate > 1.3 * turns.hit_rate
    assert ours.ttft_p95_s < turns.ttft_p95_s


def test_what_would_be_late_is_rejected_and_counted():
    trace = trace_of(*(request(0.0, 1000) for _ in range(10)))
    classes = {"default": {"ttft": [{"ttft_s": 2.5}]}}
    served = replay(trace, slo_classes=classes, admission={"fair_slack": 1})
    summary = summarise(served)
    assert (summary.num_requests, summary.num_rejected) == (10, 6)
    assert served.ttft_s.max() < 2.5
    assert "6" in table({"ours": summary}).splitlines()[1].split()


def test_generated_prompts_are_as_long_as_they_should_be():
    shape = Assistants(num_requests=4000)
    requests = assistants(shape, Random(1)).requests
    lengths = [each.num_tokens for each in requests]
    assert (min(lengths), max(lengths) <= 1000) == (300, True)
    assert sum(lengths) / len(lengths) == pytest.approx(340, rel=0.02)
    assert requests[-1].arrival_s == pytest.approx(4000 / shape.requests_per_s, rel=0.1)


def test_a_chats_turn_begins_with_all_before_it():
    trace = conversations(Conversations(num_conversations=20), Random(1))
    by_first: dict[BlockHash, list[TracedRequest]] = {}
    for each in trace.requests:
        own = next((key for key in each.block_hashes if key.startswith(b"c")), None)
        if own is not None:
            by_first.setdefault(own, []).append(each)
    turns = max(by_first.values(), key=len)
    assert len(turns) > 1
    for earlier, later in pairwise(turns):
        assert later.block_hashes[: len(earlier.block_hashes)] == earlier.block_hashes
        assert later.num_tokens > earlier.num_tokens + earlier.num_new_tokens - 1


def test_chats_are_made_as_they_are_taken_and_come_by_arrival():
    shape = Conversations(num_conversations=10**9, conversations_per_s=5.0)
    first = list(islice(turns(shape, Random(1)), 300))
    arrivals = [each.arrival_s for each in first]
    assert arrivals == sorted(arrivals)
    whole = conversations(Conversations(num_conversations=400, conversations_per_s=5.0), Random(1))
    assert whole.requests[:300] == tuple(first)


def test_a_paced_trace_keeps_its_requests():
    trace = trace_of(request(4.0, 1), request(6.0, 2)).paced(0.5)
    assert [(each.arrival_s, each.num_tokens) for each in trace.requests] == [(0.0, 1), (1.0, 2)]
