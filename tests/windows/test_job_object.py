"""The group of processes that ends the ranks on Windows. Without Windows, kernel32 is a recorder of its calls."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.pod.base import processes
from deploy.pod.base.job_object import KILL_ON_JOB_CLOSE, Accounting, JobObject, Limits
from tests.deploy.conftest import wait_until

# Starts a process that outlives it, and prints that one's pid.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdin=subprocess.DEVNULL)
print(child.pid, flush=True)
sys.stdin.readline()
"""


class Kernel:
    """Records what is called; each call in `fails` returns 0."""

    def __init__(self, *fails: str) -> None:
        self.fails = fails
        self.calls: list[str] = []
        self.flags = 0

    def _said(self, name: str) -> int:
        self.calls.append(name)
        return 0 if name in self.fails else 5

    def CreateJobObjectW(self, *_: Any) -> int:  # noqa: N802
        return self._said("create")

    def SetInformationJobObject(self, handle: int, kind: int, limits: Any, size: int) -> int:  # noqa: N802
        assert (handle, kind, size) == (5, 9, ctypes.sizeof(Limits))
        self.flags = limits._obj.Basic.LimitFlags
        return self._said("set")

    def AssignProcessToJobObject(self, handle: int, process: int) -> int:  # noqa: N802
        assert (handle, process) == (5, 77)
        return self._said("assign")

    def QueryInformationJobObject(self, handle: int, kind: int, told: Any, size: int, _: None) -> int:  # noqa: N802
        assert (handle, kind, size) == (5, 1, ctypes.sizeof(Accounting))
        told._obj.ActiveProcesses = 3
        return self._said("query")

    def TerminateJobObject(self, handle: int, code: int) -> int:  # noqa: N802
        assert (handle, code) == (5, 1)
        return self._said("terminate")

    def CloseHandle(self, handle: int) -> int:  # noqa: N802
        assert handle == 5
        return self._said("close")


@pytest.mark.skipif(sys.maxsize < 1 << 32, reason="needs a 64-bit Python")
def test_the_structures_have_the_sizes_of_windows() -> None:
    assert (ctypes.sizeof(Limits), ctypes.sizeof(Accounting)) == (144, 48)
    assert Limits.Basic.offset == 0
    assert type(Limits().Basic).LimitFlags.offset == 16
    assert Accounting.ActiveProcesses.offset == 40


def test_processes_are_held_counted_and_ended_once() -> None:
    kernel = Kernel()
    group = JobObject(kernel)
    assert group.count() == 0
    assert group.hold(77)
    assert kernel.flags == KILL_ON_JOB_CLOSE
    assert group.count() == 3
    group.end()
    group.end()
    assert kernel.calls == ["create", "set", "assign", "query", "terminate", "close"]
    assert group.count() == 0


@pytest.mark.parametrize("fails", ["create", "set", "assign"])
def test_without_the_right_nothing_is_grouped_and_nothing_is_left_open(fails: str) -> None:
    kernel = Kernel(fails)
    group = JobObject(kernel)
    assert not group.hold(77)
    assert ("close" in kernel.calls) is (fails != "create")
    group.end()
    assert "terminate" not in kernel.calls
    assert (JobObject(Kernel("query")).count(), JobObject().count()) == (0, 0)


@pytest.mark.skipif(sys.platform != "win32", reason="needs Windows")
@pytest.mark.parametrize("ends", ["end", "handle"])
def test_what_a_job_started_ends_with_it(tmp_path: Path, ends: str) -> None:
    """A rank ends after torchrun has ended, by `end` or because the process that holds the group is killed."""
    del tmp_path
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    group = JobObject()
    assert group.hold(int(parent._handle))  # type: ignore[attr-defined]
    assert parent.stdin
    assert parent.stdout
    rank = int(parent.stdout.readline())
    parent.stdin.close()
    parent.stdout.close()  # the rank has it too, so its end would be waited for
    parent.wait()
    assert group.count() >= 1
    if ends == "end":
        group.end()
    else:
        group._kernel.CloseHandle(group._handle)
    wait_until(lambda: not processes.is_alive(rank))
