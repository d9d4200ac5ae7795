"""Jobs that crash: which are restarted, from which checkpoint, and what the status says meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.pod.base import processes
from deploy.pod.base.clock import Clock
from deploy.pod.base.folder import RunFolder, read_json, write_json
from deploy.pod.base.heartbeat import HEARTBEAT_S
from deploy.pod.base.limits import Limits
from deploy.pod.base.redact import MASK, Redactor
from deploy.pod.job import gpu_metrics, restarts
from deploy.pod.job.status import StatusFile
from tests.deploy.conftest import PRETEND, wait_until
from tests.deploy.support.supervised import SAVE, TELL, TRAINING, Supervised
from tests.support.faults import Fault
from tests.support.load import under_load

Make = Callable[..., Supervised]
CRASHING = SAVE + 'save(count + 1)\nif count < 2: crash()\ntell(event="end", reason="done")'
LOOPING = SAVE + "if not count: save(1)\ncrash()"
EACH_TIME = SAVE + "save(count + 1)\ncrash()"
UNPAID = "nobody pays for this one"
HALF = SAVE + "save(count + 1, broken=bool(steps))\ncrash()"
posix = pytest.mark.skipif(os.name == "nt", reason="signals are POSIX: run on Linux or macOS")


@posix
def test_a_crashed_job_goes_on_from_its_newest_checkpoint(make: Make) -> None:
    """The attempt stays the same. The status counts the restarts and shows the last crash with the end of its log."""
    run = make().start(CRASHING, max_restarts=3)
    code, status = run.end()
    assert (code, status["state"], status["attempt"], status["restarts"]) == (0, "succeeded", 1, 2)
    assert run.starts == ["train.resume='none'", "train.resume='auto'", "train.resume='auto'"]
    assert "signal 9; starting again from epoch_002.pt" in status["last_crash"]["reason"]
    assert status["last_crash"]["evidence"] == ["boom"]
    assert (status["step"], status["reason"], status["evidence"]) == (3, None, None)


@posix
@pytest.mark.parametrize(
    ("script", "started_again", "why"),
    [
        (SAVE + "crash()", 0, "no complete checkpoint"),
        (LOOPING, 1, "no complete checkpoint since epoch_001.pt"),
        (HALF, 1, "no complete checkpoint since epoch_001.pt"),
        (EACH_TIME, 3, "max_restarts"),
    ],
    ids=["nothing-saved", "nothing-new", "only-half-saved", "again-and-again"],
)
def test_a_crash_loop_ends_with_evidence(make: Make, script: str, started_again: int, why: str) -> None:
    """A restart without a new checkpoint would repeat the crash. Restarts are limited in any case."""
    run = make().start(script, max_restarts=3)
    code, status = run.end()
    assert (code, status["state"], status["restarts"]) == (1, "failed", started_again)
    assert (run.path / "train.log").read_text(encoding="utf-8").endswith(f"] the run failed: {status['reason']}\n")
    assert "killed by signal 9" in status["reason"]
    assert why in status["reason"]
    assert status["evidence"] == ["boom"]


@pytest.mark.parametrize(
    "end",
    [
        "sys.exit(2)",
        'tell(event="end", reason="wrong_use", message="give 3"); sys.exit(1)',
        'tell(event="end", reason="failed", message="the loss was not finite"); sys.exit(1)',
    ],
)
def test_what_would_end_the_same_way_is_not_tried_again(make: Make, end: str) -> None:
    """Such a job is not restarted, even with a newer checkpoint."""
    run = make().start(SAVE + f"save(count + 1)\n{end}", max_restarts=3)
    _, status = run.end()
    assert (status["state"], status["restarts"], len(run.starts)) == ("failed", 0, 1)


@posix
def test_a_stop_between_two_starts_is_a_stop(make: Make) -> None:
    """During the pause the state is `restarting`, and a stop request ends the run."""
    run = make().start(EACH_TIME, max_restarts=3, restart_pause_s=3600).until("restarting")
    assert run.status["ended"] is None
    run.stop()
    code, status = run.end()
    assert (code, status["state"], status["reason"]) == (0, "stopped", "stopped before it was started again")


@posix
def test_a_job_that_crashes_while_it_is_asked_to_stop_is_not_started_again(make: Make) -> None:
    run = make().start(SAVE + 'save(1); print("begun", flush=True); sys.stdin.read(); crash()', max_restarts=3).begun()
    run.stop()
    _, status = run.end()
    assert (status["state"], status["restarts"]) == ("failed", 0)


@posix
def test_a_second_signal_leaves_the_last_checkpoint_whole(make: Make) -> None:
    """The job is deaf, and its next checkpoint is half written."""
    script = SAVE + 'save(1); open("checkpoints/.epoch_002.pt.part", "wb").write(b"half"); print("begun", flush=True)\n'
    run = make().start(script + "time.sleep(600)", grace_s=3600).begun()
    assert run.process is not None
    run.process.send_signal(signal.SIGTERM)
    wait_until(lambda: run.status.get("reason"))
    run.process.send_signal(signal.SIGTERM)
    assert run.end()[1]["state"] == "stopped"
    about = json.loads((run.path / "checkpoints" / "epoch_001.json").read_text())
    assert (run.path / "checkpoints" / "epoch_001.pt").stat().st_size == about["bytes"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="orphans are adopted on Linux only: run there")
@pytest.mark.parametrize("victim", ["rank", "torchrun"])
def test_a_killed_process_of_a_job_is_made_good(make: Make, victim: str, fault: Fault) -> None:
    """The job is torchrun with two ranks in sessions of their own, as the launcher starts it.

    No rank of the first start survives.
    """
    run = make()
    images = run.path.parent / "images.npy"
    run.path.mkdir(parents=True)
    images.touch()
    settings = [f"run.dir='{_quoted(run.path)}'", f"data.binary_cache_path='{_quoted(images)}'", "train.epochs=2"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "app.train"]
    environment = {"PYTHONPATH": str(PRETEND), "SNIPERFACE_SUPERVISED": "1"}
    argv = [*launcher, *settings, "train.steps=60", f"train.step_s={under_load(0.02):.2f}", "train.resume='none'"]
    run.start(argv=argv, env=environment, max_restarts=3)
    first = wait_until(lambda: (run.status.get("step") or 0) >= 3 and run.status["job_pid"])
    ranks = subprocess.run(["pgrep", "-P", str(first)], capture_output=True, text=True, check=True).stdout.split()
    is_second = [b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes() for pid in ranks]  # numbers start again
    os.kill(first if victim == "torchrun" else int(ranks[is_second.index(True)]), signal.SIGKILL)
    fault.strikes()
    fault.told(lambda: run.status["restarts"] or "killed" in (run.status["reason"] or ""))
    _, status = run.end()
    assert (status["state"], status["restarts"], status["step"]) == ("succeeded", 1, 120)
    events = [json.loads(line) for line in Path(run.folder.metrics).read_text().splitlines()]
    starts = [event["step"] for event in events if event["event"] == "start"]
    assert starts[0] == 0 < starts[1]
    assert not any(processes.is_alive(int(pid)) for pid in ranks)
    fault.checkpoints(run.path)
    fault.leaves_out(machines=UNPAID)


def test_a_restart_changes_nothing_but_where_to_resume() -> None:
    """Quotes in the command do not matter. The pause doubles, up to a minute."""
    argv = ["python", "-m", "app.train", "train.resume='/a b/it\\'s.pt'", "run.dir='x'", "a.train.resume=1"]
    assert restarts.resuming(argv) == [*argv[:3], "train.resume='auto'", *argv[4:]]
    assert [restarts.pause_s(2, count) for count in range(7)] == [2, 4, 8, 16, 32, 60, 60]


@pytest.mark.slow
def test_the_status_tells_what_the_machine_gives(make: Make, tmp_path: Path) -> None:
    """The status has GPU values (from a stand-in for nvidia-smi), memory, disk, CPU use, cost and deadline."""
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text(
        f"#!{sys.executable}\nimport sys, time\nassert '--loop=5' in sys.argv\n"
        "while True: print('0, 87, 1024, 81559\\n1, [N/A], 5, 81559', flush=True); time.sleep(0.5)\n"
    )
    smi.chmod(0o755)
    now = time.time()
    run = make().start(
        TELL + 'print("begun", flush=True)\nwhile not os.path.exists("end"): pass\ntell(event="end", reason="done")',
        env={"PATH": f"{smi.parent}{os.pathsep}{os.environ['PATH']}"},
        paid_since=now - 1800, usd_per_hour=2.0, max_hours=48, max_usd=10,
    )  # fmt: skip
    status = wait_until(lambda: run.status.get("gpus") and run.status.get("job_cpu_pct") and run.status)
    (run.path / "end").touch()
    if os.name != "nt":
        assert status["gpus"] == [
            {"utilization_pct": 87, "memory_used_bytes": 1024 << 20, "memory_bytes": 81559 << 20},
            {"utilization_pct": None, "memory_used_bytes": 5 << 20, "memory_bytes": 81559 << 20},
        ]
    if sys.platform == "linux":
        assert 20 / under_load(1) < status["job_cpu_pct"] < 150  # others compute too
        assert status["ram_free_bytes"] > 1 << 20
    assert status["disk_free_bytes"] > 0
    assert status["spend_usd"] == pytest.approx(1.0, abs=0.05)
    # $10 pay for 5 h, of which half an hour has passed; the last minutes are reserved for checkpoint and copy.
    assert status["deadline"] == pytest.approx(now + 4.5 * 3600 - 660, abs=30)
    assert run.end()[1]["state"] == "succeeded"


def test_a_graphics_driver_that_hangs_is_waited_for_by_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last values of nvidia-smi expire after GPU_STALE_S."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!{sys.executable}\nimport time\nprint('0, 5, 1, 2', flush=True)\ntime.sleep(600)\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    now = [0.0]
    watch = gpu_metrics.GpuWatch(Clock(monotonic=lambda: now[0]))
    try:
        if os.name != "nt":
            assert wait_until(watch.read)[0]["utilization_pct"] == 5
        now[0] = 100.0
        assert watch.read() is None
    finally:
        watch.close()
    if watch.process:
        watch.process.wait(under_load(10))


@pytest.mark.skipif(os.name == "nt", reason="the program is a script: run on Linux or macOS")
def test_words_that_come_only_at_the_end_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An nvidia-smi that buffers its output while it loops is started again without the loop."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        f"#!{sys.executable}\nimport sys, time\nprint('0, 5, 1, 2')\n'--loop=5' in sys.argv and time.sleep(600)\n"
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    now = [0.0]
    watch = gpu_metrics.GpuWatch(Clock(monotonic=lambda: now[0]))
    assert watch.read() is None
    now[0] = gpu_metrics.GPU_SILENT_S + 1
    assert wait_until(watch.read)[0]["utilization_pct"] == 5
    assert watch.process is not None
    assert watch.process.wait(under_load(10)) == 0


def test_secrets_are_the_jobs_alone(make: Make) -> None:
    """Secrets are in the job's environment and nowhere else: no file, command line, status or evidence."""
    secret = 'wandb-"quoted"-2f7d'
    run = make()
    run.path.mkdir(parents=True)
    write_json(Path(run.folder.secrets), {"WANDB_API_KEY": secret, "SHORT": "1", "SILLY": "failed"})
    wait = 'print("begun", flush=True); sys.stdin.read(); raise RuntimeError("bad key " + os.environ["WANDB_API_KEY"])'
    run.start(TELL + wait).begun()
    assert not Path(run.folder.secrets).exists()
    assert secret not in _command_lines()
    run.stop()
    _, status = run.end()
    assert status["evidence"][-1] == f"RuntimeError: bad key {MASK}"
    assert status["state"] == "failed"
    for file in run.path.rglob("*"):  # test_redacting_log.py covers the log
        if file.is_file() and file != Path(run.folder.log):
            assert json.dumps(secret)[1:-1].encode() not in file.read_bytes()
            assert secret.encode() not in file.read_bytes()


