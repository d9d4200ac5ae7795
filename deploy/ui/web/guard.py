"""Decide which requests the page answers, and add the headers that keep other pages out.

Any page in the browser can send requests to this address, and any program of this computer can connect to it. So a
request needs the right host name, the token of this start and, to change something, proof that our own page sent it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs, urlencode

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
# A machine has written the report: it runs no script, sends nothing, and is of no origin.
REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; sandbox"
)
HEADERS = {
    "content-security-policy": POLICY,
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",  # with `no-referrer`, browsers would send `Origin: null` with our own form
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
KEY = "token"  # in the address that is printed
COOKIE = "HttpOnly; SameSite=Strict"
SAME = "same-origin"


class Guard:
    """Wraps an ASGI application: refuses requests from elsewhere, and turns the token of the address into a cookie."""

    def __init__(self, app: App, token: str, port: int) -> None:
        self.app = app
        self.token = token
        self.hosts = (f"127.0.0.1:{port}", f"localhost:{port}")
        self.cookie = f"sniperface-{port}"  # a browser sends the cookies of all ports of a host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        status, words, more = self.judge(scope)
        if status == 200:
            await self.app(scope, receive, _with_headers(send))
            return
        head = {"content-type": "text/plain; charset=utf-8", **more}
        send = _with_headers(send)
        await send({"type": "http.response.start", "status": status, "headers": _encoded(head)})
        await send({"type": "http.response.body", "body": f"{words}\n".encode()})

    def judge(self, scope: Scope) -> tuple[int, str, dict[str, str]]:
        """Status, words and headers of the answer; the status is 200 for a request that may pass."""
        told = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        hosts = [value for name, value in told if name == "host"]
        headers = dict(told)
        if len(hosts) != 1 or hosts[0].lower() not in self.hosts:
            return 421, f"this page answers to the address {self.hosts[0]} alone", {}
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, "this page answers GET and POST", {"allow": "GET, HEAD, POST"}
        asked = parse_qs(scope["query_string"].decode("latin-1"))
        if scope["method"] != "POST" and asked.get(KEY) and same(asked[KEY][0], self.token):
            del asked[KEY]
            query = f"?{urlencode(asked, doseq=True)}" if asked else ""
            # //host would be another address
            there = "/" + scope["raw_path"].decode("latin-1").lstrip("/\\") + query
            return 303, "", {"location": there, "set-cookie": f"{self.cookie}={self.token}; Path=/; {COOKIE}"}
        if not same(_cookie(headers.get("cookie", ""), self.cookie), self.token):
            return 403, "open the address that sniperface ui printed: it contains the key of this start", {}
        if scope["method"] == "POST" and not self.is_own(headers):
            return 403, "this request is not from the page itself: open the page, and use its button", {}
        return 200, "", {}

    def is_own(self, headers: dict[str, str]) -> bool:
        """Whether a browser says that our own page sends this request. Old browsers say nothing."""
        origins = [f"http://{host}" for host in self.hosts]
        return headers.get("origin", origins[0]) in origins and headers.get("sec-fetch-site", SAME) == SAME


def form_key(token: str) -> str:
    """What our own forms contain. A page elsewhere cannot read it, and cannot compute it without the token."""
    return hmac.new(token.encode(), b"form", hashlib.sha256).hexdigest()


def same(one: str, other: str) -> bool:
    """Compare secrets in a time that tells nothing about them."""
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))


def _cookie(header: str, name: str) -> str:
    pairs = [each.strip().partition("=") for each in header.split(";")]
    return next((value for key, _, value in pairs if key == name), "")


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message.get("headers", ())}
            missing = {name: value for name, value in HEADERS.items() if name.encode() not in given}
            message["headers"] = [*message.get("headers", ()), *_encoded(missing)]
        await send(message)

    return sent


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
