from pathlib import Path
from typing import Any

import pytest
from ray.serve.schema import ServeDeploySchema

from deployments.rollout import Rollout, root_cause, with_neighbours
from rtp_serve.config.serve_file import ServeFile
from rtp_serve.errors import ConfigError

OURS = {"name": "ours", "route_prefix": "/ours", "import_path": "a:b"}
NEIGHBOUR = {"name": "neighbour", "route_prefix": "/neighbour", "import_path": "c:d"}
JSON_LOGS = {"encoding": "JSON"}


def entry(config: dict[str, Any] | None, source: str) -> dict[str, Any]:
    return {"deployed_app_config": config, "source": source}


def merge(running: dict[str, Any], **more: Any) -> dict[str, dict[str, Any]]:
    schema = ServeDeploySchema.model_validate({"applications": [OURS], **more})
    merged = with_neighbours(schema, {"applications": running, "target_capacity": None})
    return {each.name: each.model_dump(exclude_unset=True) for each in merged.applications}


def test_applications_of_other_files_are_kept_as_they_are():
    running = {
        "neighbour": entry(NEIGHBOUR, "declarative"),
        "from-python": entry(None, "imperative"),
    }
    merged = merge(running, logging_config=JSON_LOGS)
    assert list(merged) == ["ours", "neighbour"]
    assert merged["neighbour"] == NEIGHBOUR
    assert merged["ours"]["logging_config"]["encoding"] == "JSON"


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(ConfigError, match="'ours' runs on this cluster already"):
        merge({"ours": entry(None, "imperative")})


def test_what_serve_refuses_is_a_config_error(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text("applications: [{import_path: no-colon-here}]")
    with pytest.raises(ConfigError, match="applications"):
        Rollout(str(path), ServeFile(applications=[{"import_path": "no-colon-here"}]))


def test_the_cause_is_our_own_error_wherever_it_stands():
    message = (
        "The deployment failed to start 2 times in a row.\nTraceback (most recent call last):\n"
        "  File x\nrtp_serve.errors.CheckpointError: config.json: missing\n\nRetrying 0 times."
    )
    assert root_cause(message) == "config.json: missing"


def test_without_one_of_ours_the_last_line_stands():
    assert root_cause("Traceback\nValueError: x\n") == "ValueError: x"