def test_a_jump_of_the_clock_makes_a_heartbeat_due(tmp_path: Path) -> None:
    """Otherwise the last heartbeat would look an hour old, or lie an hour ahead and hide a dead supervisor."""
    now, wall = [0.0], [10_000.0]
    folder = RunFolder(tmp_path)
    plan = {"run_id": "a", "attempt": 1, "busy_lock": str(tmp_path / "busy.lock")}
    clock = Clock(monotonic=lambda: now[0], wall=lambda: wall[0])
    status = StatusFile(folder, plan, Limits(), Redactor([]), clock)

    def beat(later_s: float, jump_s: float) -> float:
        now[0] += later_s
        wall[0] += later_s + jump_s
        status.beat()
        return float(read_json(Path(folder.status))["heartbeat"])

    assert beat(0, 0) == 10_000
    assert beat(0.5, 0) == 10_000
    assert beat(0.1, 3600) == wall[0]
    assert beat(0.1, -3600) == wall[0]
    assert beat(0.1, 0) == wall[0] - 0.1
    assert beat(HEARTBEAT_S, 0) == wall[0]


JUMPING = """
import os, sys, time
from deploy.pod.base.clock import Clock
from deploy.pod.job.supervisor import main
def wall():
    return time.time() + (float(open(JUMP).read() or 0) if os.path.exists(JUMP) else 0)
JUMP = sys.argv[1] + "/jump"
sys.exit(main(["supervisor", sys.argv[1]], Clock(wall=wall)))
"""


