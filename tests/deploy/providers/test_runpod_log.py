"""A pod's log is read as far as it goes, wherever the stream is cut, and in bounded time."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from deploy.providers.runpod import events
from deploy.providers.runpod.api import LogLine
from deploy.providers.runpod.identity import read
from tests.support.emulators.rig import Rig
from tests.support.load import under_load


def test_a_log_that_is_cut_ends_there(v2: Rig) -> None:
    machine = v2.acquire()
    whole = list(v2.provider().log(machine))
    v2.emulator.cut_log_after = [len(whole) - 1]
    assert list(v2.provider().log(machine)) == whole[:-1]


def test_a_log_that_never_stops_is_left(v2: Rig) -> None:
    """The search for host keys in a log must end."""
    machine = v2.acquire()
    pod = v2.emulator.pod(machine.name)
    talking = Talking(pod.machine.log())  # type: ignore[union-attr]
    pod.machine.log = talking.log  # type: ignore[method-assign,union-attr]
    v2.emulator.holds_streams = True
    limited = v2.with_limits(log_idle_s=5, log_s=0.3)
    began = time.monotonic()
    assert len(list(limited.provider().log(machine))) > 3
    assert time.monotonic() - began < under_load(4)


class Talking:
    def __init__(self, lines: list[tuple[str, str]]) -> None:
        self.lines = lines

    def log(self) -> list[tuple[str, str]]:
        self.lines.append((self.lines[0][0], f"line {len(self.lines)}"))
        return self.lines


def test_a_log_is_opened_again_when_the_api_is_down(v2: Rig) -> None:
    machine = v2.acquire()
    v2.emulator.fail("502", "logs", times=3)
    assert list(v2.provider().log(machine))[:1] == ["booting"]


def test_silence_is_the_end_of_a_log(v2: Rig) -> None:
    machine = v2.acquire()
    v2.emulator.holds_streams = True
    printed = list(v2.with_limits(log_idle_s=0.3).provider().log(machine))
    assert printed[0] == "booting"
    assert len(printed) == 4


def test_host_keys_of_the_last_boot_count_and_only_whole_lines_of_the_container() -> None:
    def line(text: str, source: str = "container") -> LogLine:
        return LogLine(text, source)

    found = read(
        [
            line("sniperface host key: ssh-ed25519 AAAAold root@pod"),
            line("sniperface host key: ssh-rsa AAAArsa=="),
            line("sniperface hardware: gpus=2 memory_gib=61.5"),
            line("sniperface host key: ssh-ed25519 AAAAnew root@pod"),
            line("epoch 3: sniperface host key: ssh-ed25519 AAAAforged"),
            line("sniperface host key: ssh-ed25519 AAAA' quoted"),
            line("sniperface host key: ssh-ed25519 AAAAsystem", "system"),
            line("sniperface hardware: gpus=0"),
        ]
    )
    assert found.host_keys == ("ssh-ed25519 AAAAnew", "ssh-rsa AAAArsa==")
    assert (found.gpus, found.memory_gib) == (0, None)


@given(st.lists(st.integers(1, 40)))
def test_a_stream_is_read_wherever_it_is_cut(sizes: list[int]) -> None:
    data = (
        ': a comment\r\n\r\nid: 1\r\ndata: {"line": "\u4e2d\u00e4", "source": "container", "ts": "t"}\r\n\r\n'
        'event: other\ndata: no json\n\nretry: 5\nid: 2\ndata: {"line":\ndata: "two", "source": "system"}\n\n'
        'data: {"line": "unfinished"}\n'
    ).encode()
    chunks, at = [], 0
    for size in [*sizes, len(data)]:
        chunks.append(data[at : at + size])
        at += size
    assert list(events.parse(chunks)) == [
        LogLine("\u4e2d\u00e4", "container"),
        LogLine("two", "system"),
    ]


def test_earlier_is_a_time_stamp_of_the_api() -> None:
    assert events.earlier("2026-06-01T12:00:00.123Z", 2) == "2026-06-01T11:59:58Z"
    assert events.earlier("2026-06-01T00:00:01Z", 60) == "2026-05-31T23:59:01Z"
    assert events.earlier("no time", 60) == "no time"
