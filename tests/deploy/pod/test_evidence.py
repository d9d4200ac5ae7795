"""What a log's last lines tell of a job's end."""

from __future__ import annotations

import pytest

from deploy.pod.base.job_log import EVIDENCE_LINES, last_words

WARNING = "[W1129 16:12:05.104233811 TCPStore.cpp:106] [c10d] sendBytes failed on SocketImpl(fd=3): Broken pipe"
# As torchrun prints it if the machine with the store has left.
TRACE = [
    WARNING,
    "Exception raised from sendBytes at /pytorch/torch/csrc/distributed/c10d/Utils.hpp:653 (most recent call first):",
    *(f"frame #{number}: <unknown function> + 0x5ffc5b1 (0x7f in /libtorch_cpu.so)" for number in range(30)),
    "",
]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], []),
        (["a", "", " ", "b"], ["a", "b"]),
        ([str(number) for number in range(99)], [str(number) for number in range(99 - EVIDENCE_LINES, 99)]),
        (["RuntimeError: no memory", *TRACE], ["RuntimeError: no memory", WARNING]),
        (["x", *(f"[rank1]:{line}" for line in TRACE)], ["x", f"[rank1]:{WARNING}", "[rank1]:"]),
        (["the frame #3: of a film"], ["the frame #3: of a film"]),
    ],
    ids=["nothing", "empty lines", "many", "a trace", "of a rank", "words of the job"],
)
def test_frames_of_a_trace_hide_no_words_of_the_job(lines: list[str], words: list[str]) -> None:
    assert last_words("\n".join(lines).encode()) == words


def test_bytes_that_are_no_text_are_shown() -> None:
    assert last_words(b"\xff\nend") == ["\ufffd", "end"]
