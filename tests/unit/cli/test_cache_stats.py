"""What a running server says of its caches, from its API's own answer to a terminal."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from rtp_serve.api.cache_report import report
from rtp_serve.api.json_response import json_response
from rtp_serve.cli.cache_stats import get, print_stats
from rtp_serve.engine.cache_answers import CacheStats, DeviceStats
from rtp_serve.errors import ConfigError
from tests.unit.api.test_cache_routes import TIERED

Captured = pytest.CaptureFixture[str]
URL = "http://127.0.0.1:8000/"


def show(capsys: Captured, *caches: CacheStats, as_json: bool = False) -> str:
    body = bytes(json_response(report(caches)).body)

    def fetch(address: str, admin_token: str) -> bytes:
        assert (address, admin_token) == (f"{URL}cache/stats", "root")
        return body

    print_stats(URL, "root", as_json, fetch)
    return capsys.readouterr().out


def test_replicas_and_stores_are_shown_with_their_counts(capsys: Captured):
    replicas, answering, silent = show(capsys, *TIERED).split("\n\n")
    header, first, *_ = replicas.splitlines()
    assert header.split()[:4] == ["replica", "held", "cached", "blocks"]
    assert first.split() == ["a", "7", "20", "100", "5", "0", "2", "0", "0"]
    title, _, host, disk, queue, pins = answering.splitlines()
    assert title == "store node-1"
    assert host.split() == ["host", "0.0", "MiB", "0.0", "MiB", "3", "0", "0", "0", "0"]
    assert disk.split() == ["disk", "0.0", "MiB", "0.0", "MiB", "0", "0", "4", "0", "0"]
    assert queue == "disk is ready; 1 blocks wait for it, 2 were not written"
    assert pins == "1 pins, 0 reads under way"
    assert silent == "store node-2 does not answer\n"


def test_without_tiers_the_setting_is_named(capsys: Captured):
    said = show(capsys, CacheStats("a", DeviceStats(100, 7, 20, 16), None))
    assert "engine.kv_store.host.enable" in said
    assert said.splitlines()[1].split() == ["a", "7", "20", "100", "-", "-", "-", "-", "-"]


def test_the_answer_can_be_had_as_it_is(capsys: Captured):
    said = show(capsys, *TIERED, as_json=True)
    assert json.loads(said)["stores"][0]["host"]["counts"]["hits"] == 3


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"replicas": [{}], "stores": []}'])
def test_another_server_is_told_from_ours(body: bytes):
    with pytest.raises(ConfigError, match="no rtp-serve server"):
        print_stats(URL, "", False, lambda *_: body)


class Handler(BaseHTTPRequestHandler):
    """Wants the admin's token; one path leads elsewhere."""

    def do_GET(self) -> None:
        is_admin = self.headers.get("authorization") == "Bearer root"
        body = b'{"ok": 1}' if is_admin else b'{"error": {"message": "not the admin token"}}'
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("location", "/cache/stats")
            body = b"<html>"
        else:
            self.send_response(200 if is_admin else 403)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_the_servers_reason_is_told():
    with server() as url:
        assert get(f"{url}/cache/stats", "root") == b'{"ok": 1}'
        with pytest.raises(ConfigError, match="403: not the admin token"):
            get(f"{url}/cache/stats", "wrong")
        with pytest.raises(ConfigError, match="302: no rtp-serve server"):
            get(f"{url}/elsewhere", "root")
    with pytest.raises(ConfigError, match="does not answer"):
        get(f"{url}/cache/stats", "")


def test_a_port_is_a_number():
    with pytest.raises(ConfigError, match="nonnumeric port"):
        get("http://127.0.0.1:x", "")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "localhost:8000", ""])
def test_an_address_is_one_of_the_web(url: str):
    with pytest.raises(ConfigError, match="http://"):
        get(url, "")
