import json
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rtp_serve.cli.main import app
from rtp_serve.errors import ConfigError

ROOT = Path(__file__).parents[3]
TRACE = ROOT / "benchmarks" / "traces" / "mooncake_conversation.jsonl"
CONFIG = """
trace: {last: 0.1, pace: 2}
targets: {ttft: [{ttft_s: 20}], attainment: 0.5}
fleets: [{mixed: 2}]
sweep_replicas: 3
search: {mixed: true, max_replicas: 4}
"""


def simulate(tmp_path: Path, *options: str, config: str = CONFIG, trace: Path = TRACE) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(config)
    arguments = ["simulate", "--trace", str(trace), "--config", str(path), *options]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_fleets_are_listed_and_the_questions_answered(tmp_path: Path):
    lines = simulate(tmp_path).splitlines()
    assert lines[0].startswith("mooncake_conversation: 100 requests in ")
    names = [line.split()[0] for line in lines[2:] if line[0].isdigit()]
    assert {"1P:2D", "2P:1D", "2"} <= set(names)
    assert lines[-2].startswith("best split of 3 replicas: ")
    assert lines[-1].startswith("fewest mixed replicas that keep the targets: ")


def test_json_has_what_the_table_has(tmp_path: Path):
    report = json.loads(simulate(tmp_path, "--json"))
    assert report["engine"]["chunk_tokens"] == 2048
    assert {(each["prefill"], each["decode"]) for each in report["fleets"]} >= {(1, 2), (2, 1)}
    assert all(
        each["hit_rate"] <= each["ideal_hit_rate"]
        for each in report["fleets"]
        if not each["num_rejected"]
    )
    assert report["answers"]["best split of 3 replicas"]["prefill"] in (1, 2)


def test_pictures_are_written(tmp_path: Path):
    pytest.importorskip("matplotlib")
    said = simulate(tmp_path, "--plots", str(tmp_path / "plots"))
    for name in ("fleets.png", "distributions.png"):
        path = tmp_path / "plots" / name
        assert path.read_bytes().startswith(b"\x89PNG")
        assert str(path) in said


def test_an_answer_may_be_that_there_are_too_few(tmp_path: Path):
    config = CONFIG.replace("ttft_s: 20", "ttft_s: 0.001")
    assert "more than 4 of a role" in simulate(tmp_path, config=config)


SCALED = """
trace: {last: 0.2, pace: 4}
targets: {ttft: [{ttft_s: 20}]}
autoscaled:
  scalers:
    ours: {max_replicas: 6, downscale_delay_s: 30}
    serve: {policy: ongoing-requests, target_ongoing_requests: 2, max_replicas: 6}
"""


def test_scalers_are_played_and_their_changes_told(tmp_path: Path):
    report = json.loads(simulate(tmp_path, "--autoscale", "--json", config=SCALED))
    ours, serve = report["scalers"]
    assert (ours["name"], serve["name"]) == ("ours", "serve")
    assert 1 < ours["most_replicas"] <= 6
    hours = sum(
        target * (until - at) / 3600 for (at, _, target), (until, *_) in pairwise(ours["sizes"])
    )
    assert ours["replica_hours"] > hours > 0
    assert ours["changes"][0]["num_replicas"] > 1
    assert ours["changes"][0]["reason"]
    lines = simulate(tmp_path, "--autoscale", config=SCALED).splitlines()
    assert lines[-2].startswith(f"ours: {ours['most_replicas']} replicas at most, ")


def test_a_timeline_is_drawn(tmp_path: Path):
    pytest.importorskip("matplotlib")
    simulate(tmp_path, "--autoscale", "--plots", str(tmp_path), config=SCALED)
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "config", "expected"),
    [(["--autoscale"], CONFIG, "autoscaled: "), ([], SCALED, "with --autoscale")],
)
def test_what_is_not_there_to_be_played_is_an_error(
    tmp_path: Path, options: list[str], config: str, expected: str
):
    with pytest.raises(ConfigError, match=expected):
        simulate(tmp_path, *options, config=config)


def test_a_wrong_line_of_a_trace_is_named(tmp_path: Path):
    trace = tmp_path / "trace.jsonl"
    lines = TRACE.read_text().splitlines()[:3]
    trace.write_text("\n".join([*lines, '{"timestamp": 1}']))
    with pytest.raises(ConfigError, match=r"trace\.jsonl, line 4: no 'input_length'"):
        simulate(tmp_path, trace=trace)


def test_a_wrong_key_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"config\.yaml: .*'fleet'.*did you mean 'fleets'"):
        simulate(tmp_path, config=CONFIG.replace("fleets:", "fleet:"))
