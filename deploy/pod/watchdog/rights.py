"""Report what this rented machine may do with its own key, without changing anything.

    python3 -m deploy.pod.watchdog.rights

Prints one JSON object, which `invoke doctor --rent` reads. It holds no value of a variable, only names.
Standard library only, Python 3.9 or newer: it runs in any image.
"""

from __future__ import annotations

import http.client
import json
import platform
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
from collections.abc import Mapping
from typing import Any

from deploy.pod.base.redact import Redactor, of_environment
from deploy.pod.base.text import visible
from deploy.pod.watchdog.release import BASE_URL_VARIABLE, WORDS, base_url, environment, sent, start_of

PROGRAMS = ("git", "tmux", "runpodctl", "nvidia-smi")
VENV = "import ensurepip, venv"
VERSION_S = 20.0


def rights(env: Mapping[str, str]) -> dict[str, Any]:
    """Return the machine's variables (names), the answers to its own key, and its programs."""
    base, pod = base_url(env), env.get("RUNPOD_POD_ID", "")
    own = urllib.parse.quote(pod, safe="")
    of_pod = f"query {{ pod(input: {{ podId: {json.dumps(pod)} }}) {{ id }} }}"
    asked = {
        "own pod": _asked(env, f"{base}/v2/pods/{own}"),
        "all pods": _asked(env, f"{base}/v2/pods"),
        "own pod by GraphQL": _asked(env, f"{base}/graphql", of_pod),
        "account by GraphQL": _asked(env, f"{base}/graphql", "query { myself { id } }"),
    }
    return {
        "variables": sorted(name for name in env if name.startswith("RUNPOD_")),
        "asked": asked,
        "programs": [name for name in PROGRAMS if shutil.which(name, path=env.get("PATH"))],
        "runpodctl": _version("runpodctl", env),
        "python": platform.python_version(),
        "venv": subprocess.run([sys.executable, "-c", VENV], capture_output=True, check=False).returncode == 0,
    }


def _asked(env: Mapping[str, str], address: str, query: str | None = None) -> str:
    """Send one request with the machine's key. Returns the answer in words, such as `200 OK`."""
    key = env.get("RUNPOD_API_KEY")
    if not key:
        return "not asked: RUNPOD_API_KEY is not set"
    if not address.startswith(("https://", "http://")):
        return f"not asked: {BASE_URL_VARIABLE} is no address"
    method, body = ("GET", None) if query is None else ("POST", json.dumps({"query": query}).encode())
    try:
        status, said = sent(
            method, address, key, body, lambda answer: (f"{answer.status} {answer.reason}", start_of(answer))
        )
        told, words = json.loads(said) if query else {}, status
        if told.get("errors"):
            words = f"refused: {told['errors']}"
    except urllib.error.HTTPError as error:
        with error:
            words = f"{error.code} {error.reason}"
    except (OSError, ValueError, AttributeError, http.client.HTTPException) as error:
        words = f"no answer: {getattr(error, 'reason', None) or error}"
    shown: str = Redactor(of_environment(env))(visible(words, newlines=False)[:WORDS])
    return shown


def _version(tool: str, env: Mapping[str, str]) -> str | None:
    path = shutil.which(tool, path=env.get("PATH"))
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, "version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=VERSION_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "does not answer"
    said = (done.stdout or done.stderr).decode("utf-8", errors="replace").strip().splitlines()
    return visible(said[0], newlines=False)[:WORDS] if said else "no version"


if __name__ == "__main__":
    print(json.dumps(rights(environment())))
