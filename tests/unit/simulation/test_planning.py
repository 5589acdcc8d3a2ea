from random import Random

import pytest

from rtp_serve.config.parse import parse_config
from rtp_serve.config.simulation import FleetConfig, SimulationConfig
from rtp_serve.errors import ConfigError
from rtp_serve.simulation.chats import Conversations, conversations
from rtp_serve.simulation.outcome import table
from rtp_serve.simulation.planning import Planner, engine_model, played_trace
from rtp_serve.simulation.requests import Trace, TracedRequest

TRACE = conversations(
    Conversations(num_conversations=60, conversations_per_s=20.0, mean_pause_s=3.0), Random(2)
)


def planner(played: Trace = TRACE, **values: object) -> Planner:
    settings = {"search": {"mixed": True}, "targets": {"ttft": [{"ttft_s": 0.3}]}} | values
    config = parse_config(SimulationConfig, settings)
    return Planner(config, played_trace(played, config), engine_model(config, played.block_size))


def test_the_fewest_replicas_keep_the_targets_and_one_less_does_not():
    plan = planner(search={"mixed": True, "max_replicas": 16})
    best = plan.fewest_mixed()
    assert best is not None
    assert best.attainment >= 0.95
    assert best.fleet.mixed > 1
    assert plan.play(FleetConfig(mixed=best.fleet.mixed - 1)).attainment < 0.95


def test_prefill_and_decode_replicas_are_searched_apart():
    targets = {"ttft": [{"ttft_s": 0.5}], "itl_s": 0.02}
    search = {"disaggregated": True, "max_replicas": 16}
    plan = planner(search=search, targets=targets, engine={"step_sequence_s": 1e-3})
    best = plan.fewest_disaggregated()
    assert best is not None
    prefill, decode = best.fleet.prefill, best.fleet.decode
    assert decode > 1
    assert plan.play(FleetConfig(prefill=prefill, decode=decode - 1)).attainment < 0.95
    assert plan.play(FleetConfig(prefill=prefill, decode=decode)) is best  # played once


def test_targets_that_no_fleet_keeps_have_no_answer():
    assert planner(targets={"itl_s": 0.001}, search={"mixed": True}).fewest_mixed() is None


def test_a_disaggregated_fleet_keeps_long_prompts_from_holding_up_tokens():
    requests = [TracedRequest(float(i), 200, 100, ()) for i in range(20)]
    requests += [TracedRequest(i + 0.5, 4000, 2, ()) for i in range(20)]
    trace = Trace("t", 16, tuple(sorted(requests, key=lambda each: each.arrival_s)))
    plan = planner(trace, targets={"itl_s": 0.1}, trace={"warm_up": 0.0})
    mixed = plan.play(FleetConfig(mixed=1))
    split = plan.play(FleetConfig(prefill=1, decode=1))
    assert mixed.summary is not None
    assert split.summary is not None
    assert split.itl_p95_s < 0.5 * mixed.itl_p95_s
    assert split.itl_attainment == 1.0


def test_what_finds_no_memory_to_decode_is_rejected():
    requests = tuple(TracedRequest(0.001 * i, 800, 100, ()) for i in range(12))
    plan = planner(Trace("t", 16, requests), engine={"cache_tokens": 4000}, trace={"warm_up": 0.0})
    found = plan.play(FleetConfig(prefill=2, decode=1))
    assert found.summary is not None
    assert 0 < found.summary.num_rejected < 12
    assert found.attainment == pytest.approx(1 - found.summary.num_rejected / 12)


def test_every_split_is_swept_and_told():
    plan = planner(sweep_replicas=4)
    assert [each.fleet.name for each in plan.sweep(4)] == ["1P:3D", "2P:2D", "3P:1D"]
    lines = table(plan.outcomes).splitlines()
    assert [line.split()[0] for line in lines] == ["replicas", "1P:3D", "2P:2D", "3P:1D"]
    hit_rates = [each.summary.hit_rate for each in plan.outcomes if each.summary]
    assert max(hit_rates) <= plan.outcomes[0].ideal_hit_rate


def test_a_pace_brings_requests_sooner():
    config = parse_config(SimulationConfig, {"fleets": [{"mixed": 1}], "trace": {"pace": 4}})
    assert played_trace(TRACE, config).duration_s == pytest.approx(TRACE.duration_s / 4)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, "nothing to play"),
        ({"fleets": [{"prefill": 2}]}, r"prefill \(2\) and decode \(0\)"),
        ({"fleets": [{"mixed": 2, "prefill": 1, "decode": 1}]}, "either mixed replicas or"),
        ({"search": {"mixed": True}}, "targets: a search needs"),
        ({"fleets": [{"mixed": 1}], "engine": {"step_s": 0}}, r"engine\.step_s.*\(got 0\)"),
        ({"fleets": [{"mixed": 1}], "engine": {"prefil_base_s": 1}}, "did you mean"),
        ({"fleets": [{"mixed": 1}], "trace": {"first": 0.5, "last": 0.5}}, "must be below last"),
    ],
)
def test_a_wrong_configuration_is_one_clear_error(values: dict[str, object], expected: str):
    with pytest.raises(ConfigError, match=expected):
        parse_config(SimulationConfig, values)


def test_a_cache_smaller_than_a_block_is_an_error():
    config = parse_config(
        SimulationConfig, {"fleets": [{"mixed": 1}], "engine": {"cache_tokens": 100}}
    )
    with pytest.raises(ConfigError, match=r"cache_tokens.*512.*\(got 100\)"):
        engine_model(config, 512)
