"""`rtp-serve cache stats`: the KV caches of a server that runs, as tables."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import Any

import typer

from rtp_serve.errors import ConfigError

_TIMEOUT_S = 30.0
_COUNTS = ("hits", "misses", "stored", "evictions", "mismatches")

Report = Mapping[str, Any]
"""The body of GET /cache/stats."""

Fetch = Callable[[str, str], bytes]
"""(address, admin token) → body. Raises ConfigError."""


def print_stats(url: str, admin_token: str, as_json: bool, fetch: Fetch | None = None) -> None:
    """Ask the server at `url` and print what it says. Raises ConfigError if it does not."""
    body = (fetch or get)(f"{url.rstrip('/')}/cache/stats", admin_token)
    if as_json:
        typer.echo(body.decode())
        return
    try:
        report = json.loads(body)
        text = "\n\n".join([_replicas(report), *map(_store, report["stores"])])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--url: what is at {url} is no rtp-serve server") from error
    typer.echo(text)


def get(address: str, admin_token: str) -> bytes:
    """The body of an answer to a GET. Raises ConfigError with the server's reason, or ours."""
    headers = {"Authorization": f"Bearer {admin_token}"} if admin_token else {}
    if not address.startswith(("http://", "https://")):
        raise ConfigError(f"--url must begin with http:// or https://, got {address}")
    try:
        request = urllib.request.Request(address, headers=headers)
        opener = urllib.request.build_opener(_NoRedirects)
        with opener.open(request, timeout=_TIMEOUT_S) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            raise ConfigError(f"{address}: {error.code}: {_reason(error.read())}") from error
    except (OSError, ValueError, HTTPException) as error:  # a URL's port may be no number
        raise ConfigError(f"{address} does not answer: {error}") from error


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The token is for the server that was named, and no other."""

    def redirect_request(self, *_: object) -> None:
        return None


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return "no rtp-serve server answers there"


def _replicas(report: Report) -> str:
    lines = [
        f"{'replica':24}{'held':>8}{'cached':>8}{'blocks':>8}"
        f"{'from host':>11}{'from disk':>11}{'from nodes':>12}{'stored':>8}{'left out':>10}"
    ]
    for each in report["replicas"]:
        device, tiers = each["device"], each["tiers"]
        moved = ("-",) * 5
        if tiers:
            stored = tiers["host"]["stored"], tiers["host"]["not_stored"]
            restored = [tiers[name]["restored"] for name in ("host", "disk", "remote")]
            moved = (*restored, *stored)
        lines.append(
            f"{each['replica']:24}{device['num_held']:>8}{device['num_cached']:>8}"
            f"{device['num_blocks']:>8}{moved[0]:>11}{moved[1]:>11}{moved[2]:>12}{moved[3]:>8}"
            f"{moved[4]:>10}"
        )
    lines += [
        f"{each['replica']:24}keeps {kept['num_pinned']} tokens of {kept['num_tokens']} of prefix "
        f"{kept['name']}"
        for each in report["replicas"]
        for kept in each["pinned"]
    ]
    if not report["stores"]:
        lines.append("\nno tiers below the device (engine.kv_store.host.enable)")
    return "\n".join(lines)


def _store(store: Report) -> str:
    title = f"store {store['store']}"
    if not store["is_answering"]:
        return f"{title} does not answer"
    host, disk = store["host"], store["disk"]
    num_used = host["num_slabs"] - host["slabs_by_state"].get("free", 0)
    slab_bytes = host["slab_bytes"]
    lines = [
        title,
        f"{'tier':8}{'used':>12}{'of':>12}" + "".join(f"{each:>12}" for each in _COUNTS),
    ]
    lines.append(_tier("host", num_used * slab_bytes, host["num_slabs"] * slab_bytes, host))
    if disk is not None:
        lines.append(_tier("disk", disk["used_bytes"], disk["max_bytes"], disk))
        lines.append(
            f"disk is {disk['state']}; {store['num_to_spill']} blocks wait for it, "
            f"{store['num_not_spilled']} were not written"
        )
    lines.append(f"{host['num_pins']} pins, {host['num_leases']} reads under way")
    return "\n".join(lines)


def _tier(name: str, used_bytes: int, max_bytes: int, stats: Report) -> str:
    counts = "".join(f"{stats['counts'][each]:>12}" for each in _COUNTS)
    return f"{name:8}{_size(used_bytes):>12}{_size(max_bytes):>12}{counts}"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 20):.1f} MiB"
