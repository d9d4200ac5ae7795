"""Send a message to a webhook, as the JSON that Slack and compatible services take: {"text": ...}.

The address is a secret, because whoever has it can post: messages name only its host. Redirects are not followed.
Nothing waits for a message longer than it says, and no failure is raised.
"""

from __future__ import annotations

import ipaddress
import json
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

WEBHOOK = "SNIPERFACE_NOTIFY"  # its name among the secrets of a machine, and in the laptop's environment
ATTEMPT_S = 5.0
PAUSES_S = (1.0, 3.0)  # between attempts
LIMIT_S = 20.0  # for all attempts together, whatever the server does
TEXT_CHARACTERS = 600


def why_not(address: str) -> str | None:
    """Return why an address cannot be a webhook, without the address; None if it can."""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return "it is no address"
    if not host or not address.isprintable() or " " in address:
        return "it is no address"
    if parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host)):
        return None
    return "it does not begin with https://"


def shown(address: str) -> str:
    """Return the address for messages: its path is the secret."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/…"


def send(address: str, text: str, pause: Callable[[float], None] = time.sleep) -> str | None:
    """Post a text, with retries. Returns None once it is accepted, else why it was not."""
    if reason := why_not(address):
        return f"the webhook cannot be used: {reason}"
    cut = text if len(text) <= TEXT_CHARACTERS else text[: TEXT_CHARACTERS - 4] + " ..."
    for mark, code in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):  # <!channel> in a reason must alarm nobody
        cut = cut.replace(mark, code)
    body = json.dumps({"text": cut}).encode("ascii")
    reason = None
    for wait_s in (*PAUSES_S, None):
        reason, may_help = _post(address, body)
        if reason is None or not may_help:
            break
        if wait_s is not None:
            pause(wait_s)
    return reason and f"{shown(address)} {reason}"


class Notifier:
    """Sends messages in the background. Without an address it sends nothing."""

    def __init__(self, address: str | None = None) -> None:
        self.address = address
        self.failure: str | None = None  # of the last message that was not accepted
        self._threads: list[threading.Thread] = []

    def tell(self, text: str) -> None:
        if self.address:
            thread = threading.Thread(target=self._send, args=(self.address, text), name="notify", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the machine is out of processes
                self.failure = "no thread could be started to send it"
                return
            self._threads.append(thread)

    def wait(self, limit_s: float = LIMIT_S) -> str | None:
        """Wait for all messages, at most `limit_s`. Returns why one was not accepted; None if all were."""
        until = time.monotonic() + limit_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        if self.address and any(thread.is_alive() for thread in self._threads):
            return f"{shown(self.address)} did not answer in time"
        self._threads.clear()
        return self.failure

    def _send(self, address: str, text: str) -> None:
        self.failure = send(address, text)


def _post(address: str, body: bytes) -> tuple[str | None, bool]:
    """Make one attempt. Returns why it failed (None: accepted), and whether another one may help."""
    # Loaded here: most machines send nothing, and each supervisor would start later.
    import http.client
    import urllib.error

    from deploy.pod.base import addresses

    wanted = addresses.request(address, {"Content-Type": "application/json", "User-Agent": "sniperface"})
    wanted.data = body
    try:
        with addresses.open_address(wanted, ATTEMPT_S, redirects=False):
            return None, False
    except urllib.error.HTTPError as error:
        with error:
            if 300 <= error.code < 400:
                return "redirects, which is not followed", False
            return f"answered {error.code}", error.code == 429 or error.code >= 500
    except (OSError, ValueError, http.client.HTTPException) as error:
        # The words of some errors hold the address.
        reason = getattr(error, "reason", None)
        said = reason.strerror if isinstance(reason, OSError) and reason.strerror else type(reason or error).__name__
        return f"cannot be reached ({said})", True


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
