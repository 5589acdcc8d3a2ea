from pathlib import Path

import pytest

from rtp_serve.cli.config import check_config
from rtp_serve.errors import ConfigError

FILE = """
http_options: {host: 127.0.0.1, port: 9}
applications:
- name: a
  import_path: deployments.aggregated:app
  args:
    engine: {scheduler: {max_queued: 7}}
    api: {auth: {api_keys: [{name: alice, sha256: '%s'}]}}
- {name: b, route_prefix: /b, import_path: 'somebody.else:app'}
"""


def write(directory: Path, text: str) -> str:
    path = directory / "config.yaml"
    path.write_text(text)
    return str(path)


def test_each_setting_of_the_file_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    check_config(write(tmp_path, FILE % ("0" * 64)))
    said = capsys.readouterr().out
    assert "http://127.0.0.1:9" in said
    assert "engine.scheduler.max_queued = 7   Requests that may wait" in said
    assert "api.auth.api_keys[0].name = 'alice'" in said
    assert "its arguments are not checked" in said
    assert "max_num_seqs" not in said


def test_a_wrong_file_is_explained_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(ConfigError, match=r"api_keys.0: sha256 must be"):
        check_config(write(tmp_path, FILE % "00"))
    assert capsys.readouterr().out == ""
