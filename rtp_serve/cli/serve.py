"""`rtp-serve serve`: check the file, then hand over to the launcher, the first to import Ray.

Also what the launcher prints once the API answers.
"""

import importlib.util
import json
import os
import shlex
import sys

from rtp_serve.config.serve_file import ApplicationEntry, HttpOptions, read_serve_file
from rtp_serve.errors import ConfigError

_QUESTION = "What is the capital of France?"


def run_serve(config: str) -> None:
    """Replace this process by the launcher. Raises ConfigError; nothing was started then."""
    read_serve_file(config)
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("Ray is not installed; `pip install 'rtp-serve[serve]'` brings it")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "deployments.launch", config])


def base_url(http: HttpOptions, route_prefix: str | None) -> str:
    """Where this machine's clients reach an application, without a slash at the end."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", None: "127.0.0.1"}.get(http.host, http.host)
    scheme = "https" if http.ssl_certfile else "http"
    port = f"[{host}]:{http.port}" if ":" in str(host) else f"{host}:{http.port}"
    return f"{scheme}://{port}{http.root_path}{(route_prefix or '').rstrip('/')}"


def banner(application: ApplicationEntry, http: HttpOptions) -> str:
    """How to use an application that is ready: its addresses, and a command to paste."""
    url = base_url(http, application.route_prefix)
    return (
        f"\n{application.name} is ready\n"
        f"  OpenAI API  {url}/v1\n"
        f"  playground  {url}/\n"
        f"\nAsk it something:\n\n{_curl(url, application)}\n"
    )


def _curl(url: str, application: ApplicationEntry) -> str:
    body = {
        "model": application.config.engine.model_name,
        "messages": [{"role": "user", "content": _QUESTION}],
        "temperature": 0,
    }
    key = ""
    if application.config.api.auth.api_keys:
        key = '  -H "Authorization: Bearer $RTP_SERVE_API_KEY" \\\n'
    return (
        f"curl {url}/v1/chat/completions \\\n"
        f"  -H 'Content-Type: application/json' \\\n{key}"
        f"  -d {shlex.quote(json.dumps(body))}"
    )
