from benchmarks.interleave import Measured
from benchmarks.ratios import PROMISED, RATIOS, memory_ratio, ratios
from benchmarks.workloads import COMPARED

# The names of the figures are a promise to whoever reads them.
NAMES = """decode_x_vllm decode_x_llamacpp prefill_x_vllm prefill_x_llamacpp c8_x_vllm c16_x_vllm
c16_x_llamacpp c16_p95_ttft_x_vllm c16_p95_itl_x_vllm prefix_x_vllm prefix_x_llamacpp pss_x_vllm"""


def measured(server: str, workload: str) -> Measured:
    """Every figure of ours is twice theirs."""
    return measured_as(2.0 if server == "rtp-serve" else 1.0)


def measured_as(value: float) -> Measured:
    names = {figure for _, figure in RATIOS.values()} | {"beyond_kv_bytes"}
    return {name: {0: value, 1: value} for name in names}


def test_the_compared_workloads_give_every_promised_ratio():
    assert tuple(NAMES.split()) == PROMISED
    given = {
        name: values for peer in ("vllm", "llamacpp") for name, values in ratios(measured, peer)
    }
    assert all(values == [2.0, 2.0] for values in given.values())
    given["pss_x_vllm"] = memory_ratio(measured, "vllm", COMPARED)
    assert set(PROMISED) <= given.keys()
    assert {workload for workload, _ in RATIOS.values()} == set(COMPARED)


def test_memory_compares_our_largest_with_the_peers_smallest():
    bytes_by_server = {"rtp-serve": {0: 5.0, 1: 8.0}, "vllm": {0: 20.0, 1: 16.0}}

    def of(server: str, workload: str) -> Measured:
        return {"beyond_kv_bytes": bytes_by_server[server]}

    assert memory_ratio(of, "vllm", ("c8",)) == [0.5]


def test_of_a_peer_with_several_settings_the_better_one_counts():
    values = {"rtp-serve": 6.0, "llamacpp": 2.0, "llamacpp-flash": 3.0}
    given = dict(ratios(lambda server, workload: measured_as(values[server]), "llamacpp"))
    assert given["decode_x_llamacpp"] == [2.0, 2.0]
    assert given["c16_p95_itl_x_llamacpp"] == [3.0, 3.0]


def test_what_nobody_measured_gives_no_ratio():
    assert memory_ratio(lambda server, workload: {}, "vllm", ("c8",)) == []
    assert all(values == [] for _, values in ratios(lambda server, workload: {}, "vllm"))
