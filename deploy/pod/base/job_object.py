"""A Job Object of Windows: a process and all that it starts, which end together. Elsewhere it does nothing.

Windows keeps no tree of processes: ranks that outlive torchrun have no parent left to find them by. The processes of a
Job Object end when its last handle closes, also if the process that holds the handle is killed.
"""

from __future__ import annotations

import ctypes
from typing import Any

from deploy.pod.base.windows import kernel32

KILL_ON_JOB_CLOSE = 0x2000
EXTENDED_LIMITS, ACCOUNTING = 9, 1  # classes of information


class _BasicLimits(ctypes.Structure):
    _fields_ = [
        ("PerProcessUserTimeLimit", ctypes.c_int64),
        ("PerJobUserTimeLimit", ctypes.c_int64),
        ("LimitFlags", ctypes.c_uint32),
        ("MinimumWorkingSetSize", ctypes.c_size_t),
        ("MaximumWorkingSetSize", ctypes.c_size_t),
        ("ActiveProcessLimit", ctypes.c_uint32),
        ("Affinity", ctypes.c_size_t),
        ("PriorityClass", ctypes.c_uint32),
        ("SchedulingClass", ctypes.c_uint32),
    ]


class Limits(ctypes.Structure):
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION."""

    _fields_ = [
        ("Basic", _BasicLimits),
        ("IoInfo", ctypes.c_uint64 * 6),
        ("Memory", ctypes.c_size_t * 4),
    ]


class Accounting(ctypes.Structure):
    """JOBOBJECT_BASIC_ACCOUNTING_INFORMATION."""

    _fields_ = [
        ("Times", ctypes.c_int64 * 4),
        ("TotalPageFaultCount", ctypes.c_uint32),
        ("TotalProcesses", ctypes.c_uint32),
        ("ActiveProcesses", ctypes.c_uint32),
        ("TotalTerminatedProcesses", ctypes.c_uint32),
    ]


class JobObject:
    """`kernel`: kernel32; None: this computer's, if it is Windows. Without rights for it, nothing is grouped."""

    def __init__(self, kernel: Any = None) -> None:
        self._kernel = kernel or _kernel32()
        self._handle: int | None = None

    def hold(self, process_handle: int) -> bool:
        """Put a process and all that it starts from now on into the group. Returns whether that worked."""
        if self._kernel is None:
            return False
        handle = self._kernel.CreateJobObjectW(None, None)
        limits = Limits()
        limits.Basic.LimitFlags = KILL_ON_JOB_CLOSE
        size = ctypes.sizeof(limits)
        if (
            handle
            and self._kernel.SetInformationJobObject(handle, EXTENDED_LIMITS, ctypes.byref(limits), size)
            and self._kernel.AssignProcessToJobObject(handle, process_handle)
        ):
            self._handle = handle  # not closed: that would end the processes
            return True
        if handle:
            self._kernel.CloseHandle(handle)
        return False

    def count(self) -> int:
        """Return the number of living processes in the group; 0 where nothing is grouped."""
        told = Accounting()
        if self._handle is None or not self._kernel.QueryInformationJobObject(
            self._handle, ACCOUNTING, ctypes.byref(told), ctypes.sizeof(told), None
        ):
            return 0
        return int(told.ActiveProcesses)

    def end(self) -> None:
        """Kill every process of the group at once."""
        if self._handle is not None:
            self._kernel.TerminateJobObject(self._handle, 1)
            self._kernel.CloseHandle(self._handle)
            self._handle = None


def _kernel32() -> Any:
    kernel = kernel32()
    if kernel is None:
        return None
    handle, word, pointer = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p
    kernel.CreateJobObjectW.restype = handle
    kernel.CreateJobObjectW.argtypes = [pointer, pointer]
    kernel.SetInformationJobObject.argtypes = [handle, ctypes.c_int, pointer, word]
    kernel.AssignProcessToJobObject.argtypes = [handle, handle]
    kernel.QueryInformationJobObject.argtypes = [handle, ctypes.c_int, pointer, word, pointer]
    kernel.TerminateJobObject.argtypes = [handle, ctypes.c_uint32]
    kernel.CloseHandle.argtypes = [handle]
    return kernel
