"""Measure a job's GPU and CPU use, and free memory and disk space. Reading the values never blocks."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from deploy.pod.agent import verbs
from deploy.pod.base import processes
from deploy.pod.base.clock import Clock

EVERY_S = 5.0
GPU_EVERY_S = 5  # interval of nvidia-smi --loop
GPU_SILENT_S = 20.0  # without output for this long, nvidia-smi --loop is assumed to buffer it until exit
GPU_ONCE_S = 30.0  # between two starts of nvidia-smi without --loop
GPU_STALE_S = 60.0
QUERY = ["--query-gpu=index,utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits"]
MIB = 1 << 20


class Gauges:
    """The newest measurements, refreshed every EVERY_S seconds."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.folder = folder
        self.clock = clock
        self.gpus = GpuWatch(clock)
        self.values: dict[str, Any] = {}
        self._read_at: float | None = None
        self._cpu: tuple[int, float, float] | None = None  # pid, time of the measurement, CPU seconds

    def read(self, job_pid: int | None) -> dict[str, Any]:
        now = self.clock.monotonic()
        if self._read_at is None or now - self._read_at >= EVERY_S:
            self._read_at = now
            self.values = {
                "gpus": self.gpus.read(),
                "job_cpu_pct": self._cpu_pct(job_pid, now),
                "ram_free_bytes": ram_free_bytes(),
                "disk_free_bytes": disk_free_bytes(self.folder),
            }
        return self.values

    def _cpu_pct(self, pid: int | None, now: float) -> float | None:
        """Percent of one core since the last measurement; None until a job has been measured twice."""
        used = processes.cpu_s(pid) if pid else None
        before, self._cpu = self._cpu, (pid, now, used) if pid and used is not None else None
        if before is None or used is None or before[0] != pid or now <= before[1]:
            return None
        return round(max(0.0, used - before[2]) / (now - before[1]) * 100, 1)


class GpuWatch:
    """Read GPU values from one running `nvidia-smi --loop`.

    Starting it for each measurement would cost more than the rest of the supervisor. If the driver hangs, nvidia-smi
    hangs too and its values go stale; the supervisor does not wait. If it buffers its output until exit, it is started
    anew for each measurement, less often.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.program = shutil.which("nvidia-smi")
        self.process: subprocess.Popen[bytes] | None = None
        self._seen: dict[int, tuple[float, dict[str, Any]]] = {}
        self._start_at = self._started_at = clock.monotonic()
        self._pause_s = 1.0
        self._repeats = True

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process else None

    def read(self) -> list[dict[str, Any]] | None:
        """Return one dict per GPU, or None without nvidia-smi or without recent output."""
        if self.program is None:
            return None
        now = self.clock.monotonic()
        runs = self.process is not None and self.process.poll() is None
        if runs and self._repeats and not self._seen and now - self._started_at > GPU_SILENT_S:
            self._repeats = runs = False
            self.close()
        if not runs and now >= self._start_at:
            self._start_at = now + (self._pause_s if self._repeats else GPU_ONCE_S)
            self._pause_s = min(300.0, self._pause_s * 2)
            self._start(self.program, now)
        fresh = {number: values for number, (at, values) in dict(self._seen).items() if now - at < GPU_STALE_S}
        return [fresh[number] for number in sorted(fresh)] or None

    def close(self) -> None:
        if self.process is not None:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self.process.kill()
                self.process.wait(0.5)  # takes longer only if the driver hangs; then the process is left behind

    def _start(self, program: str, now: float) -> None:
        self._started_at = now
        options: dict[str, Any] = {}
        if sys.platform == "win32":
            options["creationflags"] = subprocess.CREATE_NO_WINDOW
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: the user may start no more threads
            self.process = subprocess.Popen(
                [program, *QUERY, *([f"--loop={GPU_EVERY_S}"] if self._repeats else [])],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **options,
            )  # fmt: skip
            threading.Thread(target=self._listen, args=(self.process,), name="gpus", daemon=True).start()

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                number, *values = [_number(word) for word in line.decode("ascii", errors="replace").split(",")]
                if number is not None and len(values) == 3:
                    used, whole = values[1], values[2]
                    seen = {
                        "utilization_pct": values[0],
                        "memory_used_bytes": None if used is None else used * MIB,
                        "memory_bytes": None if whole is None else whole * MIB,
                    }
                    self._seen[number] = (self.clock.monotonic(), seen)


def ram_free_bytes() -> int | None:
    """Return free memory, within the container's limit if it has one; None if unknown."""
    with contextlib.suppress(OSError):
        available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        limit = verbs.memory_bytes()
        if available and limit is not None:
            return max(0, min(int(available[1]) * 1024, limit - verbs.memory_used_bytes()))
    return None


def disk_free_bytes(folder: Path) -> int | None:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).free
    return None


def _number(word: str) -> int | None:
    """Parse a number. nvidia-smi prints [N/A] for values that a GPU or a part of one does not report."""
    word = word.strip()
    return int(word) if word.isdigit() else None
