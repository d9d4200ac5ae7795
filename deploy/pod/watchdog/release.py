"""Release this machine from inside: by the provider's API, then its older GraphQL API, then runpodctl.

    python3 -m deploy.pod.watchdog.release        terminate this pod; prints the outcome

It is not documented which of them a pod's own key may use, so all are tried even if one refuses. "Not found" is a
refusal too: this machine still runs, so that the API hides it from the key.

The key is read from the environment and sent only in an HTTP header. It is in no command line, log or status.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from deploy.pod.base.redact import Redactor, of_environment
from deploy.pod.base.text import visible

BASE_URL_VARIABLE = "RUNPOD_API_BASE_URL"
BASE_URL = "https://api.runpod.io"
LIMIT_S = 20.0  # for each read of an answer
TOTAL_S = 40.0  # for the whole answer
TOOL_LIMIT_S = 60.0
PAUSES_S = (1.0, 2.0, 4.0, 8.0)  # between attempts of one call; a longer Retry-After wins
LONGEST_PAUSE_S = 60.0
ANSWER_BYTES = 1 << 16  # of an answer that are read
WORDS = 200  # characters of it that are reported
# `runpodctl pod delete ID` is today's syntax, `remove pod` was used before 2026; images may have either version.
TOOL_WORDS = {
    "terminate": (("pod", "delete"), ("remove", "pod")),
    "stop": (("pod", "stop"), ("stop", "pod")),
}

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """Whether the release was accepted, and how, or why not."""

    done: bool
    words: str


def environment() -> dict[str, str]:
    """Return this process's environment plus the RUNPOD_ variables of process 1, which SSH sessions do not get."""
    own = dict(os.environ)
    with contextlib.suppress(OSError):
        for entry in Path("/proc/1/environ").read_bytes().split(b"\0"):
            name, _, value = entry.decode("utf-8", errors="replace").partition("=")
            if name.startswith("RUNPOD_"):
                own.setdefault(name, value)
    return own


def release(action: str, env: Mapping[str, str], pause: Callable[[float], None], cluster: str | None = None) -> Outcome:
    """`terminate` or `stop` this pod. `pause` waits between two attempts.

    A pod of a cluster is released only with its whole cluster. The API cannot end a single one, and if runpodctl did,
    the others would still be billed.
    """
    if cluster:
        if action != "terminate":
            return Outcome(False, "a cluster can only be ended, not stopped")
        by_api = _by_api(action, f"clusters/{urllib.parse.quote(cluster, safe='')}", env, pause)
        return Outcome(by_api.done, Redactor(of_environment(env))(by_api.words))
    pod = env.get("RUNPOD_POD_ID")
    if not pod:
        return Outcome(False, "RUNPOD_POD_ID is not set on this machine: is it a pod?")
    by_api = _by_api(action, f"pods/{urllib.parse.quote(pod, safe='')}", env, pause)
    if by_api.done:
        return by_api
    words = [by_api.words]
    for other in (_by_graphql, _by_tool):
        outcome = other(action, pod, env)
        if outcome.done:
            return outcome
        words.append(outcome.words)
    return Outcome(False, Redactor(of_environment(env))("; ".join(filter(None, words))))


def _by_api(action: str, path: str, env: Mapping[str, str], pause: Callable[[float], None]) -> Outcome:
    key, base = env.get("RUNPOD_API_KEY"), base_url(env)
    if not key:
        return Outcome(False, "RUNPOD_API_KEY is not set")
    if not base.startswith(("https://", "http://")):
        return Outcome(False, f"{BASE_URL_VARIABLE} is not an address: {base}")
    address = f"{base}/v2/{path}"
    words = ""
    for wait_s in (*PAUSES_S, None):
        outcome, again_s, words = _ask(action, address, key)
        if outcome is not None:
            return outcome
        if wait_s is not None:
            pause(min(LONGEST_PAUSE_S, max(wait_s, again_s)))
    return Outcome(False, words)


def _ask(action: str, address: str, key: str) -> tuple[Outcome | None, float, str]:
    """Make one API call. Returns (outcome, 0, ""), or (None, seconds to wait, reason) if a retry may help."""
    method, body = ("DELETE", None) if action == "terminate" else ("POST", json.dumps({"action": action}).encode())
    try:
        status = sent(method, address if action == "terminate" else f"{address}/action", key, body, _status)
        return Outcome(True, f"the API accepted {action} ({status})"), 0.0, ""
    except urllib.error.HTTPError as error:
        with error:
            words = f"the API answered {error.code} {error.reason} to {action}"
            if error.code == 429 or error.code >= 500:
                wait = error.headers.get("Retry-After") or ""
                return None, float(wait) if re.fullmatch("[0-9]{1,9}", wait) else 0.0, words
            return Outcome(False, words), 0.0, ""
    except (OSError, ValueError, http.client.HTTPException) as error:  # no connection, a timeout, or no HTTP answer
        return None, 0.0, f"the API cannot be reached: {getattr(error, 'reason', None) or error}"


