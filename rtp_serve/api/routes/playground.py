"""GET /: the playground, one static page that talks to this API and to nothing else."""

import re
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


class PlaygroundRoute:
    """Serves the page under a policy that runs its own script and style only."""

    def __init__(self) -> None:
        page = files("rtp_serve.api").joinpath("static/playground.html").read_text("utf-8")
        self._page = page.encode()
        self._headers = {
            "content-security-policy": _policy(page),
            "cache-control": "no-cache",
            "referrer-policy": "no-referrer",
        }

    async def page(self, request: HTTPRequest, tenant: str) -> Response:
        return Response(self._page, headers=self._headers, media_type="text/html; charset=utf-8")


def _policy(page: str) -> str:
    sources = {"script": "", "style": ""}
    for tag, text in _INLINE.findall(page):
        digest = b64encode(sha256(text.encode()).digest()).decode()
        sources[tag] += f" 'sha256-{digest}'"
    return (
        f"default-src 'none'; script-src{sources['script']}; style-src{sources['style']}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