@pytest.mark.parametrize("jump_s", [90_000, -90_000])
def test_a_jump_of_the_clock_neither_ends_a_job_nor_makes_it_look_dead(make: Make, jump_s: int, fault: Fault) -> None:
    """The heartbeat is corrected at once, before the next is due. Neither the grace nor the cost jumps."""
    job = TRAINING.replace("sys.stdin.read()", "time.sleep(600)")
    run = make().start(job, launcher=["-c", JUMPING], paid_since=time.time(), usd_per_hour=1, max_hours=1).begun()
    (run.path / "jump").write_text(str(jump_s))
    fault.strikes()
    fault.told(lambda: abs(run.status["heartbeat"] - time.time() - jump_s) < 100)
    run.stop()
    wait_until(lambda: "waiting for the checkpoint" in (run.status.get("reason") or ""))
    heartbeat = run.status["heartbeat"]
    wait_until(lambda: run.status["heartbeat"] > heartbeat)
    assert (run.status["state"], run.status["spend_usd"]) == ("running", pytest.approx(0, abs=0.1))
    fault.checkpoints(run.path)
    fault.leaves_out(machines=UNPAID)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    path = tmp_path / "small disk"
    path.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)]
    mounted = False
    with contextlib.suppress(OSError):
        mounted = subprocess.run(words, check=False, capture_output=True).returncode == 0
    if not mounted:
        pytest.skip("needs the right to mount: run this as root on Linux")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