def _by_graphql(action: str, pod: str, env: Mapping[str, str]) -> Outcome:
    """Make one call, as RunPod's own package does. The answer is always 200; errors are in its text."""
    key, base = env.get("RUNPOD_API_KEY"), base_url(env)
    if action != "terminate" or not key or not base.startswith(("https://", "http://")):
        return Outcome(False, "")
    query = f"mutation {{ podTerminate(input: {{ podId: {json.dumps(pod)} }}) }}"
    try:
        told = json.loads(sent("POST", f"{base}/graphql", key, json.dumps({"query": query}).encode(), start_of))
        is_done, errors = "podTerminate" in (told.get("data") or {}), str(told.get("errors") or "")
    except (OSError, ValueError, AttributeError, TypeError, http.client.HTTPException) as error:
        return Outcome(False, f"GraphQL gave no answer: {getattr(error, 'reason', None) or error}")
    if is_done and not errors:
        return Outcome(True, "GraphQL accepted terminate")
    return Outcome(False, f"GraphQL refused: {visible(errors, newlines=False)[:WORDS]}")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an HTTPError: urllib would send the key to the new address, and make a GET of a POST."""

    def redirect_request(self, *_: Any) -> None:
        return None


def sent(method: str, address: str, key: str, body: bytes | None, take: Callable[[http.client.HTTPResponse], T]) -> T:
    """Send one request to a checked address, and return what `take` makes of the open answer.

    Raises OSError, also for an answer that takes longer than TOTAL_S, ValueError or HTTPException.
    """
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", "User-Agent": "sniperface"}
    request = urllib.request.Request(address, body, headers, method=method)  # noqa: S310 - the scheme was checked
    opener = urllib.request.build_opener(_NoRedirects)

    def ask() -> T:
        with opener.open(request, timeout=LIMIT_S) as answer:
            return take(answer)

    return in_a_thread(ask, lambda thread: thread.join(TOTAL_S))  # LIMIT_S holds for each read alone


def start_of(answer: http.client.HTTPResponse) -> bytes:
    return answer.read(ANSWER_BYTES)


def _status(answer: http.client.HTTPResponse) -> int:
    return answer.status


def in_a_thread(work: Callable[[], T], wait: Callable[[threading.Thread], None]) -> T:
    """Call `work` in a thread until `wait` returns. Raises TimeoutError if it is not done then.

    If the machine is out of processes, `work` is called in this thread, and nothing waits for it.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def carry() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=carry, name="work", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return work()
    wait(thread)
    try:
        if failed:
            raise failed[0]
    finally:
        failed.clear()  # else the error and its traceback hold each other, and so the connection
    if not done:
        raise TimeoutError(f"the answer did not end within {TOTAL_S:.0f} s")
    return done[0]


def base_url(env: Mapping[str, str]) -> str:
    return (env.get(BASE_URL_VARIABLE) or BASE_URL).rstrip("/")


def _by_tool(action: str, pod: str, env: Mapping[str, str]) -> Outcome:
    tool = shutil.which("runpodctl", path=env.get("PATH"))
    if tool is None:
        return Outcome(False, "runpodctl is not installed")
    said = b""
    for words in TOOL_WORDS[action]:
        try:
            done = subprocess.run(
                [tool, *words, pod], env={**os.environ, **env}, stdin=subprocess.DEVNULL, capture_output=True,
                timeout=TOOL_LIMIT_S, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            return Outcome(False, f"runpodctl did not answer: {error}")
        if done.returncode == 0:
            return Outcome(True, f"runpodctl {' '.join(words)} succeeded")
        said = done.stderr or done.stdout
    last = said.decode("utf-8", errors="replace").strip().splitlines()[-1:] or ["no reason given"]
    return Outcome(False, f"runpodctl failed: {last[0]}")


def main() -> int:
    outcome = release("terminate", environment(), time.sleep)
    print(f"sniperface release: {outcome.words}", flush=True)
    return 0 if outcome.done else 1


if __name__ == "__main__":
    sys.exit(main())
