"""Print web addresses without their secrets, and open them with safe redirects only.

A redirect may not leave https, nor lead from a public host to a private one. The host name is resolved before the
redirect is followed. Not covered: a DNS server that returns another address a moment later.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import ipaddress
import os
import re
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

IN_TEXT = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s\"'<>]+", re.IGNORECASE)
PORTS = {"http": 80, "https": 443}


def shown(address: str) -> str:
    """Return the address without user and password, query (signatures) and fragment (tokens)."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return re.split(r"[?#]", address)[0].rpartition("@")[2]
    if not parts.netloc:  # unix:///run/docker.sock has no host, and urllib would drop its slashes
        return re.split(r"[?#]", address)[0]
    return parts._replace(query="", fragment="", netloc=parts.netloc.rpartition("@")[2]).geturl()


def hide(value: Any) -> Any:
    """Apply `shown` to every address in a string, or in the strings of a mapping, list or tuple."""
    if isinstance(value, str):
        return IN_TEXT.sub(lambda found: shown(found.group()), value)
    if isinstance(value, Mapping):
        return {key: hide(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [hide(each) for each in value]
    return value


def request(address: str, headers: Mapping[str, str]) -> urllib.request.Request:
    """Build a request. User and password in the address become a header that is not sent to redirects."""
    parts = urlsplit(address)
    user, at, host = parts.netloc.rpartition("@")
    made = urllib.request.Request(  # noqa: S310 - `open_address` has no other handlers
        parts._replace(netloc=host, fragment="").geturl(), headers=dict(headers)
    )
    if at:
        word = base64.b64encode(unquote(user).encode()).decode("ascii")
        made.add_unredirected_header("Authorization", f"Basic {word}")
    return made


def open_address(wanted: urllib.request.Request, timeout_s: float, *, redirects: bool = True) -> Any:
    """Open an http or https address; no other scheme. Raises urllib.error.URLError or ValueError.

    Without `redirects`, one is an HTTPError.
    """
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        partial(urllib.request.HTTPSHandler, context=trusted()),
        urllib.request.HTTPDefaultErrorHandler,
        *((Redirects,) if redirects else ()),
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener.open(wanted, timeout=timeout_s)


def trusted() -> ssl.SSLContext:
    """Return the certificates of the system or, where Python finds none there, those of the package certifi.

    python.org's Python for macOS has none until its user runs a script, and a minimal Linux lacks ca-certificates.
    """
    context, paths = ssl.create_default_context(), ssl.get_default_verify_paths()
    if context.get_ca_certs() or paths.cafile or (paths.capath and os.listdir(paths.capath)):
        return context
    with contextlib.suppress(ImportError):
        context.load_verify_locations(importlib.import_module("certifi").where())
    return context


class Forbidden(urllib.error.URLError):
    """A redirect that is not followed. A retry would not help."""


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follow a redirect unless `why_not` returns a reason."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Follow a redirect. Raises Forbidden if its address may not be asked."""
        reason = why_not(req.full_url, newurl)
        if reason:
            fp.close()
            raise Forbidden(f"it redirects to {shown(newurl)}, {reason}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def why_not(start: str, to: str) -> str | None:
    """Return why a redirect must not be followed, or None if it may be."""
    here, there = urlsplit(start), urlsplit(to)
    if there.scheme not in PORTS:
        return "which is neither http nor https"
    if here.scheme == "https" and there.scheme != "https":
        return "which is not encrypted"
    if _is_private(there) and not _is_private(here):
        return "a private address: name it as the data's own address, if you mean it"
    return None


def _is_private(parts: Any) -> bool:
    """Whether any address of the host is not a public one. A name that does not resolve fails later, on connect."""
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or PORTS[parts.scheme], type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return any(not _public(str(each[4][0])) for each in found)


def _public(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_global and not address.is_multicast
