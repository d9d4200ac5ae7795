"""Servers that answer as no API does: a byte now and then, or much from little. Every call ends with one sentence."""

from __future__ import annotations

import functools
import gzip
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from deploy.errors import BadAnswer
from deploy.providers.lambda_cloud import api as lambda_api
from deploy.providers.lambda_cloud.api import LambdaApi
from deploy.providers.rented import Clock, Key
from deploy.providers.runpod.api import Unclear
from deploy.providers.runpod.pod_request import Wanted
from deploy.providers.runpod.ratelimit import Limits, Pace
from deploy.providers.runpod.rest import RestApi
from deploy.providers.runpod.sdk import SdkApi
from tests.deploy.conftest import wait_until

LATE_S = 0.25
Answer = Callable[[BaseHTTPRequestHandler, threading.Event], None]


class Server:
    """Answers each request by `answer`, until `over` is set."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.answer: Answer = drip
        self.asked = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked += 1
                server.answer(self, server.over)

            do_POST = do_GET  # noqa: N815 - the name that the base class looks up

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"


def drip(to: BaseHTTPRequestHandler, over: threading.Event, status: int = 200) -> None:
    """A blank of the body at a time, each earlier than the timeout of a read."""
    to.send_response(status)
    to.send_header("Content-Length", "100000")
    to.end_headers()
    while not over.wait(LATE_S / 10):
        to.wfile.write(b" ")


def drip_headers(to: BaseHTTPRequestHandler, over: threading.Event) -> None:
    to.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    while not over.wait(LATE_S / 10):
        to.wfile.write(b"x")


def drip_refusal(to: BaseHTTPRequestHandler, over: threading.Event) -> None:
    drip(to, over, status=403)


@functools.cache
def packed() -> bytes:
    """256 MiB in a few hundred bytes: compressed twice."""
    packing = zlib.compressobj(9, zlib.DEFLATED, 31)
    once = b"".join(packing.compress(bytes(1 << 20)) for _ in range(256)) + packing.flush()
    return gzip.compress(once, 9)


def bomb(to: BaseHTTPRequestHandler, _: threading.Event) -> None:
    data = packed()
    to.send_response(200)
    to.send_header("Content-Encoding", "gzip, gzip")
    to.send_header("Content-Length", str(len(data)))
    to.end_headers()
    to.wfile.write(data)


def sends(body: bytes) -> Answer:
    def answer(to: BaseHTTPRequestHandler, _: threading.Event) -> None:
        to.send_response(200)
        to.send_header("Content-Length", str(len(body)))
        to.end_headers()
        to.wfile.write(body)

    return answer


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.over.set()
    made.http.shutdown()
    made.http.server_close()


def ask_runpod(url: str, late_s: float = LATE_S) -> object:
    limits = Limits(request_s=late_s)
    return RestApi(Key("rpa_x"), Pace(Clock(), 60, print), limits, {"RUNPOD_API_BASE_URL": url}).pods()


def by_package(late_s: float) -> SdkApi:
    return SdkApi(Key("rpa_x"), Pace(Clock(), 60, print), Limits(request_s=late_s))


def ask_package(url: str, late_s: float = LATE_S) -> object:
    """RunPod's own package, which has neither of these limits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNPOD_API_BASE_URL", url)
        return by_package(late_s).pods()


def ask_lambda(url: str, late_s: float = LATE_S) -> object:
    api = LambdaApi(Key("x"), Clock(), {"LAMBDA_API_BASE_URL": url})
    api.answer_s = late_s
    return api.instances()


@pytest.mark.parametrize("answer", [drip, drip_headers, drip_refusal])
@pytest.mark.parametrize("ask", [ask_runpod, ask_package, ask_lambda])
def test_a_byte_now_and_then_is_no_answer(server: Server, ask: Callable[[str], object], answer: Answer) -> None:
    """The timeout of a read never strikes. Before, `down` waited for ever."""
    server.answer = answer
    with pytest.raises((Unclear, lambda_api.ApiError)) as caught:
        ask(server.url)
    assert "timed out" in str(caught.value) or "without an error message" in str(caught.value)


def test_a_pod_is_not_requested_late(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package asks for the GPU first. Without an answer in time it must not go on, or it rents a pod unseen."""
    monkeypatch.setenv("RUNPOD_API_BASE_URL", server.url)
    wanted = Wanted("sniperface-x", "an/image", "NVIDIA A40", 1, "ssh-ed25519 AAAA")
    with pytest.raises(Unclear, match="timed out"):
        by_package(LATE_S).create(wanted)
    server.over.set()  # the first answer ends
    server.answer = lambda to, _: to.send_response(200)
    wait_until(lambda: not any(each.name == "work in the background" for each in threading.enumerate()))
    assert server.asked == 1


@pytest.mark.parametrize("answer", [sends(b"[" * 100_000), sends(b'{"errors": []}'), sends(b'{"data": "x"}')])
def test_an_answer_of_another_kind_is_one_sentence(server: Server, answer: Answer) -> None:
    server.answer = answer
    with pytest.raises(Unclear, match="RunPod"):
        ask_package(server.url, 30.0)


@pytest.mark.parametrize("ask", [ask_runpod, ask_package, ask_lambda])
def test_a_small_answer_that_unpacks_to_much_takes_little_memory(server: Server, ask: Callable[..., object]) -> None:
    server.answer = bomb
    assert len(packed()) < 4096
    tracemalloc.start()
    try:
        with pytest.raises((Unclear, BadAnswer), match="more than 8388608 bytes"):
            ask(server.url, 30.0)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
