"""Release a machine from inside: a real HTTP server for RunPod's API, a real program for runpodctl."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

import pytest

from deploy.pod.watchdog.release import PAUSES_S, Outcome, release
from tests.support.emulators import contract
from tests.support.emulators.rig import breaches
from tests.support.emulators.runpod import KEY as EMULATED_KEY
from tests.support.emulators.runpod import Emulator

KEY = "rpa_NEVER_TO_BE_SEEN"
POD = "pod 1/2"


class Api:
    """A server for RunPod's API. It answers with `answers` in turn, then with `always` or success. None hangs up."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str]] | None] = []
        self.calls: list[tuple[str, str, Any]] = []
        self.always: int | None = None
        api = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                api.calls.append((self.command, self.path, json.loads(body) if body else None))
                good = 204 if self.command == "DELETE" else 200
                answer = api.answers.pop(0) if api.answers else (api.always or good, {})
                if answer is None:
                    self.close_connection = True
                    return
                status, headers = answer
                if self.headers.get("Authorization") != f"Bearer {KEY}":
                    status = 401
                self.send_response(status)
                for name, value in {**headers, "Content-Length": "0"}.items():
                    self.send_header(name, value)
                self.end_headers()

            do_DELETE = do_POST = answer  # noqa: N815 - the names that http.server calls

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def api() -> Iterator[Api]:
    made = Api()
    yield made
    made.close()


@pytest.fixture
def env(api: Api, tmp_path: Path) -> dict[str, str]:
    """The environment of a pod without runpodctl on its PATH."""
    (tmp_path / "bin").mkdir()
    path = str(tmp_path / "bin")
    return {"RUNPOD_POD_ID": POD, "RUNPOD_API_KEY": KEY, "RUNPOD_API_BASE_URL": f"{api.url}/", "PATH": path}


def tool(env: dict[str, str], code: int = 0, *, knows: str = "pod delete") -> Path:
    """Install a runpodctl that records its arguments and checks its key. Returns the file of the records."""
    program, notes = Path(env["PATH"]) / "runpodctl", Path(env["PATH"]) / "calls"
    program.write_text(
        f"#!{sys.executable}\nimport os, sys\nwords = sys.argv[1:]\n"
        f"open({str(notes)!r}, 'a').write(' '.join(words) + chr(10))\n"
        f"assert os.environ['RUNPOD_API_KEY'] == {KEY!r}\n"
        f"if ' '.join(words[:2]) != {knows!r}: sys.exit('unknown command')\n"
        f"if {code}: sys.exit('key ' + os.environ['RUNPOD_API_KEY'] + ' is refused')\n"
    )
    program.chmod(0o755)
    return notes


