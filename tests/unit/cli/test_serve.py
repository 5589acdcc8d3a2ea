import json
import shlex
from pathlib import Path

import pytest

from rtp_serve.cli.serve import banner, base_url, run_serve
from rtp_serve.config.serve_file import ApplicationEntry, HttpOptions
from rtp_serve.errors import ConfigError

KEYS = {"api": {"auth": {"api_keys": [{"name": "alice", "sha256": "0" * 64}]}}}


@pytest.mark.parametrize(
    ("http", "prefix", "expected"),
    [
        (HttpOptions(host="127.0.0.1"), "/", "http://127.0.0.1:8000"),
        (HttpOptions(host="0.0.0.0", port=9), "/llm", "http://127.0.0.1:9/llm"),
        (HttpOptions(host="::"), None, "http://[::1]:8000"),
        (HttpOptions(host="h", root_path="/r", ssl_certfile="c"), "/", "https://h:8000/r"),
    ],
)
def test_the_address_is_one_that_this_machine_reaches(
    http: HttpOptions, prefix: str | None, expected: str
):
    assert base_url(http, prefix) == expected


def test_the_printed_command_is_a_valid_request_to_the_served_model():
    application = ApplicationEntry(name="a", args={"engine": {"model": "it's/a-model"}})
    text = banner(application, HttpOptions(host="127.0.0.1"))
    words = shlex.split(text[text.index("curl ") :])
    assert words[1] == "http://127.0.0.1:8000/v1/chat/completions"
    assert json.loads(words[words.index("-d") + 1])["model"] == "it's/a-model"


def test_with_keys_the_command_shows_one():
    application = ApplicationEntry(name="a", args=KEYS)
    assert "Bearer $RTP_SERVE_API_KEY" in banner(application, HttpOptions())
    assert "Bearer" not in banner(ApplicationEntry(name="a"), HttpOptions())


def test_a_wrong_file_ends_it_before_the_launcher_starts(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text("application: []")
    with pytest.raises(ConfigError, match="did you mean 'applications'"):
        run_serve(str(path))
