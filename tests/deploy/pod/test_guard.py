"""The guard of a machine, as a real process beside real supervisors and jobs, without the laptop."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.pod.backup import storage, sync
from deploy.pod.base import processes
from deploy.pod.base.clock import Clock
from deploy.pod.base.folder import Root, RunFolder, read_json, write_json
from deploy.pod.base.limits import Limits, parse
from deploy.pod.base.lock import Lock
from deploy.pod.base.paid_time import Meter
from deploy.pod.watchdog.activity import Activity, computes
from deploy.pod.watchdog.ceilings import Seen, reached
from deploy.runs import checkpoints
from deploy.shell import LocalShell
from tests.deploy.conftest import SOURCE, wait_until
from tests.deploy.pod.test_release import KEY, POD, Api
from tests.deploy.support.supervised import DEAF, GOOD, OBEDIENT, SAVE, TELL, TRAINING, Supervised
from tests.support.faults import Fault
from tests.support.load import under_load

Make = Callable[..., Supervised]
HOUR_S = 3600.0


class Guarded:
    """A machine's root folder and its guard."""

    def __init__(self, path: Path, api: Api) -> None:
        self.root = Root(path)
        self.api = api
        self.process: subprocess.Popen[bytes] | None = None

    def allow(self, **limits: Any) -> Guarded:
        """Write guard.json, as the laptop does before staging and at any later time."""
        quick = {"machine": "sniperface-x", "poll_s": 0.05, "grace_s": 5, "retry_s": 0.2, "release": "runpod"}
        write_json(Path(self.root.guard), {**quick, "usd_per_hour": 2.0, **limits})
        return self

    def start(self, *launcher: str, **env: str) -> Guarded:
        pod = {"RUNPOD_POD_ID": POD, "RUNPOD_API_KEY": KEY, "RUNPOD_API_BASE_URL": self.api.url}
        self.process = subprocess.Popen(
            [sys.executable, *(launcher or ("-m", "deploy.pod.guard")), str(self.root.path)],
            cwd=SOURCE, env={**os.environ, **pod, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        wait_until(lambda: self.status.get("pid") == self.process.pid)  # type: ignore[union-attr]
        return self

    @property
    def status(self) -> dict[str, Any]:
        return read_json(Path(self.root.guard_status))

    @property
    def words(self) -> str:
        """All decisions so far, one per line."""
        return "\n".join(f"{each['state']}: {each['words']}" for each in self.status["decisions"])

    def until(self, state: str, limit_s: float = 30) -> Guarded:
        wait_until(lambda: self.status.get("state") == state, limit_s)
        return self


@pytest.fixture
def api() -> Iterator[Api]:
    made = Api()
    yield made
    made.close()


@pytest.fixture
def guarded(tmp_path: Path, api: Api) -> Iterator[Guarded]:
    """A guard on the same machine as the runs of `make`."""
    one = Guarded(tmp_path / "root & more", api)
    yield one
    Path(one.root.guard).unlink(missing_ok=True)  # otherwise a supervisor would start another
    if one.process:
        processes.kill_tree(one.process.pid)
        one.process.communicate()


@pytest.fixture
def volume(tmp_path: Path) -> dict[str, str]:
    """Limits with a storage for the sync on a volume, which outlives the machine."""
    path = tmp_path / "network volume"
    path.mkdir()
    return {"volume_path": str(path), "sync_to": str(path / "backup of runs")}


def backup(volume: dict[str, str], run: Supervised) -> RunFolder:
    return RunFolder(Path(volume["sync_to"]) / run.path.name)


def mark_fetched(run: Supervised, name: str) -> None:
    """Write the mark that the laptop writes after a verified download."""
    about = json.loads((run.path / "checkpoints" / name).with_suffix(".json").read_text())
    write_json(run.path / "checkpoints" / f"{name}.fetched", {"sha256": about["sha256"]})


# One process per machine, and what it reads


def test_there_is_one_guard_a_machine(guarded: Guarded) -> None:
    """A second guard exits at once with code 0. Without guard.json, a guard exits with code 2. SIGTERM ends it."""
    words = [sys.executable, "-m", "deploy.pod.guard", str(guarded.root.path)]
    first = subprocess.run(words, cwd=SOURCE, capture_output=True, text=True, check=False, timeout=under_load(30))
    assert (first.returncode, "guard.json is missing" in first.stderr) == (2, True)
    guarded.allow().start()
    assert guarded.process is not None
    second = subprocess.run(words, cwd=SOURCE, capture_output=True, text=True, check=False, timeout=under_load(30))
    assert (second.returncode, guarded.status["pid"]) == (0, guarded.process.pid)
    heartbeat = guarded.status["heartbeat"]
    wait_until(lambda: guarded.status["heartbeat"] > heartbeat)
    if os.name != "nt":
        guarded.process.terminate()
        assert guarded.process.wait(under_load(30)) == 0
        assert guarded.status["state"] == "ended"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs kill -9 and /proc: run on Linux")
def test_a_killed_guard_is_replaced_by_the_supervisor(guarded: Guarded, make: Make, fault: Fault) -> None:
    """The new guard is not part of the job, so it outlives the supervisor."""
    run = make("one").start(TRAINING).begun()
    guarded.allow(max_hours=48, paid_since=time.time()).start()
    assert guarded.process is not None
    guarded.process.kill()
    fault.strikes()
    guarded.process.communicate()
    second = fault.told(lambda: guarded.status["pid"] != guarded.process.pid and guarded.status["pid"])  # type: ignore[union-attr]
    wait_until(lambda: guarded.status["running"] == "one")
    fault.guard(guarded.status)
    run.stop()
    assert run.end()[1]["state"] == "stopped"
    fault.checkpoints(run.path)
    assert processes.is_alive(second)
    os.kill(second, signal.SIGTERM)
    wait_until(lambda: guarded.status["state"] == "ended")


def test_it_takes_up_new_limits(guarded: Guarded, make: Make) -> None:
    """If guard.json is invalid, the earlier limits stay in force."""
    run = make("one").start(OBEDIENT).begun()
    guarded.allow(max_hours=48, paid_since=time.time() - HOUR_S).start()
    assert guarded.status["limits"]["max_hours"] == 48
    assert guarded.status["spend_usd"] == pytest.approx(2.0, abs=0.05)
    assert guarded.status["deadline"] == pytest.approx(time.time() + 47 * HOUR_S, abs=30)
    guarded.allow(max_hours="soon")
    wait_until(lambda: "max_hours must be a number" in guarded.words)
    Path(guarded.root.guard).write_text('{"max_')
    wait_until(lambda: "incomplete" in guarded.words)
    assert (guarded.status["limits"]["max_hours"], run.status["state"]) == (48, "running")
    guarded.allow(max_hours=0.5, paid_since=time.time() - HOUR_S)
    assert run.end()[1]["state"] == "expired"


# What the guard does when a ceiling is reached


def paid(**limits: Any) -> dict[str, Any]:
    return {"paid_since": time.time() - HOUR_S, **limits}


@pytest.mark.parametrize("cause", ["max_hours", "max_usd", "stall_min"])
def test_a_ceiling_ends_in_checkpoint_copy_and_release(
    guarded: Guarded, make: Make, volume: dict[str, str], cause: str, fault: Fault
) -> None:
    """The guard writes the reason before it stops the job. The run ends with this reason."""
    limits = {"max_hours": {"max_hours": 0.9}, "max_usd": {"max_usd": 1.9}, "stall_min": {"stall_min": 0.02}}[cause]
    asked = 'print("begun", flush=True); sys.stdin.read(); print("noted:", os.path.exists("ended.json"), flush=True)'
    run = make("one").start(TRAINING.replace('print("begun", flush=True); sys.stdin.read();', f"{asked};")).begun()
    guarded.allow(**paid(**limits, **volume)).start()
    wait_until(lambda: f"{cause} " in guarded.words)
    fault.strikes()
    fault.told(lambda: f"{cause} " in (run.status["reason"] or ""))
    guarded.until("released")
    _, status = run.end()
    assert status["state"] == "expired"
    assert f"{cause} " in status["reason"]
    fault.guard(guarded.status)
    fault.checkpoints(run.path, Path(backup(volume, run).path))
    assert b"noted: True" in run.log
    ended = read_json(Path(run.folder.ended))
    assert (ended["cause"], ended["reason"], ended["run_id"]) == (cause, status["reason"], "one")
    assert ended["spend_usd"] == pytest.approx(2.0, abs=0.1)
    assert guarded.api.calls[0] == ("DELETE", f"/v2/pods/{POD.replace(' ', '%20').replace('/', '%2F')}", None)
    there = backup(volume, run)
    data = Path(there.checkpoints / "epoch_002.pt").read_bytes()
    assert data == b"weights 2"  # made after the stop
    assert read_json(Path(there.checkpoints / "epoch_002.json"))["sha256"] == hashlib.sha256(data).hexdigest()
    assert Path(there.latest).read_text() == "epoch_002.pt"
    assert read_json(Path(there.status))["state"] == "expired"
    assert Path(there.log).read_bytes() == run.log
    assert read_json(Path(there.ended))["cause"] == cause
    assert not list(Path(there.path).rglob("*.part"))
    assert "epoch_002.pt is in" in guarded.words


def test_an_idle_machine_is_released(guarded: Guarded, make: Make, volume: dict[str, str], fault: Fault) -> None:
    """The last run keeps its state. The sync includes an earlier run that has no other copy."""
    done = TRAINING.replace("sys.stdin.read()", "None").replace('"stopped"', '"done"')
    for name in ("earlier", "later"):
        assert make(name).start(done).end()[1]["state"] == "succeeded"
    guarded.allow(idle_min=0.02, **volume).start()
    fault.strikes()
    armed = time.monotonic()
    fault.told(lambda: "idle_min" in guarded.words)
    guarded.until("released")
    fault.orphan(time.monotonic() - armed, 0.02)
    fault.guard(guarded.status)
    fault.checkpoints(*(make(name).path for name in ("earlier", "later")))
    later = make("later")
    assert (later.status["state"], read_json(Path(later.folder.ended))["cause"]) == ("succeeded", "idle_min")
    for run in (make("earlier"), later):
        assert Path(backup(volume, run).checkpoints / "epoch_002.pt").exists()


def test_a_run_that_waits_expires_with_the_one_that_runs(guarded: Guarded, make: Make) -> None:
    """No waiting run starts in between."""
    first = make("first").start(OBEDIENT).begun()
    others = [make(name).start(GOOD, queue=True).until("planned") for name in ("second", "third")]
    guarded.allow(**paid(max_hours=0.5)).start()
    for run in (first, *others):
        assert run.end()[1]["state"] == "expired"
    assert not others[0].log + others[1].log


@pytest.mark.slow
def test_a_job_that_stalls_makes_way_for_the_next(guarded: Guarded, make: Make) -> None:
    """The machine is not released, because another run waits for it."""
    first = make("first").start(OBEDIENT).begun()
    second = make("second").start(TELL + 'print("begun", flush=True)\nwhile True: pass', queue=True).until("planned")
    guarded.allow(stall_min=0.02, paid_since=time.time()).start()
    assert first.end()[1]["state"] == "expired"
    second.begun()
    wait_until(lambda: guarded.status["state"] == "guarding")
    assert guarded.api.calls == []


def test_a_deaf_job_is_ended_by_force(guarded: Guarded, make: Make) -> None:
    run = make("one").start(DEAF, grace_s=0.5).begun()
    guarded.allow(**paid(max_hours=0.5)).start().until("released")
    assert run.status["state"] == "expired"
    assert "by force" in run.status["reason"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="a lock is not inherited on Windows: run on Linux or macOS")
def test_a_job_whose_supervisor_hangs_is_ended_all_the_same(guarded: Guarded, make: Make) -> None:
    """The guard kills the job and writes the status in place of the supervisor."""
    run = make("one").start(DEAF, grace_s=0.1).begun()
    assert run.process is not None
    job = wait_until(lambda: run.status.get("job_pid"))
    os.kill(run.process.pid, signal.SIGSTOP)
    guarded.allow(**paid(max_hours=0.5, grace_s=0.1)).start().until("released", limit_s=60)
    assert (run.status["state"], "max_hours" in run.status["reason"]) == ("expired", True)
    wait_until(lambda: not processes.is_alive(job))


@pytest.mark.skipif(os.name == "nt", reason="a lock is not inherited on Windows: run on Linux or macOS")
def test_an_orphan_does_not_block_its_machine(guarded: Guarded, make: Make) -> None:
    """A deaf job whose supervisor was killed gets its grace; then the guard kills it."""
    run = make("one").start(DEAF).begun()
    job = wait_until(lambda: run.status.get("job_pid"))
    assert run.process is not None
    run.process.kill()
    run.process.communicate()
    guarded.allow(grace_s=0.2).start()
    wait_until(lambda: not processes.is_alive(job))
    assert "an orphan" in guarded.words


# The only copy of a checkpoint


def test_the_only_copy_is_kept_until_somebody_has_it(guarded: Guarded, make: Make, fault: Fault) -> None:
    """The decision names the cost. A mark of the laptop ends the wait, unless it is for other bytes."""
    run = make("one").start(TRAINING).begun()
    guarded.allow(**paid(max_hours=0.5)).start()
    fault.strikes()
    fault.told(lambda: guarded.status["state"] == "kept")
    fault.guard(guarded.status)
    fault.checkpoints(run.path)
    assert "kept because the only copy of epoch_002.pt (run one) is here; costs $2.00 an hour" in guarded.words
    assert guarded.status["only_copies"] == {"one": "epoch_002.pt"}
    mark_fetched(run, "epoch_001.pt")
    write_json(run.path / "checkpoints" / "epoch_002.pt.fetched", {"sha256": "0" * 64})
    heartbeat = guarded.status["heartbeat"]
    wait_until(lambda: guarded.status["heartbeat"] > heartbeat)
    assert (guarded.status["state"], guarded.api.calls) == ("kept", [])
    mark_fetched(run, "epoch_002.pt")
    guarded.until("released")
    assert guarded.api.calls[0][0] == "DELETE"


def test_both_sides_mean_the_same_newest_checkpoint(guarded: Guarded, make: Make) -> None:
    """A stop between two epochs leaves two checkpoints of one step. Laptop and guard must choose the same."""
    script = SAVE + (
        'save(2); print("begun", flush=True); sys.stdin.read()\n'
        'about = {**json.load(open("checkpoints/epoch_002.json")), "file": "epoch_003_step_2.pt", "epoch": 3}\n'
        'open("checkpoints/epoch_003_step_2.pt", "wb").write(b"weights 2")\n'
        'open("checkpoints/epoch_003_step_2.json", "w").write(json.dumps({**about, "epoch_complete": False}))\n'
        'tell(event="end", reason="stopped", message="asked")'
    )
    run = make("one").start(script).begun()
    guarded.allow(**paid(max_hours=0.5)).start().until("kept")
    fetched = checkpoints.whole(LocalShell(), run.folder)[-1]
    assert guarded.status["only_copies"] == {"one": fetched["file"]}
    mark_fetched(run, fetched["file"])
    guarded.until("released")


def test_max_usd_is_hard(guarded: Guarded, make: Make) -> None:
    """max_hours keeps the only copy. max_usd gives it up, and the decision says so."""
    make("one").start(TRAINING).begun()
    guarded.allow(**paid(max_hours=0.5, max_usd=4)).start().until("kept")
    assert "until max_usd 4 is reached" in guarded.words
    guarded.allow(**paid(max_hours=0.5, max_usd=2)).until("released")
    assert "terminate, and with it the only copy of epoch_002.pt" in guarded.words


@pytest.mark.parametrize(("on_end", "method"), [("stop", "POST"), ("terminate", "DELETE")])
def test_on_end_decides_about_the_only_copy(guarded: Guarded, make: Make, on_end: str, method: str) -> None:
    make("one").start(TRAINING).begun()
    guarded.allow(**paid(max_hours=0.5, on_end=on_end)).start().until("released")
    assert guarded.api.calls[0][0] == method


def test_a_root_on_a_volume_outlives_its_machine(guarded: Guarded, make: Make, tmp_path: Path) -> None:
    make("one").start(TRAINING).begun()
    guarded.allow(**paid(max_hours=0.5, volume_path=str(tmp_path))).start().until("released")
    assert guarded.api.calls[0][0] == "DELETE"


def test_a_place_on_the_machines_own_disk_is_none(guarded: Guarded, make: Make, tmp_path: Path) -> None:
    """Such a path is mistyped, or its volume is not mounted."""
    make("one").start(TRAINING).begun()
    guarded.allow(**paid(max_hours=0.5, sync_to=str(tmp_path / "backups"))).start().until("kept")
    assert "which is lost with the machine: is the volume mounted there?" in guarded.words


@pytest.mark.skipif(os.name == "nt", reason="needs a FIFO: run on Linux or macOS")
def test_a_volume_that_hangs_does_not_hang_the_guard(guarded: Guarded, make: Make, volume: dict[str, str]) -> None:
    """The sync has its own time limit; the heartbeat continues meanwhile."""
    run = make("one").start(TRAINING).begun()
    there = Path(backup(volume, run).path)
    there.mkdir(parents=True)
    os.mkfifo(there / ".plan.json.part")  # opening it for writing waits for a reader
    guarded.allow(**paid(max_hours=0.5, sync_limit_s=3, **volume)).start()
    wait_until(lambda: "copying to" in guarded.words)
    heartbeat = guarded.status["heartbeat"]
    wait_until(lambda: guarded.status["heartbeat"] > heartbeat)
    guarded.until("kept")
    assert "did not finish within 3 s" in guarded.words


def test_each_new_checkpoint_is_copied_while_the_job_runs(guarded: Guarded, make: Make, volume: dict[str, str]) -> None:
    """A machine may disappear without warning."""
    run = make("one").start(TRAINING).begun()
    guarded.allow(**volume).start()
    wait_until(lambda: Path(backup(volume, run).checkpoints / "epoch_001.json").exists())
    wait_until(lambda: "epoch_001.pt is in" in (guarded.status["last_copy"] or ""))
    assert (run.status["state"], guarded.status["state"]) == ("running", "guarding")


def test_a_copy_that_is_not_right_is_no_copy(tmp_path: Path, make: Make) -> None:
    """The sync copies the previous checkpoint if the newest is damaged. It fails if the storage loses bytes."""
    run = make("one")
    run.start(SAVE + 'save(1); save(2); save(3, broken=True); tell(event="end", reason="done")').end()
    place = storage.Folder(tmp_path / "there")
    assert sync.sync(run.folder, place, "there")["checkpoint"] == "epoch_002.pt"
    assert (run.path / "checkpoints" / "epoch_002.pt.synced").exists()

    class Lossy(storage.Folder):
        def put(self, source: Any, name: str) -> str:
            super().put(source, name)
            return "0" * 64

    with pytest.raises(sync.SyncFailed, match="is the storage full or broken"):
        sync.sync(run.folder, Lossy(tmp_path / "other"), "other")


def test_a_copy_keeps_no_more_than_the_run_does(tmp_path: Path, make: Make) -> None:
    """The sync removes its copies of checkpoints that the run removed, and no other file.

    Otherwise a run of many epochs would fill the storage.
    """
    run = make("one")
    run.start(SAVE + 'save(1); tell(event="end", reason="done")').end()
    checkpoints = tmp_path / "there" / "one" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "epoch_000.pt").write_bytes(b"of somebody else")
    place = storage.Folder(tmp_path / "there")
    sync.sync(run.folder, place, "there")
    for name in ("epoch_001.json", "epoch_001.pt"):
        (run.path / "checkpoints" / name).unlink()
    run.start(SAVE + 'save(2); tell(event="end", reason="done")').end()
    sync.sync(run.folder, place, "there")
    assert {path.name for path in checkpoints.iterdir()} == {"epoch_000.pt", "epoch_002.pt", "epoch_002.json", "latest"}
    assert [path.name for path in (run.path / "checkpoints").glob("*.synced")] == ["epoch_002.pt.synced"]


def test_copies_go_to_an_address_as_well(tmp_path: Path, make: Make) -> None:
    """A separate process copies by fsspec. If it fails, it prints one sentence."""
    run = make("one")
    run.start(SAVE + 'save(1); tell(event="end", reason="done")').end()
    words = [sys.executable, "-m", "deploy.pod.backup.sync", str(run.path)]
    url = f"file://{(tmp_path / 'bucket').as_posix()}"
    done = subprocess.run(
        [*words, url], cwd=SOURCE, capture_output=True, text=True, check=False, timeout=under_load(60)
    )
    assert (done.returncode, json.loads(done.stdout)["checkpoint"]) == (0, "epoch_001.pt")
    assert (tmp_path / "bucket" / "one" / "checkpoints" / "epoch_001.pt").read_bytes() == b"weights 1"
    for wrong in ("nothing://here", "s3://bucket/there"):
        failed = subprocess.run(
            [*words, wrong], cwd=SOURCE, capture_output=True, text=True, check=False, timeout=under_load(60)
        )
        assert (failed.returncode, len(failed.stdout.splitlines())) == (1, 1)
        assert wrong in failed.stdout


def test_a_long_log_is_copied_from_its_end(tmp_path: Path, make: Make) -> None:
    """The copy has another name, because byte offsets of the whole log are wrong in it."""
    run = make("one")
    run.start(TELL + 'sys.stdout.write("x" * (5 << 20)); print("last words"); tell(event="end", reason="done")').end()
    sync.sync(run.folder, storage.Folder(tmp_path / "there"), "there")
    tail = (tmp_path / "there" / "one" / "train.log.tail").read_bytes()
    assert (len(tail), tail[-11:]) == (sync.LOG_BYTES, b"last words\n")


# Machines of a cluster, which are released together


def test_the_first_machine_releases_the_cluster(guarded: Guarded, make: Make) -> None:
    """A cluster cannot be stopped, so with on_end=stop the machine is kept for its only copy."""
    run = make("one").start(TRAINING).begun()
    guarded.allow(**paid(max_hours=0.5, group="cluster1", node=0, on_end="stop")).start().until("kept")
    assert guarded.api.calls == []
    mark_fetched(run, "epoch_002.pt")
    guarded.until("released")
    assert guarded.api.calls[0] == ("DELETE", "/v2/clusters/cluster1", None)


def test_another_machine_leaves_that_to_the_first_until_the_money_is_spent(guarded: Guarded, make: Make) -> None:
    """Another machine has no checkpoints, so it cannot know whether they have another copy."""
    run = make("one").start(OBEDIENT).begun()
    guarded.allow(**paid(max_hours=0.5, max_usd=4, group="cluster1", node=1)).start().until("waiting")
    assert run.end()[1]["state"] == "expired"
    assert "the guard of the first machine releases it with its cluster, or once max_usd 4 is spent" in guarded.words
    assert guarded.api.calls == []
    guarded.allow(**paid(max_hours=0.5, max_usd=1.9, group="cluster1", node=1)).until("released")
    assert {call[:2] for call in guarded.api.calls} == {("DELETE", "/v2/clusters/cluster1")}


# Release, and machines that cannot be released


def test_a_refusal_is_seen_and_tried_again(guarded: Guarded, make: Make, volume: dict[str, str], fault: Fault) -> None:
    """The job has ended, and the decision names the cost. The key is in no status and no command line."""
    run = make("one").start(TRAINING).begun()
    guarded.api.always = 403
    guarded.allow(**paid(max_hours=0.5, **volume)).start()
    fault.strikes()
    fault.told(lambda: guarded.status["state"] == "stuck")
    fault.guard(guarded.status)
    fault.checkpoints(run.path)
    assert run.status["state"] == "expired"
    assert "could not be released; its job has ended; it still costs $2.00 an hour" in guarded.words
    assert "403 Forbidden" in guarded.words
    guarded.api.always = None
    guarded.until("released")
    assert KEY not in Path(guarded.root.guard_status).read_text()
    if os.name != "nt":
        listing = subprocess.run(["ps", "-A", "-o", "args="], capture_output=True, text=True, check=True).stdout
        assert KEY not in listing


def test_a_machine_that_is_nobodys_to_give_back_stays(guarded: Guarded, make: Make) -> None:
    """On an SSH host the guard only ends the job. Nothing is billed, so max_hours counts from the job's start."""
    run = make("one").start(OBEDIENT).begun()
    guarded.allow(max_hours=0.0005, release="none", usd_per_hour=0).start()
    assert run.end()[1]["state"] == "expired"
    wait_until(lambda: "nothing to release" in guarded.words)
    assert guarded.api.calls == []
    guarded.until("guarding")  # max_hours starts anew with the next job


def test_a_machine_that_only_the_laptop_can_release_says_so(guarded: Guarded, make: Make) -> None:
    """It has no key of the account. The guard ends the job, and its state lets the laptop download and release it."""
    run = make("one").start(OBEDIENT).begun()
    guarded.allow(max_hours=0.0005, release="laptop", paid_since=time.time()).start()
    assert run.end()[1]["state"] == "expired"
    guarded.until("stuck")
    assert "it still costs $2.00 an hour" in guarded.words
    assert "the next command on your computer does" in guarded.words
    assert guarded.api.calls == []


def test_secrets_for_the_copies_are_read_once(guarded: Guarded) -> None:
    guarded.allow().start()
    write_json(Path(guarded.root.guard_secrets), {"AWS_SECRET_ACCESS_KEY": "never-to-be-seen"})
    wait_until(lambda: not Path(guarded.root.guard_secrets).exists())
    assert guarded.status["state"] == "guarding"


# Clocks


JUMPING = """
import os, sys, time
from deploy.pod.base.clock import Clock
from deploy.pod.watchdog.daemon import main
def wall():
    return time.time() + (float(open(JUMP).read() or 0) if os.path.exists(JUMP) else 0)
JUMP = sys.argv[1] + "/jump"
sys.exit(main(["guard", sys.argv[1]], Clock(wall=wall)))
"""


@pytest.mark.parametrize("jump_s", [90_000, -90_000])
def test_a_jump_of_the_clock_fires_no_ceiling(guarded: Guarded, make: Make, jump_s: int, fault: Fault) -> None:
    """Paid hours still count. A restarted guard continues the count."""
    run = make("one").start(TRAINING).begun()
    limits = paid(max_hours=10, max_usd=20, idle_min=100, stall_min=100)
    guarded.allow(**limits).start("-c", JUMPING)
    (Path(guarded.root.path) / "jump").write_text(str(jump_s))
    fault.strikes()
    fault.told(lambda: abs(guarded.status["heartbeat"] - time.time() - jump_s) < 100)
    fault.guard(guarded.status)
    fault.checkpoints(run.path)
    assert guarded.status["spend_usd"] == pytest.approx(2.0, abs=0.05)
    assert guarded.process is not None
    guarded.process.kill()
    guarded.process.communicate()
    guarded.start("-c", JUMPING)
    if sys.platform == "linux":
        assert guarded.status["spend_usd"] == pytest.approx(2.0, abs=0.05)
        assert (run.status["state"], guarded.status["state"]) == ("running", "guarding")
        assert guarded.status["deadline"] == pytest.approx(time.time() + jump_s + 9 * HOUR_S - 665, abs=60)


# What the guard observes, and which ceiling follows


def test_signs_of_life_on_a_machine_without_a_job(tmp_path: Path) -> None:
    """Each resets the idle time: contact from the laptop, new code, growing data in a watched folder, a job."""
    now, staging = [0.0], tmp_path / "shm"
    staging.mkdir()
    activity = Activity(Root(tmp_path), Clock(monotonic=lambda: now[0]))

    def idle_s() -> float | None:
        activity.look([str(staging)])
        return activity.seen(None).idle_s

    def later(seconds: float) -> float | None:
        now[0] += seconds
        return idle_s()

    assert idle_s() == 0
    assert later(100) == 100
    for path in ("contact", "code/abc/README.md", "data/orl/images.npy", "shm/images.npy.part"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"1")
        assert later(60) == 0, path
        assert later(60) == 60, path
    (staging / "images.npy.part").write_bytes(b"12")
    assert later(60) == 0
    with Lock(tmp_path / "busy.lock", {"run_id": "one"}).acquire():
        assert later(60) is None
    assert later(60) == 60


def test_a_stall_is_no_step_and_nothing_computed(tmp_path: Path) -> None:
    """Mining makes no steps but computes. Loading does neither; its stall counts from the job's start."""
    now = [0.0]
    root = Root(tmp_path)
    activity = Activity(root, Clock(monotonic=lambda: now[0]))
    folder = RunFolder(tmp_path / "runs" / "one")

    def stall_s(seconds: float, **status: Any) -> float | None:
        now[0] += seconds
        write_json(Path(folder.status), {"run_id": "one", "job_pid": 1, **status})
        activity.look([])
        return activity.seen(None).stall_s

    idle: dict[str, Any] = {"gpus": [{"utilization_pct": 0}, {"utilization_pct": 1}]}
    assert stall_s(10) is None
    with Lock(root.busy_lock, {"run_id": "one", "attempt": 1, "pid": os.getpid()}).acquire():
        assert stall_s(10, **idle) == 0
        assert stall_s(60, **idle) == 60
        assert stall_s(60, step=1, **idle) == 0
        assert stall_s(60, step=1, **idle) == 60
        assert stall_s(60, step=1, gpus=[{"utilization_pct": 0}, {"utilization_pct": 90}]) == 0
        assert stall_s(60, step=1, **idle) == 60
        assert stall_s(60, step=1, restarts=1, **idle) == 0
    assert stall_s(60, step=1, **idle) is None


def test_what_counts_as_computing() -> None:
    """GPU utilization counts if it is known, else CPU use. If both are unknown, the job computes."""
    assert computes({"gpus": [{"utilization_pct": 90}], "job_cpu_pct": 0})
    assert not computes({"gpus": [{"utilization_pct": 0}], "job_cpu_pct": 100})  # ranks that spin while they wait
    assert computes({"gpus": [{"utilization_pct": None}], "job_cpu_pct": 50})
    assert not computes({"gpus": None, "job_cpu_pct": 1})
    assert computes({})


def test_which_ceiling_is_reached() -> None:
    """max_usd comes first. It is reached early enough that its rest pays for checkpoint and copy."""
    limits = Limits(max_hours=10, max_usd=4, usd_per_hour=2, idle_min=15, stall_min=20, grace_s=60, sync_limit_s=240)
    causes = {
        "max_usd": Seen(paid_s=2 * HOUR_S - 300, idle_s=1e6),
        "max_hours": Seen(paid_s=None, job_s=10 * HOUR_S, stall_s=1e6),
        "stall_min": Seen(paid_s=0.0, job_s=0.0, stall_s=1200.0),
        "idle_min": Seen(paid_s=0.0, idle_s=900.0),
    }
    for cause, seen in causes.items():
        found = reached(limits, seen)
        assert found is not None
        assert found.cause == cause
        assert cause in found.reason
    assert reached(limits, Seen(paid_s=2 * HOUR_S - 301, job_s=1.0, stall_s=1199.0)) is None
    assert reached(Limits(), Seen(paid_s=1e9, job_s=1e9, idle_s=1e9, stall_s=1e9)) is None
    assert reached(Limits(max_usd=1, usd_per_hour=0), Seen(paid_s=1e9)) is None  # the machine costs nothing
    for spend_usd, cause in ((0.999, None), (1.0, "max_usd")):  # of all attempts of a run, as the laptop adds it up
        spent = reached(Limits(max_usd=1), Seen(spend_usd=spend_usd))
        assert (spent and spent.cause) == cause
    assert reached(Limits(), Seen(spend_usd=1e9)) is None


def test_limits_are_read_with_care() -> None:
    """Unknown keys are ignored, because they belong to another version. The error of an invalid value names its key."""
    told = {"max_hours": 48, "idle_min": "1.5", "watch": ["/a"], "future": 1, "max_usd": None}
    assert parse(told) == Limits(max_hours=48, idle_min=1.5, watch=("/a",))
    for wrong in ({"max_hours": -1}, {"max_usd": "much"}, {"on_end": "burn"}, {"idle_min": True}, {"stall_min": "nan"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            parse(wrong)


def test_the_meter_asks_the_wall_clock_once() -> None:
    now, wall = [100.0], [10_000.0]
    clock = Clock(monotonic=lambda: now[0], wall=lambda: wall[0])
    limits = Limits(paid_since=9_000.0, usd_per_hour=3.6, max_hours=1)
    meter = Meter(limits, clock)
    assert meter.paid_s == 1000
    note = meter.note()
    now[0], wall[0] = 200.0, 1e9
    assert (meter.paid_s, meter.spend_usd, meter.deadline) == (1100, pytest.approx(1.1), 1e9 + 2500)
    if note["boot"]:
        assert Meter(limits, clock, note).paid_s == 1100
        assert Meter(limits, clock, {**note, "boot": "another"}).paid_s == 1e9 - 9000
    wall[0] = 0.0  # a machine whose clock is behind the provider's
    assert Meter(limits, clock).paid_s == 0
