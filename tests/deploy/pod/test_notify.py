"""Messages to a webhook: a real HTTP server that accepts, refuses, redirects or hangs; real supervisors and guards."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from deploy.pod.base.folder import write_json
from deploy.pod.base.notify import ATTEMPT_S, PAUSES_S, WEBHOOK, Notifier, send, shown, why_not
from tests.deploy.conftest import wait_until
from tests.deploy.pod.test_guard import Guarded
from tests.deploy.pod.test_guard import api as api
from tests.deploy.pod.test_guard import guarded as guarded
from tests.deploy.support.supervised import TELL, Supervised

SECRET = "T00/B00/never-to-be-seen"
JOB = TELL + (
    'print("env", sorted(name for name in os.environ if "NOTIFY" in name), flush=True)\n'
    'tell(event="eval", what="trained", epoch=1, accuracy=0.885)\n'
    'tell(event="end", reason="failed", message="<!channel> a & b"); sys.exit(1)'
)


class Hook:
    """A webhook. It answers with `answers` in turn, then with 200. None: it hangs until it is closed."""

    def __init__(self, *answers: int | None, location: str = "") -> None:
        self.texts: list[str] = []
        self.answers = list(answers)
        self.closed = threading.Event()
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.texts.append(json.loads(body)["text"])
                answer = hook.answers.pop(0) if hook.answers else 200
                if answer is None:
                    hook.closed.wait()
                    return
                self.send_response(answer)
                self.send_header("Content-Length", "0")
                if location:
                    self.send_header("Location", location)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.host = f"http://127.0.0.1:{self.server.server_port}"
        self.url = f"{self.host}/services/{SECRET}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.closed.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hooks() -> Iterator[Callable[..., Hook]]:
    made: list[Hook] = []

    def make(*answers: int | None, location: str = "") -> Hook:
        made.append(Hook(*answers, location=location))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize(
    ("address", "is_one"),
    [
        ("https://hooks.example.org/services/x", True),
        ("http://127.0.0.1:8080/x", True),
        ("http://localhost/x", True),
        ("http://[::1]:80/x", True),
        ("http://hooks.example.org/x", False),
        ("http://127.0.0.1.example.org/x", False),
        ("file:///etc/passwd", False),
        ("https://", False),
        ("https://host:port/x", False),
        ("https://host/a b", False),
        ("hooks.example.org", False),
    ],
)
def test_a_webhook_is_encrypted_or_on_this_machine(address: str, is_one: bool) -> None:
    assert (why_not(address) is None) is is_one


def test_a_server_that_fails_is_asked_again_and_a_refusal_is_not(hooks: Callable[..., Hook]) -> None:
    pauses: list[float] = []
    flaky = hooks(500, 503)
    assert send(flaky.url, "a <b> & c", pauses.append) is None
    assert (flaky.texts, pauses) == (["a &lt;b&gt; &amp; c"] * 3, list(PAUSES_S))
    broken, closed = hooks(*[500] * 9), hooks(404)
    assert send(broken.url, "x", pauses.append) == f"{broken.host}/… answered 500"
    assert len(broken.texts) == 1 + len(PAUSES_S)
    assert send(closed.url, "x", pauses.append) == f"{closed.host}/… answered 404"
    assert closed.texts == ["x"]
    assert SECRET not in shown(flaky.url)


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(hooks: Callable[..., Hook], code: int) -> None:
    other = hooks()
    redirecting = hooks(code, location=other.url)
    assert send(redirecting.url, "x") == f"{redirecting.host}/… redirects, which is not followed"
    assert (len(redirecting.texts), other.texts) == (1, [])


def test_nobody_waits_for_a_server_that_hangs_or_is_gone(hooks: Callable[..., Hook]) -> None:
    hanging, gone = hooks(None), hooks()
    gone.close()
    notifier = Notifier(hanging.url)
    notifier.tell("x")
    wait_until(lambda: hanging.texts)
    assert notifier.wait(0.01) == f"{hanging.host}/… did not answer in time"
    failure = send(gone.url, "x", lambda _: None)
    assert failure is not None
    assert failure.startswith(f"{gone.host}/… cannot be reached (")
    assert SECRET not in failure
    assert Notifier(None).wait() is None
    assert ATTEMPT_S < 10


def test_the_supervisor_tells_how_a_run_ended_and_the_job_does_not_know_where(
    make: Callable[..., Supervised], hooks: Callable[..., Hook]
) -> None:
    hook = hooks(404)
    run = make("one")
    write_json(Path(run.folder.secrets), {WEBHOOK: hook.url})
    run.start(JOB)
    assert run.end()[1]["state"] == "failed"
    assert len(hook.texts) == 1
    assert hook.texts[0].startswith("run one failed: &lt;!channel&gt; a &amp; b, accuracy 88.5%, ")
    assert b"env []" in run.log
    assert f"notification not delivered: {hook.host}/… answered 404\n".encode() in run.log
    for file in run.path.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes()


def test_the_guard_tells_once_that_a_share_of_the_money_is_spent(guarded: Guarded, hooks: Callable[..., Hook]) -> None:
    """A guard that replaces it does not tell again. Neither the status nor the machine's files have the address."""
    hook = hooks()
    spent: dict[str, Any] = {"max_usd": 10.0, "notify_pct": 50.0, "paid_since": time.time() - 3 * 3600}
    write_json(Path(guarded.root.guard_secrets), {WEBHOOK: hook.url})
    guarded.allow(**spent).start()
    wait_until(lambda: hook.texts)
    assert re.fullmatch(r"sniperface-x: \$6\.\d\d spent, 6\d% of max_usd 10", hook.texts[0])
    assert guarded.process is not None
    guarded.process.kill()
    guarded.process.communicate()
    write_json(Path(guarded.root.guard_secrets), {WEBHOOK: hook.url})
    guarded.start()
    wait_until(lambda: guarded.status["secrets"] == [WEBHOOK] and guarded.status["told_spend"])
    seen = guarded.status["heartbeat"]
    wait_until(lambda: guarded.status["heartbeat"] > seen)
    assert len(hook.texts) == 1
    assert SECRET not in Path(guarded.root.guard_status).read_text(encoding="utf-8")


def test_a_hook_that_hangs_does_not_keep_a_machine(guarded: Guarded, hooks: Callable[..., Hook]) -> None:
    hook = hooks(None, None, None, None, None)
    write_json(Path(guarded.root.guard_secrets), {WEBHOOK: hook.url})
    guarded.allow(max_usd=5.0, notify_pct=50.0, paid_since=time.time() - 3 * 3600, on_end="terminate").start()
    wait_until(lambda: guarded.api.calls)
    assert guarded.api.calls[0][0] == "DELETE"
    assert not hook.closed.is_set()