@contextlib.contextmanager
def raw(answer: bytes, pause_s: float = 0.0) -> Iterator[str]:
    """A server that sends these bytes to every client, in one piece or with a pause after each, and hangs up."""

    given_up = threading.Event()

    class Says(StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            with contextlib.suppress(OSError):  # the client has given up
                for piece in [answer[at : at + 1] for at in range(len(answer))] if pause_s else [answer]:
                    self.wfile.write(piece)
                    if given_up.wait(pause_s):
                        return

    with ThreadingTCPServer(("127.0.0.1", 0), Says) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        given_up.set()
        server.shutdown()
    for thread in threading.enumerate():
        if thread.name == "request":  # its client no longer waits for it
            thread.join(10)


class Pauses(list[float]):
    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def test_a_pod_is_terminated(api: Api, env: dict[str, str]) -> None:
    """One call is enough."""
    assert release("terminate", env, Pauses()).done
    assert api.calls == [("DELETE", "/v2/pods/pod%201%2F2", None)]


def test_a_pod_that_runs_and_is_not_found_is_not_released(api: Api, env: dict[str, str]) -> None:
    """404 is a refusal, because the pod runs. The other ways are tried; it is released only if one succeeds."""
    api.always = 404
    outcome = release("terminate", env, Pauses())
    assert not outcome.done
    assert [path for _, path, _ in api.calls] == ["/v2/pods/pod%201%2F2", "/graphql"]
    assert "404" in outcome.words
    assert outcome.words.endswith("runpodctl is not installed")
    tool(env)
    assert release("terminate", env, Pauses()).words.startswith("runpodctl")


def test_a_pod_is_stopped(api: Api, env: dict[str, str]) -> None:
    assert release("stop", env, Pauses()).done
    assert api.calls == [("POST", "/v2/pods/pod%201%2F2/action", {"action": "stop"})]


def test_a_pod_of_a_cluster_goes_with_its_cluster(api: Api, env: dict[str, str]) -> None:
    """One call deletes the cluster. If it is refused, neither the API nor runpodctl is called for the pod alone."""
    calls = tool(env)
    assert release("terminate", env, Pauses(), "cluster 1/2").done
    assert api.calls == [("DELETE", "/v2/clusters/cluster%201%2F2", None)]
    api.always = 403
    refused = release("terminate", env, Pauses(), "cluster1")
    assert (refused.done, refused.words) == (False, "the API answered 403 Forbidden to terminate")
    stopped = release("stop", env, Pauses(), "cluster1")
    assert (stopped.done, stopped.words) == (False, "a cluster can only be ended, not stopped")
    assert {path.split("/")[2] for _, path, _ in api.calls} == {"clusters"}
    assert not calls.exists()


def test_a_service_that_is_down_is_tried_again(api: Api, env: dict[str, str]) -> None:
    """A closed connection counts as down, too. Retry-After sets the pause if it is longer."""
    api.answers = [(502, {}), None, (429, {"Retry-After": "7"})]
    pauses = Pauses()
    assert release("terminate", env, pauses).done
    assert pauses == [PAUSES_S[0], PAUSES_S[1], 7.0]


def test_both_calls_are_as_the_specification_has_them(env: dict[str, str]) -> None:
    """The requests match RunPod's specification, and terminate removes the pod."""
    emulator = Emulator()
    try:
        about = {"name": "a", "image": "b", "gpu": "NVIDIA A40", "gpu_count": 1, "cloud": "SECURE", "data_centers": []}
        pod = emulator.account.create(**about, disk=20, ports=[], env={})
        there = {**env, "RUNPOD_POD_ID": pod.id, "RUNPOD_API_KEY": EMULATED_KEY, "RUNPOD_API_BASE_URL": emulator.url}
        assert release("terminate", there, Pauses()).done
        assert (emulator.account.pods, breaches(emulator)) == ({}, [])
    finally:
        emulator.close()
    assert contract.problems_of_body("POST", "/v2/pods/x/action", {"action": "stop"}) == []
    assert contract.problems_of_body("POST", "/v2/pods/x/action", {"action": "rest"}) != []


@pytest.mark.parametrize("refusal", [401, 403, 404, 405, 503])
def test_graphql_is_the_second_way(env: dict[str, str], refusal: int) -> None:
    """GraphQL is tried if the REST API refuses or is down."""
    emulator = Emulator()
    try:
        about = {"name": "a", "image": "b", "gpu": "NVIDIA A40", "gpu_count": 1, "cloud": "SECURE", "data_centers": []}
        pod = emulator.account.create(**about, disk=20, ports=[], env={})
        there = {**env, "RUNPOD_POD_ID": pod.id, "RUNPOD_API_KEY": EMULATED_KEY, "RUNPOD_API_BASE_URL": emulator.url}
        emulator.fail(str(refusal), on="^DELETE", times=1 if refusal < 429 else len(PAUSES_S) + 1)
        assert release("terminate", there, Pauses()) == Outcome(True, "GraphQL accepted terminate")
        assert emulator.account.pods == {}
    finally:
        emulator.close()


@pytest.mark.parametrize(
    "answer",
    [b"", b"rubbish\r\n\r\n", b"HTTP/1.1 999\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
     b"HTTP/1.1 429 no\r\nRetry-After: \xb2\r\nContent-Length: 0\r\n\r\n",
     b"HTTP/1.1 503 no\r\nRetry-After: " + b"9" * 400 + b"\r\nContent-Length: 0\r\n\r\n"],
    ids=["nothing", "no HTTP", "no status", "cut short", "odd digits", "for ever"],
)  # fmt: skip
def test_answers_that_are_none_leave_the_tool(env: dict[str, str], answer: bytes) -> None:
    """runpodctl is tried after an invalid answer, and no pause exceeds a minute. An incomplete 200 means success."""
    with raw(answer) as url:
        pauses = Pauses()
        outcome = release("terminate", {**env, "RUNPOD_API_BASE_URL": url}, pauses)
    if answer.startswith(b"HTTP/1.1 200"):  # the status alone means that the DELETE was accepted
        assert outcome.done
        return
    assert not outcome.done
    assert outcome.words.endswith("runpodctl is not installed")
    assert max(pauses) <= 60


@pytest.mark.parametrize("action", ["stop", "terminate"])
def test_a_redirect_is_no_success_and_gets_no_key(api: Api, env: dict[str, str], action: str) -> None:
    """A page of a network's login answers 302, then 200: the machine would go on billing as released."""
    other = Api()
    try:
        api.answers = [(302, {"Location": f"{other.url}/login"})] * 2
        outcome = release(action, env, Pauses())
        assert (outcome.done, other.calls) == (False, [])
        assert outcome.words.startswith(f"the API answered 302 Found to {action}")
    finally:
        other.close()


def test_an_answer_that_comes_byte_by_byte_ends(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of each read would never be reached, and the other ways would never be tried."""
    monkeypatch.setattr("deploy.pod.watchdog.release.TOTAL_S", 0.5)
    with raw(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 10_000, pause_s=0.05) as url:
        outcome = release("terminate", {**env, "RUNPOD_API_BASE_URL": url}, Pauses())
    assert not outcome.done
    assert "the answer did not end within" in outcome.words
    assert outcome.words.endswith("runpodctl is not installed")


posix = pytest.mark.skipif(os.name == "nt", reason="the tool is a script: run on Linux or macOS")


@posix
@pytest.mark.parametrize("knows", ["pod delete", "remove pod"])
def test_the_tool_is_the_last_way(api: Api, env: dict[str, str], knows: str) -> None:
    """A refusal is not retried, because the pod's key may lack the right. Both syntaxes of runpodctl work."""
    api.always = 403
    notes = tool(env, knows=knows)
    pauses = Pauses()
    outcome = release("terminate", env, pauses)
    assert (outcome.done, outcome.words, pauses) == (True, f"runpodctl {knows} succeeded", [])
    assert [(method, path) for method, path, _ in api.calls] == [
        ("DELETE", "/v2/pods/pod%201%2F2"), ("POST", "/graphql"),
    ]  # fmt: skip
    assert notes.read_text().splitlines()[-1] == f"{knows} {POD}"
    assert KEY not in notes.read_text()


@posix
def test_what_the_tool_complains_of_is_told_without_the_key(api: Api, env: dict[str, str]) -> None:
    api.always = 403
    tool(env, code=1)
    outcome = release("terminate", env, Pauses())
    refused = "the API answered 403 Forbidden to terminate; GraphQL gave no answer: Forbidden"
    assert outcome.words == f"{refused}; runpodctl failed: unknown command"
    tool(env, code=1, knows="remove pod")
    assert release("terminate", env, Pauses()).words.endswith("runpodctl failed: key [secret] is refused")


@posix
def test_the_tool_stops_as_well(api: Api, env: dict[str, str]) -> None:
    api.always = 401
    notes = tool(env, knows="pod stop")
    assert release("stop", env, Pauses()).done
    assert notes.read_text() == f"pod stop {POD}\n"


@pytest.mark.parametrize("missing", ["RUNPOD_POD_ID", "RUNPOD_API_KEY"])
def test_what_is_missing_is_named(env: dict[str, str], missing: str) -> None:
    outcome = release("terminate", {**env, missing: ""}, Pauses())
    assert not outcome.done
    assert missing in outcome.words


def test_neither_way_leads_out(api: Api, env: dict[str, str]) -> None:
    """The outcome has the reason of each way, but never the key."""
    api.always = 500
    pauses = Pauses()
    outcome = release("terminate", env, pauses)
    assert (outcome.done, pauses) == (False, list(PAUSES_S))
    assert outcome.words == (
        "the API answered 500 Internal Server Error to terminate; GraphQL gave no answer: Internal Server Error; "
        "runpodctl is not installed"
    )
    api.close()
    refused = release("terminate", env, Pauses())
    assert "cannot be reached" in refused.words
    assert KEY not in refused.words