FILL = """
try:
    with open("filling", "wb", buffering=0) as file:
        while True: file.write(b"x" * 512)
except OSError: pass
"""


def test_a_full_disk_ends_neither_the_heartbeat_nor_the_job(make: Make, small_disk: Path, fault: Fault) -> None:
    """The supervisor overwrites the status in place, because the disk has no room for a new file."""
    run = make(root=small_disk).start(TELL + FILL + "sys.stdin.read()")
    wait_until(lambda: (run.path / "filling").exists() and _is_full(small_disk))
    fault.strikes()
    heartbeat = run.status["heartbeat"]
    fault.told(lambda: (run.status or {"heartbeat": 0})["heartbeat"] > heartbeat)
    fault.leaves_out(checkpoints="the job makes none", machines=UNPAID)
    assert run.process is not None
    run.process.send_signal(signal.SIGTERM)
    _, status = run.end()
    assert (status["state"], status["reason"]) == ("stopped", "stopped before training began")
    assert not list(run.path.glob(".*.part"))


def test_a_checkpoint_without_room_is_a_failure_with_the_last_one_whole(
    make: Make, small_disk: Path, fault: Fault
) -> None:
    """The full disk crashes the job, and crashes it again after a restart from that checkpoint. Then the run fails."""
    script = SAVE + "if not count: save(1)\nopen('checkpoints/.epoch_002.pt.part', 'wb').write(bytes(1 << 20))"
    run = make(root=small_disk).start(script, max_restarts=3)
    fault.strikes()
    fault.told(lambda: run.status.get("last_crash") or run.status.get("state") == "failed")
    _, status = run.end()
    fault.checkpoints(run.path)
    fault.leaves_out(machines=UNPAID)
    assert (status["state"], status["restarts"]) == ("failed", 1)
    assert status["evidence"][-1] == f"no space left on the disk of {run.path}"
    assert "since epoch_001.pt" in status["reason"]


def _is_full(path: Path) -> bool:
    about = os.statvfs(path)
    return about.f_bavail == 0


def _command_lines() -> str:
    """Return the command lines of all processes on this machine, as `ps` shows them."""
    if os.name == "nt":
        return ""
    return subprocess.run(["ps", "-A", "-o", "args="], capture_output=True, text=True, check=True).stdout


def _quoted(path: Path) -> str:
    return str(path).replace("'", "\\'")
