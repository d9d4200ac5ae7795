"""A command that is ended by SIGTERM, a closed terminal or Ctrl-C while a pod starts releases the pod."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator

import pytest

from deploy.commands.signals import Ended, ended_in_order
from tests.deploy.conftest import Project, wait_until
from tests.support.emulators.runpod import KEY, Emulator
from tests.support.load import under_load

TARGET = "provider: runpod\nimage: me/sniperface:1\ngpus: [NVIDIA A40]\nroot: /workspace/sniperface\n"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals: run it on Linux or macOS")


@pytest.fixture(autouse=True)
def as_in_a_terminal() -> Iterator[None]:
    """Restore the default handlers: other tests of this process set some."""
    before = {name: signal.signal(name, signal.SIG_DFL) for name in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for name, handler in before.items():
        signal.signal(name, handler)


@pytest.fixture
def starting(project: Project) -> Iterator[Emulator]:
    """An account whose pods take an hour to start."""
    emulator = Emulator(boot_s=3600)
    (project.path / "conf" / "deploy" / "far.yaml").write_text(TARGET, encoding="utf-8")
    project.env = {"RUNPOD_API_BASE_URL": emulator.url, "RUNPOD_API_KEY": KEY, "no_proxy": "*"}
    yield emulator
    emulator.close()


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_pod_that_starts_is_given_back(project: Project, starting: Emulator, name: str, code: int) -> None:
    """The command releases the pod before it ends. A second signal does not prevent that."""
    process = project.start("deploy", "--on", "far")
    wait_until(lambda: starting.names)
    process.send_signal(getattr(signal, name))
    if name == "SIGTERM":
        process.send_signal(signal.SIGTERM)
    told, complaint = process.communicate(timeout=under_load(60))
    assert (process.returncode, starting.names) == (code, []), told + complaint
    assert len(starting.account.ended) == 1
    assert "Traceback" not in complaint


def test_what_is_ignored_stays_ignored_and_what_was_set_comes_back() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def hang_up_and_end() -> None:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)

    try:
        with pytest.raises(Ended, match="143"), ended_in_order():
            hang_up_and_end()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_only_the_main_thread_has_signals() -> None:
    reached = []

    def act() -> None:
        with ended_in_order():
            reached.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=act)
    thread.start()
    thread.join()
    assert reached == [signal.SIG_DFL]
