"""Without a network, short messages replace the library's text. A command waits only if something was created."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone

import pytest
import requests

from deploy.errors import NoMachine
from deploy.providers import network
from tests.deploy.conftest import Project
from tests.support.emulators.rig import Rig

RAW = ("Pool(", "Max retries", "urllib3", "object at", "Caused by", "Traceback", "requests.")
TARGET = "provider: runpod\nimage: me/sniperface:1\ngpus: [NVIDIA A40]\nroot: /workspace/sniperface\n"


@pytest.fixture
def nobody() -> str:
    """The URL of a port of this computer on which no process listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def mute() -> Iterator[str]:
    """The URL of a server that accepts a connection and sends nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def cutting() -> Iterator[str]:
    """The URL of a server that closes each connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def error_of(url: str, **about: float) -> BaseException:
    with pytest.raises(requests.RequestException) as caught:
        requests.get(url, timeout=about.get("timeout", 5))
    return caught.value


def test_words_for_what_a_network_does(nobody: str, mute: str, cutting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library raises all these errors itself."""
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    told = {
        "refused": error_of(nobody),
        "mute": error_of(mute, timeout=0.3),
        "cut": error_of(cutting),
        "name": error_of("http://no-such-host.invalid"),
        "tls": error_of(cutting.replace("http", "https")),
    }
    words = {name: network.in_words(error) for name, error in told.items()}
    assert words["refused"] == "the connection is refused"
    assert words["mute"] == "the request timed out"
    assert words["cut"] == "the connection was cut"
    assert words["name"].startswith("its host name cannot be resolved")
    assert not [text for text in words.values() if any(raw in text for raw in RAW)]
    sent = {name: not network.was_never_sent(error) for name, error in told.items()}
    assert sent == {"refused": False, "mute": True, "cut": True, "name": False, "tls": sent["tls"]}
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", nobody)
    assert "proxy" in network.in_words(error_of("http://example.invalid"))


def test_an_api_that_cannot_be_reached_is_told_in_seconds(
    both: Rig, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was created, so there is nothing to wait for."""
    monkeypatch.setenv("RUNPOD_API_BASE_URL", nobody)
    for ask in (both.acquire, both.provider().list, lambda: both.provider().find("x"), both.provider().volumes):
        before = both.clock.now()
        with pytest.raises(NoMachine, match="RunPod cannot be reached") as caught:
            ask()
        assert not [raw for raw in RAW if raw in caught.value.message]
        assert both.clock.now() - before <= 5
    assert both.intents() == []
    assert not [said for said in both.said if any(raw in said for raw in RAW)]


def test_a_network_that_is_lost_while_a_pod_starts_is_waited_for(v2: Rig, nobody: str) -> None:
    """The pod bills, so the provider asks about it until the network is back."""
    provider = v2.provider()
    rest = provider._rest
    there = rest.base
    v2.emulator.account.boot_s = 60.0
    sleep = v2.clock.sleep

    def slept(seconds: float) -> None:
        sleep(seconds)
        rest.base = nobody if 10 < v2.clock.now() < 200 else there

    v2.clock.sleep = slept  # type: ignore[method-assign]
    machine = provider.acquire(v2.spec())
    assert (v2.emulator.names, v2.creations) == ([machine.name], 1)
    assert v2.clock.now() >= 200


def test_a_dry_run_without_a_network_answers_in_seconds(project: Project, nobody: str) -> None:
    """The plan is printed without a price. The time limit comes from the same command for the local target."""
    (project.path / "conf" / "deploy" / "far.yaml").write_text(TARGET, encoding="utf-8")
    project.env = {"RUNPOD_API_BASE_URL": nobody, "RUNPOD_API_KEY": "rpa_none", "no_proxy": "*"}
    began = time.monotonic()
    project.invoke("train", "--dry-run")
    local_s = time.monotonic() - began
    began = time.monotonic()
    done = project.invoke("train", "--dry-run", "--on", "far", limit_s=300)
    assert time.monotonic() - began < 2 * local_s + 20
    assert not [raw for raw in RAW if raw in done.stdout + done.stderr]
    assert "Plan of" in done.stdout


def test_an_error_of_windows_sockets_has_its_own_words() -> None:
    """os.strerror knows numbers of the C library alone, and calls all others unknown."""
    words = "A socket operation encountered a dead network"
    told = network.in_words(requests.ConnectionError(OSError(10050, words)))
    assert told == f"the connection failed ({words})"
    assert network.in_words(OSError(13, "x")) == f"the connection failed ({os.strerror(13)})"


def test_a_certificate_of_a_companys_proxy_has_a_remedy() -> None:
    """requests brings certificates of its own, and does not look into those of Windows."""
    told = network.in_words(requests.exceptions.SSLError("CERTIFICATE_VERIFY_FAILED: unable to get local issuer"))
    assert told.startswith(
        "its certificate failed verification (CERTIFICATE_VERIFY_FAILED: unable to get local issuer)"
    )
    assert "set REQUESTS_CA_BUNDLE" in told


@pytest.mark.parametrize("date", ["Sun, 29 Nov 2026 12:00:00 GMT", "Sun, 29 Nov 2026 12:00:00 -0000"])
def test_a_date_is_of_utc_whatever_the_zone_of_this_computer(date: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 9110 knows no other. A wrong zone would be hours of money."""
    if sys.platform != "win32":  # which has no tzset
        monkeypatch.setenv("TZ", "UTC-5")
        time.tzset()
    at = datetime(2026, 11, 29, 11, 0, tzinfo=timezone.utc).timestamp()
    try:
        assert network.ahead_s(date, at, 0.0) == 3600
    finally:
        monkeypatch.undo()
        if sys.platform != "win32":
            time.tzset()
